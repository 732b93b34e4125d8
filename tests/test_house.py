"""The house as a whole: imports go downward and in no circles, and light layers stay light."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {
    "stimuli": {"stimuli"},
    "probes": {"probes", "stimuli"},
    "finetune": {"finetune", "probes", "stimuli"},
    "analysis": {"analysis", "probes", "stimuli"},
    "paper": {"paper", "analysis", "finetune", "probes", "stimuli"},
}
SOURCES = sorted(p.relative_to(ROOT) for layer in LAYERS for p in (ROOT / layer).rglob("*.py"))
MODULES = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in SOURCES}
OURS = {"stimuli", "probes", "finetune", "analysis", "paper"}


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, anywhere in it, as in `probes.trials`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} imports relatively"
            named = {f"{node.module}.{alias.name}".removeprefix("vlm_probe.") for alias in node.names}
            names |= {f"vlm_probe.{name}" for name in named & MODULES} or {node.module}
    return {name.removeprefix("vlm_probe.") for name in names if name.startswith("vlm_probe.")}


def test_the_imports_of_the_layers_are_seen():
    """The test below would pass on a tree whose imports it does not recognise."""
    assert sum(len(imported(path)) for path in SOURCES) > 1000
    assert {name.partition(".")[0] for path in SOURCES for name in imported(path)} == OURS


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_go_downward(path):
    layer = path.parts[0]
    allowed = LAYERS[layer]
    if path.parts[:2] == ("probes", "cli"):  # the command line reaches every layer, when a command runs
        allowed = OURS
    ours = imported(path)
    assert {name.partition(".")[0] for name in ours} <= allowed
    if path.parts[:2] != ("probes", "cli"):
        assert {name for name in ours if name.startswith("probes.cli")} == set()
    if layer == "analysis":
        assert {name for name in ours if name.startswith("probes")} <= {"probes.trials"}


def test_no_module_needs_itself():
    """Whatever a module imports, inside functions and for types too, can be read without it."""
    left = {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): imported(path) & MODULES for path in SOURCES
    }
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        left = {name: needs for name, needs in left.items() if name not in free}
    while above := set(left) - {need for needs in left.values() for need in needs}:  # these only lead to a circle
        left = {name: needs & set(left) for name, needs in left.items() if name not in above}
    assert left == {}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("vlm_probe.stimuli.generate", {"torch", "transformers", "pandas", "matplotlib", "numba"}),
        ("vlm_probe.probes.run", {"torch", "transformers", "pandas"}),
        ("vlm_probe.probes.models.catalog", {"torch", "transformers", "pandas", "pybullet"}),
        ("vlm_probe.analysis.summary", {"torch", "transformers"}),
    ],
)
def test_light_modules_stay_light(module, heavy):
    code = f"import sys, {module}; print(sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_are_utf8_whatever_the_locale(path):
    """An encoding that is not stated is that of the locale, which may be ASCII."""
    found = []
    for call in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in call.keywords}
        mode = next((arg.value for arg in call.args if isinstance(arg, ast.Constant)), given.get("mode"))
        opens = call.func.attr == "open" and isinstance(mode, str) and re.fullmatch("[rwax]t?[+]?", mode)
        if (opens or call.func.attr in ("read_text", "write_text") or given.get("text")) and "encoding" not in given:
            found.append(f"line {call.lineno}: {ast.unparse(call)[:80]}")
    assert not found


def test_the_readme_is_short_and_its_links_exist():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count("\n") <= 150
    links = [part.partition(")")[0] for part in readme.split("](")[1:]]
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_json_is_read_and_written_in_one_place():
    """`json` itself takes NaN, the last of two equal names, and half a character."""
    trees = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in SOURCES}
    imports = [
        (path, alias.name if isinstance(node, ast.Import) else node.module)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert {str(path) for path, name in imports if name == "json"} == {"stimuli/plain_json.py"}


def test_every_source_file_says_what_it_is_for():
    for path in SOURCES:
        assert ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))), path


def test_one_version_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[0] == version


def test_what_contributors_are_told_is_there():
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = {part for part in guide.split("`") if "/" in part and part.isascii() and not set(part) & set(" *|\n")}
    named = {
        part
        for part in named
        if part.partition("/")[0] in {*OURS, "tests", "benchmarks", "docs"} and "FAMILY" not in part
    }
    assert named and {part for part in named if not (ROOT / part).exists()} == set()
