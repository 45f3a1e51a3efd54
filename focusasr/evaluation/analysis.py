"""Analysis of an evaluation: slices, confusions, insertions in silence, and another system."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from focusasr.config import EvaluationConfig
from focusasr.data.manifest import Utterance
from focusasr.evaluation.bootstrap import (
    Comparison,
    Interval,
    compare,
    group_totals,
    percentile_interval,
    resample_totals,
    resampling_unit,
)
from focusasr.evaluation.evaluate import Evaluation, Row, score_rows
from focusasr.evaluation.wer import BOUNDS, RATES, Score, align_words, count_errors, normalize
from focusasr.runtime.errors import InputError, SettingError

DURATION_EDGES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, math.inf)
MOST_CONFUSED = 10  # confusions per kind
ABSENT = "(not said)"  # value of a slice for entries without the key


@dataclass(frozen=True)
class Slice:
    """The utterances with one value of a key, and their score."""

    key: str
    value: str
    score: Score


@dataclass(frozen=True)
class Confusion:
    """A word that was substituted (S), deleted (D) or inserted (I), and its count; low and high bound the count."""

    kind: str
    reference: str
    hypothesis: str
    count: int
    low: float | None
    high: float | None

    def told(self) -> str:
        """Return the count and its bounds as text."""
        return f"{self.count}{Interval(self.count, self.low, self.high).bounds('{:.0f}'.format, '–')}"


@dataclass(frozen=True)
class Silence:
    """Insertions in the utterances with an empty reference."""

    utterances: int
    minutes: float
    words: int
    words_per_minute: Interval | None  # None if the length of the audio is unknown


@dataclass(frozen=True)
class Analysis:
    """All results of the analysis; `against` names the other system."""

    slices: list[Slice]
    confusions: list[Confusion]
    silence: Silence | None
    comparison: Comparison | None = None
    against: str | None = None


def analyze(
    evaluation: Evaluation,
    config: EvaluationConfig,
    others: Sequence[str | None] | None = None,
    against: str | None = None,
) -> Analysis:
    """Return the analysis; `others` are another system's texts, one per row."""
    rows = evaluation.scored
    return Analysis(
        slices=[part for key in dict.fromkeys(config.slice or []) for part in slices(rows, key, evaluation.unit)],
        confusions=confusions(rows, evaluation.unit),
        silence=insertions_in_silence(rows, evaluation.unit),
        comparison=None if others is None else compare_rows(evaluation, others, against or "the other"),
        against=against,
    )


# Slices


def check_groups(utterances: Sequence[Utterance], config: EvaluationConfig) -> None:
    """Raise SettingError for slices by a key, or intervals over speakers, that no utterance has."""
    known = ["duration", "source", *sorted({name for one in utterances for name in one.extra})]
    if config.bootstrap == "speaker" and "speaker" not in known:
        raise SettingError("bootstrap", config.bootstrap, 'lines with their "speaker", which none has')
    for key in config.slice or []:
        if key not in known:
            wanted = f"what a line has: {', '.join(known)}; or add it to the lines of the manifest, as in "
            raise SettingError("slice", key, wanted + '"speaker": "anna"')


def slices(rows: Sequence[Row], key: str, unit: str) -> list[Slice]:
    """Return a score for each value of a key; durations in buckets, shortest first, other values by their rate."""
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        members[slice_value(row, key)].append(row)
    scored = ((value, score_rows(part, unit)) for value, part in members.items())
    parts = [Slice(key, value, score) for value, score in scored if score is not None]
    if key == "duration":
        return sorted(parts, key=lambda part: [*DURATION_NAMES, ABSENT].index(part.value))
    return sorted(parts, key=lambda part: (not part.score.words, -part.score.wer, part.value))


def slice_value(row: Row, key: str) -> str:
    """Return an utterance's value of a manifest key; without such a key, `source` is the folder of the audio."""
    if key == "duration" and (row.audio_seconds or row.utterance.duration is not None):
        return DURATION_NAMES[sum(row.audio_seconds >= edge for edge in DURATION_EDGES[1:-1])]
    value = row.utterance.extra.get(key)
    if key == "source" and value is None:
        return row.utterance.audio.parent.name or ABSENT
    return ABSENT if value is None or value == "" else str(value)


def _bucket_name(low: float, high: float) -> str:
    if not low:
        return f"under {high:g} s"
    return f"{low:g} s and more" if high == math.inf else f"{low:g} to {high:g} s"


DURATION_NAMES = [_bucket_name(low, high) for low, high in itertools.pairwise(DURATION_EDGES)]


# Words, silence, the other system


