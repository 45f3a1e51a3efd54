"""Detection of loops in texts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from focusasr.data.manifest import Utterance

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "checks" / "loops.py"


@pytest.fixture(scope="module")
def loops() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loops", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("Yes, yes, yes, YES!", "yes yes yes yes"),
        ("I am here. I am here. I am here.", "i am here i am here i am here"),
        ("Four 4, four, 4.", "4 4 4 4"),
        ("He said no, no, no.", ""),
        ("One two one two one two.", ""),
        ("So on and on, so on and on, so on and on.", "so on and on so on and on so on and on"),
        ("", ""),
    ],
)
def test_a_loop_is_a_phrase_repeated_at_once(text: str, repeats: str, loops: ModuleType) -> None:
    assert loops.repeats(loops.plain(text)) == repeats.split()


def test_clips_know_the_words_of_their_recordings(loops: ModuleType, tmp_path: Path) -> None:
    sources = []
    for number, text in enumerate(["Seven.", "Yes, I am."]):
        soundfile.write(path := tmp_path / f"{number}.wav", np.full(24_000, number / 2, np.float32), 16_000)
        sources.append((Utterance(path, text).source, text))
    for samples, words in loops.cuts(sources, 20, seed=0):
        assert 0.3 * 16_000 <= len(samples) <= 30 * 16_000 and len(samples) <= 24_000 * len(words)
        assert set(words) == ({"7"} if samples.max() < 0.1 else {"yes", "i", "am"} if samples.min() > 0.4 else {*words})
        assert set(words) <= {"7", "yes", "i", "am"}
