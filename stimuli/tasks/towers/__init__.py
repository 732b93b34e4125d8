"""Towers: stacks of equal blocks, one per level, that stand or fall when they are let go."""
