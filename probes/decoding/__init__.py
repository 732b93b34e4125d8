"""Linear decoding: which physical quantities can be read off a model's hidden states, and does it use them?"""

from vlm_probe.stimuli.errors import ProbeError


class DecodingError(ProbeError, ValueError):
    """A quantity cannot be decoded from these items; the message says why and what to do. Raised before any slow work."""
