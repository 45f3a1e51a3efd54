"""Long recordings and their text, cut together: each piece gets the words that are said in it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from focusasr.audio.load import load
from focusasr.audio.source import Source
from focusasr.config import PreprocessConfig, TextConfig
from focusasr.data import ctc_segmentation as room
from focusasr.data.preprocess import preprocess
from focusasr.model.checkpoint import Checkpoint
from focusasr.runtime.errors import InputError
from focusasr.text.tokenizer import train_tokenizer
from tests.helpers.broken_sound import add_sound
from tests.helpers.toy_speech import sung, tiny_model

RATE_HZ = 16_000


def corpus(folder: Path, sample: Path, text: str, copies: int = 3) -> float:
    """Write the sample so often, 1.5 s of silence between, with the text as often; return the seconds of one."""
    one, pause = load(Source(str(sample))), np.zeros(RATE_HZ * 3 // 2, np.float32)
    folder.mkdir()
    soundfile.write(folder / "long.wav", np.concatenate([pause, *[one, pause] * copies]), RATE_HZ)
    texts = [f"{text.title()}, {number}!" for number in ("eins", "zwei", "drei")[:copies]]
    (folder / "long.txt").write_text(" ".join(texts))
    return len(one) / RATE_HZ


def packed_aac(wave: np.ndarray) -> bytes:
    """Return a waveform as bare AAC frames, which tell no length."""
    out = io.BytesIO()
    with av.open(out, "w", "adts") as container:
        container.mux(add_sound(container, "aac", wave, RATE_HZ).encode(None))
    return out.getvalue()


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_piece_gets_the_words_said_in_it(tmp_path, sample, heard, monkeypatch):
    seconds = corpus(tmp_path / "in", sample, heard)
    config = PreprocessConfig(split_seconds=seconds + 1.5, align_with="alnum", min_confidence=0.0)
    report = preprocess([tmp_path / "in"], tmp_path / "out", config)
    manifest = rows(report.manifest)
    assert len(manifest) == 3
    whole = (tmp_path / "in" / "long.txt").read_text()
    assert " ".join(row["text"] for row in manifest) == whole  # as written, no word lost
    for row in manifest:
        assert len(set(row["text"].lower().strip("!").split()) & set(heard.split())) >= len(set(heard.split())) - 1
        assert abs(row["duration"] - seconds) < 1.3 and 0 < row["confidence"] <= 1
    calls: list[int] = []
    monkeypatch.setattr(room, "split_text", lambda *given: calls.append(1))
    again = preprocess([tmp_path / "in"], tmp_path / "out", config)
    assert (again.kept, again.reused, calls) == (3, 3, [])


def test_a_long_recording_whose_header_tells_no_length_is_cut_too(tmp_path, sample, heard):
    seconds = corpus(tmp_path / "in", sample, heard, 2)
    wave = load(tmp_path / "in" / "long.wav")
    (tmp_path / "in" / "long.wav").unlink()
    for name, part in (("long", wave), ("short", load(sample))):
        (tmp_path / "in" / f"{name}.aac").write_bytes(packed_aac(part))
    (tmp_path / "in" / "short.txt").write_text(heard)
    config = PreprocessConfig(split_seconds=seconds + 1.5, align_with="alnum", min_confidence=0.0)
    report = preprocess([tmp_path / "in"], tmp_path / "out", config)
    assert [Path(row["audio_filepath"]).stem.split("_")[0] for row in rows(report.manifest)] == [
        "long",
        "long",
        "short",
    ]


def test_what_fits_badly_is_rejected_and_short_files_stay_whole(tmp_path, sample, heard):
    seconds = corpus(tmp_path / "in", sample, "quite another story about the sea and its fish")
    soundfile.write(tmp_path / "in" / "short.wav", load(Source(str(sample))), RATE_HZ)
    (tmp_path / "in" / "short.txt").write_text("whatever")
    config = PreprocessConfig(split_seconds=seconds + 1.5, align_with="alnum", min_confidence=0.3)
    report = preprocess([tmp_path / "in"], tmp_path / "out", config)
    assert [row["text"] for row in rows(report.manifest)] == ["whatever"]
    assert set(report.rejects) == {"poorly aligned"} and "fit badly" in report.examples["poorly aligned"]


def test_a_text_too_long_for_its_sound_is_named(tmp_path, sample):
    corpus(tmp_path / "in", sample, "very much " * 300, copies=1)
    config = PreprocessConfig(split_seconds=2.0, align_with="alnum")
    report = preprocess([tmp_path / "in"], tmp_path / "out", config)
    assert report.kept == 0 and "does not fit" in report.examples["unreadable"]


def test_splitting_needs_a_checkpoint():
    with pytest.raises(InputError, match=r"split_seconds is 20\.0.*align_with"):
        PreprocessConfig(split_seconds=20.0)


def test_words_that_the_checkpoint_cannot_write_own_no_token():
    tokenizer = train_tokenizer(["ab c"], TextConfig())
    tokens, owners = room._tokens(["ab", "жж", "c!"], tokenizer)
    assert owners == [0, 0, None, 2] and tokenizer.decode(tokens) == "ab c"


def test_a_model_of_absolute_positions_aligns_within_its_window(monkeypatch):
    loud = "focusasr.audio.segmentation.detector"  # knows that songs are no speech
    monkeypatch.setattr(loud, lambda threshold: lambda samples: np.abs(samples).reshape(-1, 512).max(axis=1) > 0.05)
    tokenizer = train_tokenizer(["abcdefgh "], TextConfig())
    model = tiny_model(tokenizer, 0, positions="absolute", audio_context=125)  # 5 s
    sound = np.concatenate([sung("abcd efgh "), np.zeros(RATE_HZ, np.float32)] * 3)  # 7.8 s
    parts = room.split_text(Checkpoint(model, tokenizer, {}, ""), sound, "abcd efgh abcd efgh abcd efgh", 20.0)
    assert parts is not None and " ".join(part.text for part in parts) == "abcd efgh abcd efgh abcd efgh"
    assert len(parts) > 1 and all(part.duration <= 5.0 for part in parts)
    assert parts[-1].start + parts[-1].duration <= len(sound) / RATE_HZ
