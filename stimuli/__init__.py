"""Scenes, simulators, tasks, designs and stimulus sets. Imports nothing of the other packages and never torch."""
