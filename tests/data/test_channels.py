"""The sides of a call: a line's `channel` means the same to preprocess, train, evaluate, and for others' texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from focusasr.audio.load import load
from focusasr.data.manifest import Utterance, read_manifest
from focusasr.data.preprocess import preprocess
from focusasr.evaluation.evaluate import TranscriptCache, evaluate
from focusasr.evaluation.hypotheses import read_hypotheses
from focusasr.runtime.errors import InputError
from focusasr.training.batching import PlannedExample, SpeechDataset
from focusasr.training.dataset import Findings, read_corpus
from focusasr.training.validation import spectrogram
from focusasr.training_config import TrainConfig
from focusasr.transcription.result import Outcome, Transcript
from tests.helpers.toy_speech import letters_tokenizer, sung, tiny_model

SIDES = [sung("abcabc"), sung("fedfed")]


@pytest.fixture
def call() -> Path:
    """Return a manifest of the two sides of one recording, in which the same is said."""
    soundfile.write("call.wav", np.stack(SIDES, axis=1), 16_000, "FLOAT")
    lines = [{"audio_filepath": "call.wav", "text": "yes", "channel": side} for side in (0, 1)]
    Path("call.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return Path("call.jsonl")


@pytest.mark.parametrize("told", [1, "1", " 1 "])
def test_a_channel_is_a_number_or_its_digits(told: object) -> None:
    assert Utterance(Path("a"), extra={"channel": told}).channel == 1


@pytest.mark.parametrize("told", [None, "left", "", -1, "-1", 1.5, True, [1], "1" * 9])
def test_anything_else_names_no_channel(told: object) -> None:
    assert Utterance(Path("a"), extra={"channel": told}).channel is None


def test_training_and_dev_hear_the_side_that_is_meant(call: Path) -> None:
    model, tokenizer = tiny_model(letters_tokenizer("yes ")).config, letters_tokenizer("yes ")
    settings = TrainConfig(silence=0, clean_epochs=1)
    corpus = read_corpus(str(call), tokenizer, model, 20.0, Findings())
    examples = SpeechDataset([corpus], settings, model.mel_bands, tokenizer.separator)
    for side, utterance in enumerate(read_manifest(call)):
        assert np.array_equal(load(utterance.source), SIDES[side])
        example = examples[PlannedExample(((0, side),), 1.0, (0, 0, 0), (0, 0))]
        assert np.allclose(example.waveform, SIDES[side], atol=1e-6)
        soundfile.write("alone.wav", SIDES[side], 16_000, "FLOAT")
        assert torch.equal(spectrogram(utterance, model), spectrogram(Utterance(Path("alone.wav")), model))


def test_sides_are_no_duplicates_and_a_table_tells_them_too(call: Path) -> None:
    Path("table").mkdir()
    Path("table/t.csv").write_text("audio,text,channel\n../call.wav,yes,0\n../call.wav,yes,1\n")
    for given, out in ((call, "one"), (Path("table"), "two")):
        report = preprocess([given], out)
        assert (report.kept, report.rejects) == (2, {})
        for side, utterance in enumerate(read_manifest(report.manifest)):
            assert np.abs(load(str(utterance.audio)) - SIDES[side]).max() < 1e-3 and utterance.channel is None


def test_evaluate_asks_for_both_sides_and_remembers_them_apart(call: Path) -> None:
    asked = []

    def recognize(sources):
        for source in sources:
            asked.append(source.channel)
            yield Outcome(source, Transcript(f"side {source.channel}", [], None), None, 1.0)

    for _ in range(2):
        rows = evaluate(recognize, read_manifest(call), recall=TranscriptCache(Path("heard"), {})).rows
        assert [row.hypothesis for row in rows] == ["side 0", "side 1"] and asked == [0, 1]


def test_texts_of_others_find_their_side() -> None:
    sides = [Utterance(Path("/s/call.wav"), "", extra={"channel": side, "id": f"u{side}"}) for side in (0, 1)]
    by_side = [{"audio_filepath": "/s/call.wav", "channel": str(side), "text": f"t{side}"} for side in (1, 0)]
    by_id = [{"audio_filepath": "/s/call.wav", "id": f"u{side}", "text": f"t{side}"} for side in (1, 0)]
    for lines in (by_side, by_id):
        Path("h.jsonl").write_text("\n".join(map(json.dumps, lines)))
        assert read_hypotheses(Path("h.jsonl"), sides) == ["t0", "t1"]
    plain = [Utterance(Path(f"/s/{side}.flac"), "", extra={"id": f"u{side}"}) for side in (0, 1)]
    for lines in ([{"channel": 0, **line} for line in by_id], [{**line, "audio_filepath": "x.wav"} for line in by_id]):
        Path("h.jsonl").write_text("\n".join(map(json.dumps, lines)))  # of the whole calls, by id
        assert read_hypotheses(Path("h.jsonl"), plain) == ["t0", "t1"]
    Path("h.jsonl").write_text('{"audio_filepath": "/s/0.flac", "channel": 0, "text": "alone"}')
    assert read_hypotheses(Path("h.jsonl"), plain[:1]) == ["alone"]
    Path("h.jsonl").write_text("\n".join(json.dumps({**line, "channel": 0}) for line in by_side))
    with pytest.raises(InputError, match=r"lines 1 and 2: two texts for /s/call.wav"):
        read_hypotheses(Path("h.jsonl"), sides)


def test_sides_are_told_apart_under_another_suffix_too() -> None:
    sides = [Utterance(Path("/s/call.flac"), "", extra={"channel": side}) for side in (0, 1)]
    lines = [{"audio_filepath": "call.wav", "channel": side, "text": f"t{side}"} for side in (1, 0)]
    Path("h.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read_hypotheses(Path("h.jsonl"), sides) == ["t0", "t1"]
    Path("h.jsonl").write_text("\n".join(json.dumps({**line, "channel": 0}) for line in lines))
    with pytest.raises(InputError, match="no line is of an utterance"):
        read_hypotheses(Path("h.jsonl"), sides)
