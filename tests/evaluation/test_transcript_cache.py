"""A run that is cut short goes on: what was heard is not heard again, unless the sound or an option changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from focusasr.audio.source import Source
from focusasr.data.manifest import Utterance
from focusasr.evaluation.evaluate import TranscriptCache, evaluate
from focusasr.transcription.result import Outcome, Transcript

OPTIONS = {"model": "abc", "ctc_weight": 0.3}


class Ear:
    """Hears each file's name; stops dead before file number `stops_at`."""

    def __init__(self, stops_at: int | None = None):
        self.stops_at, self.heard = stops_at, []

    def __call__(self, sources: Iterable[Source]) -> Iterator[Outcome]:
        for source in sources:
            if len(self.heard) == self.stops_at:
                raise KeyboardInterrupt
            self.heard.append(Path(source.path).stem)
            if not Path(source.path).exists():
                yield Outcome(source, None, "no such file", 0.0)
            else:
                text = f"{Path(source.path).stem} at {source.offset:g}"
                yield Outcome(source, Transcript(text, [], "en"), None, 2.0)


def files(*names: str) -> list[Utterance]:
    for name in names:
        Path(f"{name}.wav").write_bytes(name.encode())
    return [Utterance(Path(f"{name}.wav").absolute(), f"{name} at 0") for name in names]


def recall(**options: object) -> TranscriptCache:
    return TranscriptCache(Path("out/.rows.heard"), OPTIONS | options)


def test_a_run_cut_short_goes_on_and_equals_one_that_was_not():
    utterances = files("a", "b", "c", "d")
    with pytest.raises(KeyboardInterrupt):
        evaluate(Ear(stops_at=2), utterances, recall=recall())
    ear = Ear()
    result = evaluate(ear, utterances, recall=recall())
    assert ear.heard == ["c", "d"]
    whole = evaluate(Ear(), utterances)
    assert result.rows == whole.rows and result.score == whole.score
    assert result.pace is not None and (result.pace.reused, result.pace.audio_seconds) == (2, 4.0)
    assert result.audio_seconds == 8.0


def test_another_option_or_content_or_part_is_heard_anew():
    utterances = files("a", "b")
    evaluate(Ear(), utterances, recall=recall())
    ear = Ear()
    evaluate(ear, utterances, recall=recall(ctc_weight=0.5))
    assert ear.heard == ["a", "b"]
    Path("a.wav").write_bytes(b"other sound, another digest")
    part = Utterance(utterances[1].audio, "b at 1", 1.0)
    from focusasr.evaluation import evaluate as room

    room._content.cache_clear()
    ear = Ear()
    evaluate(ear, [*utterances, part], recall=recall())
    assert ear.heard == ["a", "b"]  # a is another sound, the second b another part


def test_failures_are_tried_again_and_torn_lines_heard_again():
    utterances = [*files("a", "b"), Utterance(Path("gone.wav").absolute(), "x")]
    evaluate(Ear(), utterances, recall=recall())
    kept = recall()
    kept.path.write_bytes(kept.path.read_bytes()[:-9])
    ear = Ear()
    evaluate(ear, utterances, recall=recall())
    assert ear.heard == ["b", "gone"]
    kept.forget()
    assert not kept.path.exists()
    kept.forget()
