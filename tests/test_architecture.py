"""The house's shape: imports go one way, rooms say what is in them, functions and files stay small."""

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
ORDER = (
    "libraries settings config whisper_config startup progress files interrupts processes text languages tokenizer "
    "whisper_tokenizer device manifest journal mpeg containers audio tables hypotheses readings kaldi lhotse subtitles "
    "sources features local_attention attention model weights losses rules search inspection picture intervals score "
    "augment masks corpora data alignment quantize engine greedy joint_search decoding whisper_weights hugging_face "
    "openai_file whisper checkpoint segments cues output heard transcribe spectrogram cross_alignment segment_words "
    "invention window longform batched recognizers again recall splitting pages splits loudness checks "
    "preparation_page prepared preparation preprocess evaluate breakdown evaluation_table evaluation_page validate "
    "provenance recipe stepper curves training_log warm_start train tuning options preprocess_command train_command "
    "transcribe_command evaluate_command inspect_command convert_command cli"
).split()
DOORS = {"__init__", "__main__"}  # the package itself and `python -m focusasr`
ROOMS = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in DOORS)
SOURCES = sorted([*PACKAGE.glob("*.py"), *(ROOT / "scripts").glob("*.py"), *(ROOT / "tests").glob("*.py")])

Function = ast.FunctionDef | ast.AsyncFunctionDef


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_rooms(tree: ast.Module) -> Iterator[str]:
    """Yield the rooms of focusasr that a module imports, wherever in it the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = "focusasr" if node.level else ""
            module = ".".join(part for part in (home, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "focusasr" else [module]
        else:
            continue
        for name in names:
            package, _, room = name.partition(".")
            if package == "focusasr" and room and not room.startswith("__"):
                yield room.split(".")[0]


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(parse(path)) if isinstance(node, Function))


def lines_of(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_package_is_flat() -> None:
    assert not [named(path) for path in PACKAGE.glob("*/*.py")]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    assert room in ORDER, f"focusasr/{room}.py has no place in the order of rooms"
    for other in imported_rooms(parse(PACKAGE / f"{room}.py")):
        assert other in ORDER, f"{room} imports focusasr.{other}, which is no room"
        assert ORDER.index(other) < ORDER.index(room), f"{room} imports {other}, which comes after it"


def test_import_finder_sees_every_form() -> None:
    tree = ast.parse(
        "import focusasr.audio\nfrom focusasr import data, __version__\nfrom . import model\nimport torch\n"
        "def f():\n    from focusasr.train import Trainer\n    from .score import wer\n"
    )
    assert sorted(imported_rooms(tree)) == ["audio", "data", "model", "score", "train"]


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
    lengths = sorted(lines_of(function) for path in PACKAGE.glob("*.py") for function in functions(path))
    assert lengths[len(lengths) * 9 // 10] <= 30


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
sys.argv = ["focusasr", "--help"]
import focusasr.cli
try:
    focusasr.cli.main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "torchaudio", "librosa", "scipy", "numba", "transformers", "matplotlib", "sklearn"} & set(sys.modules)
assert not heavy, f"focusasr --help loads {sorted(heavy)}"
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    for command in ("preprocess", "train", "transcribe", "evaluate", "inspect", "info", "convert"):
        assert command in result.stdout
