"""The scripts that make the default model: words and pauses cut out of recordings."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from focusasr.data.manifest import read_manifest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "recipes"))
import cut_noise  # noqa: E402
import cut_words  # noqa: E402

SAID = "s a r a h four one two six nine seven five".split()


def test_words_are_cut_in_their_order_and_apart(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"audio_filepath": str(sample), "text": " ".join(SAID), "speaker": "flite", "offset": 0.1}
    (tmp_path / "m.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(sys, "argv", ["cut_words.py", str(tmp_path / "cut"), str(tmp_path / "m.jsonl")])
    cut_words.main()
    words = read_manifest(tmp_path / "cut" / "home.jsonl")
    assert not read_manifest(tmp_path / "cut" / "other.jsonl")
    assert len(words) >= 5 and {word.text for word in words} < set(SAID)
    places = [SAID.index(word.text) for word in words]
    assert places == sorted(places)
    for before, after in itertools.pairwise(words):
        assert before.duration and before.offset >= 0.1
        assert before.offset + before.duration < after.offset + 3 * cut_words.MARGIN_SECONDS
    assert {word.extra["speaker"] for word in words} == {"flite"}
    assert all(word.extra["confidence"] >= cut_words.LEAST_AT_HOME for word in words)


def test_what_is_no_speech_is_cut_from_both_ends(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, rate = soundfile.read(sample)
    hiss = 0.01 * np.random.default_rng(0).standard_normal(2 * rate)
    soundfile.write(tmp_path / "a.wav", np.concatenate([hiss[:rate], sound, hiss]), rate)
    soundfile.write(tmp_path / "b.wav", hiss, rate)
    rows = [{"audio_filepath": f"{name}.wav", "text": "x"} for name in "ab"]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(sys, "argv", ["cut_noise.py", str(tmp_path / "noise"), str(tmp_path / "m.jsonl")])
    cut_noise.main()
    before, behind = (soundfile.read(path)[0] for path in sorted((tmp_path / "noise").iterdir()))
    assert 0.4 < len(before) / rate < 0.9 and 1.4 < len(behind) / rate < 2.0
    assert max(abs(before).max(), abs(behind).max()) < 0.06
    assert capsys.readouterr().out.startswith("2 stretches, 0.0 minutes")