def confusions(rows: Sequence[Row], unit: str) -> list[Confusion]:
    """Return the most frequent substitutions, deletions and insertions, with the 95 % interval of each count."""
    import numpy as np

    found = [Counter(_differences(row)) for row in rows]
    whole = Counter(item for counter in found for item in counter.elements())
    ordered = sorted(whole, key=lambda item: (-whole[item], item))
    chosen = [item for kind in "SDI" for item in [one for one in ordered if one[0] == kind][:MOST_CONFUSED]]
    if not chosen:
        return []
    counts = np.array([[counter[item] for item in chosen] for counter in found])
    drawn = resample_totals(group_totals(counts, _groups(rows, unit)), seed=0)
    return [Confusion(*item, whole[item], *percentile_interval(drawn[:, index])) for index, item in enumerate(chosen)]


def _differences(row: Row) -> list[tuple[str, str, str]]:
    if row.words is None or not row.words.count:
        return []
    aligned = align_words(row.normalized_reference, row.normalized_hypothesis or "")
    return [(mark, said, heard) for said, heard, mark in aligned if mark]


def insertions_in_silence(rows: Sequence[Row], unit: str) -> Silence | None:
    """Return the inserted words per minute of the utterances without speech; None if there are none."""
    import numpy as np

    silent = [(row, row.words) for row in rows if not row.normalized_reference and row.words]
    if not silent:
        return None
    timed = [(row, errors) for row, errors in silent if row.audio_seconds > 0]
    silent = timed or silent  # utterances of unknown length are skipped if others have one
    words, rate = sum(errors.insertions for _, errors in silent), None
    if timed:
        counts = np.array([(errors.insertions, row.audio_seconds) for row, errors in timed])
        drawn = resample_totals(group_totals(counts, _groups([row for row, _ in timed], unit)), seed=0)
        rate = Interval(float(60 * words / counts[:, 1].sum()), *percentile_interval(60 * drawn[:, 0] / drawn[:, 1]))
    return Silence(len(silent), sum(row.audio_seconds for row, _ in timed) / 60, words, rate)


def compare_rows(evaluation: Evaluation, others: Sequence[str | None], name: str) -> Comparison:
    """Compare with another system's texts under the same normalizer, on the utterances that both have."""
    heard = normalize((text or "" for text in others), evaluation.normalizer)
    pairs = [
        (row, row.words, count_errors(row.normalized_reference, text))
        for row, other, text in zip(evaluation.rows, others, heard, strict=True)
        if row.words is not None and other is not None
    ]
    if not pairs:
        raise InputError(f"{name}: shares no utterance that could be scored; compare two results of one set")
    groups = _groups([row for row, _, _ in pairs], evaluation.unit)
    first, second = [mine.count for _, mine, _ in pairs], [theirs.count for _, _, theirs in pairs]
    return compare(first, second, [mine.words for _, mine, _ in pairs], groups)


def _groups(rows: Sequence[Row], unit: str) -> list[str] | None:
    return resampling_unit(unit, [row.utterance.extra.get("speaker") for row in rows])[1]


# As JSON

COUNTS = ("substitutions", "deletions", "insertions", "words", "wrong", "utterances")


def to_json(evaluation: Evaluation, breakdown: Analysis | None = None) -> dict[str, Any]:
    """Return the figures as one object, ready for JSON; the rates are null if nothing was scored."""
    score, pace = evaluation.score.to_json() if evaluation.score else {}, evaluation.pace
    latencies = sorted(pace.latencies) if pace else []
    figures = {
        **{key: score.get(key) for key in (name + end for name in RATES for end in BOUNDS)},
        **{key: score.get(key, 0) for key in COUNTS},
        "interval_over": score.get("unit"),
        "drawn": score.get("drawn", 0),
        "normalizer": evaluation.normalizer,
        "failed": len(evaluation.failures),
        "audio_seconds": evaluation.audio_seconds,
        "seconds": pace.seconds if pace else None,
        "audio_seconds_per_second": pace.audio_seconds / pace.seconds if pace and pace.seconds else None,
        "latency_p50_seconds": percentile(latencies, 50),
        "latency_p95_seconds": percentile(latencies, 95),
        "reused": pace.reused if pace else 0,
        "decoder_tokens": pace.tokens if pace else 0,
        "decoder_passes": pace.passes if pace else 0,
    }
    if breakdown is None:
        return figures
    slices = [{"key": part.key, "value": part.value, "score": part.score.to_json()} for part in breakdown.slices]
    return {**figures, **dataclasses.asdict(breakdown), "slices": slices}


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Return the smallest of the ordered values that at least `percent` of them do not exceed; None for no values."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None
