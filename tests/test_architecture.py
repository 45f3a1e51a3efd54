"""The shape of the package: imports go one way, packages hold no code of their own, files and functions stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "focusasr"
TOP = {"pyproject.toml", "focusasr", "checkpoints", "tests", "scripts", "README.md", "LICENSE"}
LAYERS = (
    {"runtime"},
    {"config", "training_config", "whisper_config"},
    {"audio", "text"},
    {"model"},
    {"decoding"},
    {"data", "transcription"},
    {"evaluation"},
    {"api"},
    {"training"},
    {"cli"},
    {"__main__"},
)
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
FLAT = {"__init__", "__main__", "api", "config", "training_config", "whisper_config"}
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = sorted([*MODULES, *(ROOT / "scripts").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Yield the modules below focusasr that a file imports, wherever in it the import stands: `audio.load`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole module"
            inside = is_package(node.module or "")
            names = [f"{node.module}.{alias.name}" if inside else str(node.module) for alias in node.names]
        else:
            continue
        for name in names:
            package, _, module = name.partition(".")
            if package == "focusasr" and module and not module.startswith("__version"):
                yield module


def is_package(module: str) -> bool:
    return (ROOT / module.replace(".", "/")).is_dir()


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def level(module: str) -> int:
    return LEVELS[module.split(".")[0]]


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(parse(path)) if isinstance(node, Function))


def lines_of(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_module_is_in_a_package() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == FLAT
    packages = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert packages | FLAT - {"__init__"} == set(LEVELS)
    assert not [named(path) for path in PACKAGE.glob("*/*/*.py")]


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem == "__init__"], ids=named)
def test_packages_hold_no_code(path: Path) -> None:
    docstring, *rest = parse(path).body
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)
    kinds = [type(node).__name__ for node in rest]
    # the package itself has its version, and its interface by name: __all__, __getattr__ and __dir__
    allowed = ["ImportFrom", "If", "Assign", "Assign", "FunctionDef", "FunctionDef"] if path.parent == PACKAGE else []
    assert kinds == allowed


def test_importing_the_package_loads_nothing_but_itself() -> None:
    code = "import sys, focusasr; print(*(n for n in sys.modules if n.split('.')[0] in ('focusasr', 'numpy', 'torch')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.split() == ["focusasr"]


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem != "__init__"], ids=named)
def test_imports_go_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for other in imported_modules(parse(path)):
        assert (PACKAGE / f"{other.replace('.', '/')}.py").is_file(), f"{named(path)} imports focusasr.{other}"
        package = other.split(".")[0]
        assert package == own or level(package) < level(own), f"{named(path)} imports focusasr.{other}"


def test_no_cycle() -> None:
    before = {dotted(path): set(imported_modules(parse(path))) for path in MODULES if path.stem != "__init__"}
    while free := {module for module, others in before.items() if not others & set(before)}:
        before = {module: others for module, others in before.items() if module not in free}
    assert not before, f"modules that import each other, and what imports these: {sorted(before)}"


def test_import_finder_sees_every_form() -> None:
    tree = ast.parse(
        "import focusasr.audio.load\nfrom focusasr import config, __version__\nfrom focusasr.model import losses\n"
        "import torch\ndef f():\n    from focusasr.training.trainer import Trainer\n"
    )
    assert sorted(imported_modules(tree)) == ["audio.load", "config", "model.losses", "training.trainer"]


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_file_opens_with_a_sentence(path: Path) -> None:
    docstring = ast.get_docstring(parse(path))
    assert docstring, f"{named(path)} does not say what is in it"
    paragraph = docstring.split("\n\n")[0]
    assert re.search(r"[.:!?]$", paragraph), f"{named(path)} opens with {paragraph!r}, not a whole sentence"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_files_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, f"{named(path)} is longer than 400 lines"
    long = [f"{function.name} ({lines_of(function)})" for function in functions(path) if lines_of(function) > 60]
    assert not long, f"{named(path)} has functions longer than 60 lines: {', '.join(long)}"


def test_nine_functions_of_ten_have_at_most_30_lines() -> None:
    lengths = sorted(lines_of(function) for path in MODULES for function in functions(path))
    assert lengths[len(lengths) * 9 // 10] <= 30


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
sys.argv = ["focusasr", "--help"]
import focusasr.cli.app
try:
    focusasr.cli.app.main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"asyncio", "torch", "torchaudio", "librosa", "scipy", "numba", "transformers", "matplotlib", "sklearn"}
heavy &= set(sys.modules)
assert not heavy, f"focusasr --help loads {sorted(heavy)}"
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for command in ("preprocess", "train", "transcribe", "listen", "serve", "evaluate", "inspect", "info", "convert"):
        assert command in result.stdout


def test_top_level_has_no_other_files() -> None:
    try:
        listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git checkout")
    names = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP
