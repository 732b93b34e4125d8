"""Pages of the reference that are made while the site is built: one for every package, from its docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LAYERS = ("stimuli", "probes", "finetune", "analysis", "paper")


def packages() -> Iterator[Path]:
    """The folders that hold modules, layer by layer, the outer one first."""
    for layer in LAYERS:
        for folder in [ROOT / layer, *sorted(path for path in (ROOT / layer).rglob("*") if path.is_dir())]:
            # The command line has a reference of its own.
            if (folder / "__init__.py").exists() and folder != ROOT / "probes" / "cli":
                yield folder.relative_to(ROOT)


def page(package: Path) -> str:
    """The page of a package: what it is for, and every public name of its modules that has a docstring."""
    purpose = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    parts = [f"# {'.'.join(package.parts)}", purpose]
    for path in sorted((ROOT / package).glob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            parts.append(f"::: {'.'.join((*package.parts, path.stem))}")
    return "\n\n".join(parts) + "\n"


def source_map() -> str:
    """Every module, package by package, with the first line of its docstring."""
    parts = ["# Source map", "Imports go downward only: `paper` -> `analysis` and `finetune` -> `probes` -> `stimuli`."]
    for package in [*packages(), Path("probes", "cli")]:
        modules = {
            path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            for path in sorted((ROOT / package).glob("*.py"))
        }
        lines = [f"- `{path.name}`: {(said or '').splitlines()[0]}" for path, said in modules.items() if said]
        parts += [f"## {package}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def address(package: Path) -> str:
    """Where the page of a package is."""
    return f"reference/{'.'.join(package.parts)}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages into the navigation, after the command line."""
    assert config.nav is not None
    reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
    reference += [{"Source map": "reference/source-map.md"}]
    reference += [{".".join(package.parts): address(package)} for package in packages()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    files.append(File.generated(config, "reference/source-map.md", content=source_map()))
    for package in packages():
        files.append(File.generated(config, address(package), content=page(package)))
    return files
