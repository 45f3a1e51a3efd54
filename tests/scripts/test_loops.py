"""Detection of loops in texts."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "checks" / "loops.py"


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Yes, yes, yes, YES!", "yes"),
        ("I am here. I am here. I am here.", "i am here"),
        ("He said no, no, no.", None),
        ("One two one two one two.", None),
        ("So on and on, so on and on, so on and on.", "so on and on"),
        ("", None),
    ],
)
def test_a_loop_is_a_phrase_repeated_at_once(text: str, phrase: str | None) -> None:
    spec = importlib.util.spec_from_file_location("loops", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.loop(text) == phrase
