"""The prose of the package: docstrings and option help in plain English."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "focusasr").rglob("*.py"))
AVOIDED = re.compile(r"sister|anew|\btold\b|\bsaid\b|parted|of use|goes on|is heard", re.IGNORECASE)
MOST_WORDS = 15  # of the first sentence of a module docstring
OPTIONS = ("typer.Option", "typer.Argument")


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def helps(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every help string of a setting, option or argument."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        found = [word.value for word in node.keywords if word.arg == "help"] if name in OPTIONS else []
        found += node.args[1:2] if name == "setting" else []
        for value in found:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.lineno, value.value


def first_sentence(docstring: str) -> str:
    return re.split(r"(?<=[.!?])\s", " ".join(docstring.split("\n\n")[0].split()))[0]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_finders_find_each_form() -> None:
    tree = ast.parse(
        '"""Module."""\nclass A:\n    """Class."""\n    b: int = setting(0, "field", ge=0)\n'
        'async def c(d: Annotated[int, typer.Option("--d", help="one " "two")], e=typer.Argument(help="three")):\n'
        '    """Function."""\n    other(1, "none", help="none")\n'
    )
    assert [text for _, text in docstrings(tree)] == ["Module.", "Class.", "Function."]
    assert sorted(text for _, text in helps(tree)) == ["field", "one two", "three"]
    assert first_sentence("One two:\nthree four. Five.\n\nSix.") == "One two: three four."


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_docstrings_and_help_avoid_words(path: Path) -> None:
    tree = parse(path)
    found = [
        f"{line}: {word[0]!r}" for line, text in (*docstrings(tree), *helps(tree)) for word in AVOIDED.finditer(text)
    ]
    assert not found, f"{named(path)}, lines {', '.join(found)}"


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_module_docstring_is_short(path: Path) -> None:
    sentence = first_sentence(ast.get_docstring(parse(path)) or "")
    assert len(sentence.split()) <= MOST_WORDS, f"{named(path)}: {sentence}"
