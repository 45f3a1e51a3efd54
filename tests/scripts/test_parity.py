"""Parity: what Whisper's weights compute here equals what openai-whisper and transformers compute with them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "checks"))

import parity  # noqa: E402

LACKING = [name for name in parity.PEERS if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")


@pytest.mark.parametrize("compare", [parity.compare_features, parity.compare_tokenizers], ids=lambda one: one.__name__)
def test_sound_and_text(compare, tmp_path: Path) -> None:
    rows = list(compare(tmp_path))
    assert len(rows) >= 16
    assert not [row for row in rows if not row.difference <= row.allowed]


@pytest.mark.parametrize("shape", parity.SHAPES)
def test_models(shape: str, tmp_path: Path) -> None:
    rows = list(parity.compare_shape(shape, tmp_path))
    assert len(rows) == 6
    assert not [row for row in rows if not row.difference <= row.allowed]


def test_other_sound_or_tokens_make_differences_far_above_what_is_allowed(tmp_path: Path) -> None:
    shape = "128 bands, shallow decoder"
    model = parity.openai_model(shape)
    sound = parity.something_heard(shape)
    answers = parity.openai_answers(model, sound)
    quieter = parity.openai_answers(model, sound._replace(mel=sound.mel.roll(50, dims=1)))
    assert parity.largest(answers.states, quieter.states) > 0.1
    assert parity.largest(answers.logits, quieter.logits) > 1e-3
    shifted = parity.openai_answers(model, sound._replace(tokens=sound.tokens.roll(1, dims=1)))
    assert parity.largest(answers.logits, shifted.logits) > 0.1
    assert parity.largest(torch.zeros(2), torch.zeros(3)) == float("inf")
