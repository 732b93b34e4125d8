"""How long a reply may be, in tokens, of local and of served models alike."""

from __future__ import annotations

THINKING_TOKENS = 512
"""Of a reply that reasons first."""
SPARE_TOKENS = 8
"""Beyond the longest legal answer: a full stop, a unit, or the beginning of a sentence that gives it away."""
