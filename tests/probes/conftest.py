"""The untrained models of every served family, and a server."""

from tests.families import families, save_family, save_network, windowed
from tests.probes.serving import server

__all__ = ["families", "save_family", "save_network", "server", "windowed"]
