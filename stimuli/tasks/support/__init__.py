"""Support: posts, a plank on them, what lies on the plank, and a push from the side."""
