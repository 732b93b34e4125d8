"""The untrained models of every served family."""

from tests.families import families, save_family, save_network

__all__ = ["families", "save_family", "save_network"]
