"""What was done is not done again: outputs made from the same, and the part of a recording that was heard."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from focusasr.audio.source import Source
from focusasr.config import DecodingConfig
from focusasr.model.checkpoint_folder import fingerprint_of_model
from focusasr.transcription.native import Recognizer
from focusasr.transcription.resume import JOURNAL, OutputCache, SegmentCache
from focusasr.transcription.whisper import WhisperRecognizer
from focusasr.transcription.whisper_batched import BatchedWhisperRecognizer
from focusasr.transcription.writers import to_json_dict
from focusasr.whisper_config import LongformConfig, SearchConfig
from tests.helpers.whisper_pairs import chirps, ours, peer_model

CPU = torch.device("cpu")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of pieces whenever some are decoded."""
    counts: list[int] = []
    honest = Recognizer._answers
    monkeypatch.setattr(Recognizer, "_answers", lambda self, some: counts.append(len(some)) or honest(self, some))
    return counts


@pytest.fixture
def talk(sample: Path) -> str:
    """Write four times the sample with silence between, and return its name."""
    clip, rate = soundfile.read(sample, dtype="float32")
    quiet = np.zeros(2 * rate, np.float32)
    soundfile.write("talk.wav", np.concatenate([clip, quiet] * 4), rate)
    return "talk.wav"


