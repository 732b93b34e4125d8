"""Test the intuitive physics of vision-language models: stimuli, probes, adaptation, statistics.

`make`, `run`, `train`, `analyze` and `trials` are the command line's main jobs for scripts and notebooks; see
`vlm_probe.notebook`. Importing this package imports nothing else; each of them is loaded when it is first asked for.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_probe.notebook import analyze, make, run, train, trials

__all__ = ["analyze", "make", "run", "train", "trials"]

# In a checkout the layers are folders at its root, which this folder links to for tools that only read. Python takes them from
# the root itself, so that tracebacks and breakpoints name the real files. In a wheel they are folders here, and nothing is done.
_probes = Path(__file__).parent / "probes"
if _probes.is_symlink() or not _probes.is_dir():
    __path__.insert(0, str(Path(__file__).resolve().parents[2]))


def __getattr__(name: str) -> Any:
    if name in __all__:
        from vlm_probe import notebook

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
