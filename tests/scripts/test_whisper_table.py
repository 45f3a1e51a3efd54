"""The table of error rates beside the peers, on real weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts" / "checks"))

import whisper_table

pytestmark = [pytest.mark.real, pytest.mark.slow]

TEXT = "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."


@pytest.mark.skipif(importlib.util.find_spec("faster_whisper") is None, reason="faster-whisper is not installed")
def test_the_table_has_each_program_and_the_cache_spares_them(
    whisper_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = ROOT / "tests" / "data" / "jfk.flac"
    manifest = tmp_path / "speeches" / "test.jsonl"
    manifest.parent.mkdir()
    manifest.write_text(json.dumps({"audio_filepath": str(clip), "duration": 11.0, "text": TEXT, "language": "en"}))
    programs = ["--programs", "focusasr", "faster-whisper", "--threads", "1"]
    command = [str(whisper_weights / "tiny.en"), "--data", str(manifest), *programs, "--cache", "texts.jsonl"]
    monkeypatch.setattr(sys, "argv", ["whisper_table.py", *command])
    assert whisper_table.main() == 0
    first = capsys.readouterr()
    *_, names, _, row = first.out.splitlines()
    cells = dict(zip(*([cell.strip() for cell in line.strip("|").split("|")] for line in (names, row)), strict=True))
    assert (cells["model"], cells["set"], cells["clips (words)"]) == ("tiny.en", "speeches/test", "1 (22)")
    for system in ("focusasr float32", "focusasr int8", "faster-whisper float32", "faster-whisper int8"):
        assert float(cells[system]) <= 5
    assert cells["openai-whisper float32"] == "–" and "faster-whisper int8: 1 of 1" in first.err
    monkeypatch.setattr(whisper_table, "read_with", None)  # no model is loaded again
    assert whisper_table.main() == 0
    assert capsys.readouterr().out == first.out
