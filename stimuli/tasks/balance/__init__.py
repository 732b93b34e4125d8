"""Balance: a plank lies loosely on a flat-topped fulcrum, with objects of different shape and weight on it."""
