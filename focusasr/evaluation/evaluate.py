"""Transcription and scoring of a manifest; transcripts of an interrupted evaluation are reused."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusasr.audio.load import known_seconds
from focusasr.audio.source import Source
from focusasr.data.manifest import Utterance
from focusasr.evaluation.bootstrap import resampling_unit
from focusasr.evaluation.wer import Errors, Score, count_character_errors, count_errors, normalize, summarize
from focusasr.runtime.cache import content_of
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import append_line, read_keyed, write_errors, write_lines

if TYPE_CHECKING:
    from focusasr.transcription.result import Outcome


COUNTS = ("substitutions", "deletions", "insertions", "words")

Recognize = Callable[[Iterable[Source]], "Iterator[Outcome]"]  # yields one outcome per source, in order


@dataclass(frozen=True)
class Row:
    """One utterance: reference, hypothesis and their differences; `error` is the reason for a missing hypothesis.

    The normalized texts are those that were compared. `hypothesis`, `normalized_hypothesis` and the counts are None if
    the file failed.
    """

    utterance: Utterance
    normalized_reference: str
    hypothesis: str | None = None
    normalized_hypothesis: str | None = None
    words: Errors | None = None
    characters: Errors | None = None
    audio_seconds: float = 0.0
    error: str | None = None


@dataclass
class Pace:
    """The speed of this run: audio and wall time in seconds, and latencies from opening a file to its text.

    Reused transcripts of an earlier run are not included; `reused` counts them.
    """

    audio_seconds: float = 0.0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    reused: int = 0
    tokens: int = 0  # decoded tokens and decoder passes, if the model counts them
    passes: int = 0

    def timed(self, recognize: Recognize, sources: Iterable[Source]) -> Iterator[Outcome]:
        """Yield the outcomes of a recognizer, and measure the time of each source from its request to its outcome."""
        start, began = time.perf_counter(), []

        def asked_for() -> Iterator[Source]:
            for source in sources:
                began.append(time.perf_counter())
                yield source

        for index, outcome in enumerate(recognize(asked_for())):
            now = time.perf_counter()
            self.latencies.append(now - began[index])
            self.audio_seconds += outcome.audio_seconds
            self.tokens, self.passes = self.tokens + outcome.tokens, self.passes + outcome.passes
            self.seconds = now - start
            yield outcome


@dataclass(frozen=True)
class Evaluation:
    """Every row in the manifest's order, and the score of those that did not fail; None if all failed.

    `audio_seconds` is the audio of the scored rows; `pace` is None if the texts came from a file.
    """

    rows: list[Row]
    score: Score | None
    audio_seconds: float
    normalizer: str
    unit: str  # requested resampling unit: auto, utterance or speaker
    pace: Pace | None = None

    @property
    def failures(self) -> list[Row]:
        """The rows that could not be transcribed; no rate includes them."""
        return [row for row in self.rows if row.error is not None]

    @property
    def scored(self) -> list[Row]:
        """The rows that the rates include."""
        return [row for row in self.rows if row.words is not None]


def evaluate(
    recognize: Recognize,
    utterances: list[Utterance],
    normalizer: str = "basic",
    unit: str = "auto",
    recall: TranscriptCache | None = None,
) -> Evaluation:
    """Transcribe every utterance and score the texts against the manifest's.

    Transcripts of an interrupted run in `recall` are reused. InputError for an empty manifest or an unknown normalizer.
    """
    references = _references(utterances, normalizer)
    sources = [one.source for one in utterances]
    pace = Pace()
    timed = functools.partial(pace.timed, recognize)
    outcomes = list(recall.recognize(timed, sources) if recall else timed(sources))
    pace.reused = len(sources) - len(pace.latencies)
    heard = normalize((one.transcript.text if one.transcript else "" for one in outcomes), normalizer)
    rows = [_row(*parts) for parts in zip(utterances, references, outcomes, heard, strict=True)]
    return _scored(rows, normalizer, unit, pace)


def evaluate_texts(
    utterances: Sequence[Utterance], hypotheses: Sequence[str | None], normalizer: str = "basic", unit: str = "auto"
) -> Evaluation:
    """Score existing texts, one per utterance; None counts as a file that failed."""
    references = _references(utterances, normalizer)
    heard = normalize((text or "" for text in hypotheses), normalizer)
    rows = []
    for utterance, reference, text, compared in zip(utterances, references, hypotheses, heard, strict=True):
        seconds = known_seconds(utterance.source) or 0.0
        failed = Row(utterance, reference, audio_seconds=seconds, error="no hypothesis for it")
        rows.append(failed if text is None else _compared(utterance, reference, text, compared, seconds))
    return _scored(rows, normalizer, unit, None)


def _references(utterances: Sequence[Utterance], normalizer: str) -> list[str]:
    references = normalize((one.text for one in utterances), normalizer)
    if not utterances:
        raise InputError("no utterances to evaluate: no line of the manifest can be used; expected: at least one")
    return references


def _row(utterance: Utterance, reference: str, outcome: Outcome, heard: str) -> Row:
    if outcome.transcript is None or outcome.error is not None:  # a truncated recording is not scored
        return Row(utterance, reference, error=outcome.error or "no transcript")
    return _compared(utterance, reference, outcome.transcript.text, heard, outcome.audio_seconds)


def _compared(utterance: Utterance, reference: str, text: str, heard: str, seconds: float) -> Row:
    words, characters = count_errors(reference, heard), count_character_errors(reference, heard)
    return Row(utterance, reference, text.strip(), heard, words, characters, seconds)


def _scored(rows: list[Row], normalizer: str, unit: str, pace: Pace | None) -> Evaluation:
    audio_seconds = sum(row.audio_seconds for row in rows if row.error is None)
    return Evaluation(rows, score_rows(rows, unit), audio_seconds, normalizer, unit, pace)


def score_rows(rows: Sequence[Row], unit: str) -> Score | None:
    """Return the score of the rows that did not fail, None if there are none."""
    scored = [(row, row.words, row.characters) for row in rows if row.words and row.characters]
    if not scored:
        return None
    _, groups = resampling_unit(unit, [row.utterance.extra.get("speaker") for row, _, _ in scored])
    return summarize([words for _, words, _ in scored], [letters for _, _, letters in scored], groups=groups)


def write_rows(evaluation: Evaluation, path: Path) -> None:
    """Write one JSON line per utterance, whole or not at all; InputError if the file cannot be written.

    A line keeps the keys of its manifest entry (speaker, language ...), with `reference` in place of `text`; the path
    of the audio is relative to the folder of `path` if it is inside, as in manifests.
    """
    folder = path.parent.absolute()
    with write_errors(path, "choose another place with --output"):
        write_lines(path, (_row_to_json(row, folder) for row in evaluation.rows))


def _row_to_json(row: Row, folder: Path) -> dict[str, Any]:
    line = row.utterance.to_json(folder)
    texts = {
        "reference": line.pop("text"),
        "hypothesis": row.hypothesis,
        "normalized_reference": row.normalized_reference,
        "normalized_hypothesis": row.normalized_hypothesis,
    }
    counts = {key: getattr(row.words, key, None) for key in COUNTS}
    wer = row.words.rate if row.words else None
    return {**line, **texts, "wer": wer, **counts, "audio_seconds": row.audio_seconds, "error": row.error}


class TranscriptCache:
    """Texts keyed by the content of the audio and everything else that determines them.

    `decided_by` is JSON: the options and the checkpoint's digest. Lines are appended as they come; a truncated line is
    ignored, and its recording is transcribed again.
    """

    def __init__(self, path: Path, decided_by: dict[str, Any]) -> None:
        self.path = path
        self._decided_by = json.dumps(decided_by, sort_keys=True)
        self._known = read_keyed(path, names=("text", "language", "audio_seconds"))

    def recognize(
        self, recognize: Callable[[Iterable[Source]], Iterator[Outcome]], sources: Sequence[Source]
    ) -> Iterator[Outcome]:
        """Yield one outcome per source, in order; only sources that are not cached go through `recognize`."""
        keys = [self._key(source) for source in sources]
        unknown = [source for source, key in zip(sources, keys, strict=True) if key not in self._known]
        heard = recognize(unknown)
        for source, key in zip(sources, keys, strict=True):
            entry = self._known.get(key)
            yield _outcome(source, entry) if entry else self._kept(key, next(heard))

    def forget(self) -> None:
        """Remove the cache after the output is written."""
        self.path.unlink(missing_ok=True)

    def _kept(self, key: str, outcome: Outcome) -> Outcome:
        if outcome.transcript is not None and outcome.error is None and key:
            entry = {"text": outcome.transcript.text, "language": outcome.transcript.language}
            append_line(self.path, {"key": key, **entry, "audio_seconds": outcome.audio_seconds})
        return outcome

    def _key(self, source: Source) -> str:
        """Return the cache key of a source; empty for an unreadable source, which is tried each time."""
        content = _content(source.path) if source.is_repeatable and not source.memory else ""
        whole = f"{self._decided_by} {content} {source.offset} {source.duration} {source.channel}"
        return hashlib.sha256(whole.encode()).hexdigest() if content else ""


_content = functools.lru_cache(maxsize=16)(content_of)  # segments of a long recording are consecutive


def _outcome(source: Source, entry: dict[str, Any]) -> Outcome:
    from focusasr.transcription.result import Outcome, Transcript

    return Outcome(source, Transcript(entry["text"], [], entry["language"]), None, entry["audio_seconds"])
