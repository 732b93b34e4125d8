"""Linear decoding: which physical quantities can be read off a model's hidden states, and does it use them?"""


class DecodingError(ValueError):
    """A quantity cannot be decoded from these items; the message says why and what to do. Raised before any slow work."""