def breaks_off(method: Callable[..., Any], after: int) -> Callable[..., Any]:
    """Return a method that works so many times, and is interrupted then."""
    left = iter(range(after))

    def work(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return method(*arguments)

    return work


def test_what_is_written_is_skipped_until_sound_model_or_options_change(run, sample: Path, decoded: list[int]) -> None:
    for name in ("a", "b"):
        Path(f"{name}.flac").write_bytes(sample.read_bytes())
    command = ("transcribe", "a.flac", "b.flac", "missing.flac", "-o", "out", "--skip-existing")
    first = run(*command)
    assert (first.status, sum(decoded)) == (1, 2)
    written = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    second = run(*command, "--batch-size", "3")
    assert second.status == 1 and "focusasr: 2 of 3 files are written already\n" in second.err
    assert sum(decoded) == 2 and written == {path.name: path.read_bytes() for path in Path("out").iterdir()}

    def again(*more: str) -> int:
        before = sum(decoded)
        assert run(*command, *more).status == 1
        return sum(decoded) - before

    assert again("--ctc-weight", "0.9") == 2
    assert again("--ctc-weight", "0.9", "-f", "txt") == 0
    assert again() == 2, "the files there were made otherwise"
    Path("out/a.srt").unlink()
    assert again() == 1
    Path("out/b.txt").write_text("cut o")
    assert again() == 1
    Path("out/b.txt").write_text("corrected by hand")
    assert "rewritten" not in (first.err + second.err)
    assert "focusasr: 5 files rewritten, such as out/b.txt: changed since, or of another sound" in run(*command).err
    soundfile.write("b.flac", soundfile.read(sample)[0][:16_000], 16_000)
    assert again() == 1
    assert again() == 0


def test_no_text_takes_the_place_of_a_recording(run, sample: Path) -> None:
    Path("talk.txt").write_bytes(sample.read_bytes())
    result = run("transcribe", "talk.txt", "-o", ".")
    result.refused(2, "talk.txt")
    assert Path("talk.txt").read_bytes() == sample.read_bytes()
    assert run("transcribe", "talk.txt", "-o", ".", "-f", "srt").status == 0


def test_a_model_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    for name in ("README.md", "metrics.json"):
        (tmp_path / "two" / name).write_text("for readers")
    one, two = tmp_path / "one", tmp_path / "two"
    assert fingerprint_of_model(one) == fingerprint_of_model(two) != fingerprint_of_model(one / "config.json")
    (two / "config.json").write_text("[]")
    assert fingerprint_of_model(one) != fingerprint_of_model(two)


def test_what_cannot_be_recognized_is_never_finished(tmp_path: Path) -> None:
    again = OutputCache(tmp_path, {})
    for path in ("-", "missing.wav", str(tmp_path)):
        again.add(Source(path), [])
        assert not (tmp_path / JOURNAL).exists()
        again.notes(Source(path)).note("0", 1)
        assert list(tmp_path.iterdir()) == []


def test_what_was_heard_goes_though_killed_between_the_note_and_that(tmp_path: Path, sample: Path) -> None:
    source, output = Source(str(sample)), tmp_path / "a.txt"
    output.write_text("a")
    OutputCache(tmp_path, {}).add(source, [output])
    OutputCache(tmp_path, {}).notes(source).note("here", [])
    assert list(tmp_path.glob(".*.heard"))
    assert OutputCache(tmp_path, {}).finished(source, [output]) and not list(tmp_path.glob(".*.heard"))


def test_printing_cannot_skip(run, sample: Path) -> None:
    for more in ((), ("-o", "-")):
        result = run("transcribe", sample, "--skip-existing", *more)
        assert result.status == 2 and "--skip-existing needs --output-dir" in " ".join(result.err.split())


def test_a_long_file_goes_on_where_it_broke_off(
    run, talk: str, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("transcribe", talk, "--batch-size", "1", "--max-segment-seconds", "6", "-f", "json", "-o")
    assert run(*command, "whole").status == 0
    pieces = len(decoded)
    assert pieces >= 4
    with monkeypatch.context() as patch:
        patch.setattr(Recognizer, "_answers", breaks_off(Recognizer._answers, 2))
        assert run(*command, "out", "--skip-existing").status == 130
    (notes,) = Path("out").iterdir()
    notes.write_bytes(notes.read_bytes()[:-9])  # as if the machine had gone down in the middle of a line
    decoded.clear()
    assert run(*command, "out", "--skip-existing").status == 0
    assert len(decoded) == pieces - 1
    assert Path("out/talk.json").read_bytes() == Path("whole/talk.json").read_bytes()
    assert sorted(path.name for path in Path("out").iterdir()) == [JOURNAL, "talk.json"]


def test_notes_of_other_settings_go_when_the_file_is_done(run, talk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("transcribe", talk, "--max-segment-seconds", "6", "-f", "txt", "-o", "out", "--skip-existing")
    with monkeypatch.context() as patch:
        patch.setattr(Recognizer, "_answers", breaks_off(Recognizer._answers, 1))
        assert run(*command, "--batch-size", "1").status == 130
    assert run(*command, "--max-segment-seconds", "7").status == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [JOURNAL, "talk.txt"]


@pytest.fixture
def loudness_is_speech(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take every loud frame for speech: the detector knows that chirps are none."""
    monkeypatch.setattr(
        "focusasr.audio.segmentation.detector",
        lambda threshold: lambda samples: np.abs(samples).reshape(-1, 512).max(axis=1) > 0.05,
    )
    yield


@pytest.mark.parametrize(("kind", "work"), [(WhisperRecognizer, "_read"), (BatchedWhisperRecognizer, "_decoded")])
@pytest.mark.parametrize("word_timestamps", [False, True])
def test_whisper_goes_on_where_it_broke_off(
    kind: type[WhisperRecognizer],
    work: str,
    word_timestamps: bool,
    loudness_is_speech: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [chirps(9.0, seed).numpy() for seed in range(3)]
    times = 4 if not word_timestamps else 1 if kind is WhisperRecognizer else 2  # so that two units are behind it
    gap = np.zeros(32_000, np.float32)
    soundfile.write("talk.wav", np.concatenate([x for part in parts * times for x in (part, gap)]), 16_000)
    checkpoint = ours(peer_model(3))
    search = SearchConfig(beam_size=None, temperature_increment_on_fallback=None)
    config = DecodingConfig(batch_size=1, word_timestamps=word_timestamps)
    recognizer = kind(checkpoint, CPU, config, search, LongformConfig())
    (whole,) = recognizer.transcribe([Source("talk.wav")])
    calls: list[int] = []
    honest = getattr(kind, work)
    monkeypatch.setattr(kind, work, lambda *arguments: calls.append(1) or honest(*arguments))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kind, work, breaks_off(getattr(kind, work), 2))
        list(recognizer.transcribe([Source("talk.wav")], notes=lambda source: SegmentCache(Path("notes"))))
    (resumed,) = recognizer.transcribe([Source("talk.wav")], notes=lambda source: SegmentCache(Path("notes")))
    assert whole.transcript and resumed.transcript and len(whole.transcript.segments) > 2
    assert to_json_dict(resumed.transcript) == to_json_dict(whole.transcript)
    before = len(calls)
    assert before >= 3
    (known,) = recognizer.transcribe([Source("talk.wav")], notes=lambda source: SegmentCache(Path("notes")))
    assert len(calls) == before and known.transcript == dataclasses.replace(whole.transcript)
    assert json.loads(Path("notes").read_bytes().split(b"\n")[1])
