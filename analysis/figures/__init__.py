"""Figures, each in a file of its own: what is drawn is a table, so that every figure can be drawn again from `analysis.json`."""
