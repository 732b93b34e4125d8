"""Test the intuitive physics of vision-language models: stimuli, probes, adaptation, statistics."""

from pathlib import Path

# In a checkout the layers are folders at its root, which this folder links to for tools that only read. Python takes them from
# the root itself, so that tracebacks and breakpoints name the real files. In a wheel they are folders here, and nothing is done.
_probes = Path(__file__).parent / "probes"
if _probes.is_symlink() or not _probes.is_dir():
    __path__.insert(0, str(Path(__file__).resolve().parents[2]))
