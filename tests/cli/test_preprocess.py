"""The command `preprocess`: its exit status, and columns that the user names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile


def corpus(broken: int) -> Path:
    """Write a table of two recordings and so many rows of recordings that are missing."""
    Path("in").mkdir()
    for name in ("a", "b"):
        soundfile.write(f"in/{name}.wav", 0.3 * np.sin(np.arange(8000) * (0.1 + len(name) + ord(name) / 1000)), 16_000)
    rows = [f"{name}.wav,text {name},{name}" for name in ("a", "b", *(f"gone{number}" for number in range(broken)))]
    Path("in/t.csv").write_text("\n".join(["path,text,who", *rows]))
    return Path("in/t.csv")


@pytest.mark.parametrize(("broken", "allowed", "status"), [(0, 0, 0), (2, 0, 1), (2, 1, 1), (2, 2, 0), (2, 9, 0)])
def test_status_counts_unreadable_utterances(run, broken: int, allowed: int, status: int) -> None:
    result = run("preprocess", corpus(broken), "-o", "out", "--allow-rejects", allowed)
    assert result.status == status and len(Path("out/manifest.jsonl").read_text().splitlines()) == 2


def test_nothing_kept_is_a_failure_whatever_is_allowed(run) -> None:
    table = corpus(1)
    table.write_text("path,text\ngone.wav,x\n")
    assert run("preprocess", table, "-o", "out", "--allow-rejects", 5).status == 1


@pytest.mark.parametrize("value", ["-1", "x"])
def test_a_count_that_is_none_is_refused(run, value: str) -> None:
    result = run("preprocess", corpus(0), "-o", "out", "--allow-rejects", value)
    assert result.status == 2 and "allow-rejects" in result.err


def test_the_speaker_column_is_named(run) -> None:
    assert run("preprocess", corpus(0), "-o", "out", "--speaker-column", "who").status == 0
    assert [json.loads(line)["speaker"] for line in Path("out/manifest.jsonl").read_text().splitlines()] == ["a", "b"]


def test_times_behind_the_recording_are_a_finding_of_a_kaldi_folder(run) -> None:
    corpus(0)
    for name, line in {"wav.scp": "r a.wav", "segments": "u r 0.2 9", "text": "u some text"}.items():
        Path("in", name).write_text(line)
    assert run("preprocess", "in", "-o", "out", "--layout", "kaldi").status == 0
    assert json.loads(Path("out/report.json").read_text())["findings"] == {"mismatched duration": 1}
