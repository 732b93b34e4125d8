"""Collision: smooth balls on a table, seen from obliquely above; one moves, strikes another, and that one goes through a gate."""
