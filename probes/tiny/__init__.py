"""`tiny`: a two-million-parameter LLaVA that sees all four families, shipped so that everything runs offline."""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
"""Folder in the Hugging Face hub layout: hand it to `AutoProcessor` and `AutoModelForImageTextToText`."""
