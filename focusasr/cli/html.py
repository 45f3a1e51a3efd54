"""HTML reports in one file each: an evaluation, or a prepared corpus."""

from __future__ import annotations

import functools
import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from focusasr.cli.tables import beside, figures, with_bounds
from focusasr.data.quality import Finding, PreparedUtterance
from focusasr.evaluation.analysis import Analysis, slices
from focusasr.evaluation.evaluate import Evaluation, Row
from focusasr.evaluation.wer import align_words
from focusasr.runtime.console import percent
from focusasr.runtime.files import write_errors, written_aside

if TYPE_CHECKING:
    from jinja2 import Environment

WIDTH, HEIGHT = 460, 240
LETTERS_PER_AXIS = 64
LEFT, RIGHT, TOP, BOTTOM = 52, WIDTH - 12, 28, HEIGHT - 44
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)

MOST_DOTS = 3000
KINDS = {"S": "substitution", "D": "deletion", "I": "insertion"}
MOST_SHOWN = 200  # findings per kind
MOST_CHARACTERS = 60


@functools.cache
def templates() -> Environment:
    """Return the templates, which escape every text."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("focusasr.cli"), autoescape=True, trim_blocks=True, keep_trailing_newline=True
    )
    environment.globals.update(width=WIDTH, height=HEIGHT, left=LEFT, right=RIGHT, bottom=BOTTOM, kinds=KINDS)
    return environment


def write_page(path: Path, name: str, **content: Any) -> None:
    """Write one self-contained page, whole or not at all; InputError if it cannot be written."""
    page = templates().get_template(name).render(content)
    with write_errors(path, "choose another place for it"), written_aside(path) as aside:
        aside.write_text(page, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: its name, height and optional interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart from 0 to `top`; everything but the titles has its place in the picture."""

    title: str
    unit: str
    top: float
    names: list[tuple[float, str]]  # x and name, below the axis
    bars: list[tuple[float, float, float, str]] = field(default_factory=list)  # x, y, width and note
    whiskers: list[tuple[float, float, float]] = field(default_factory=list)  # x, and y of both ends
    dots: list[tuple[float, float]] = field(default_factory=list)

    @property
    def grid(self) -> list[tuple[float, str]]:
        """The height and the name of each line at a quarter of the axis."""
        return [(_y(self.top * share, self.top), f"{self.top * share:g}") for share in QUARTERS]


def histogram(title: str, values: Sequence[float], unit: str, bins: int = 24) -> Chart:
    """Return a histogram of the finite values; an empty chart if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return bar_chart(title, [], unit)
    low, high = min(finite), max(finite)
    step = _round_step((high - low) / bins) if high > low else 1.0
    first = math.floor(low / step)
    counts = [0] * (math.floor(high / step) - first + 1)
    for value in finite:
        counts[math.floor(value / step) - first] += 1
    bars = [Bar(f"{(first + index) * step:g}", count) for index, count in enumerate(counts)]
    return bar_chart(title, bars, unit)


def bar_chart(title: str, bars: Sequence[Bar], unit: str) -> Chart:
    """Return a chart of bars from 0, with whiskers for intervals; crowded names are thinned out."""
    top = _round_top(max([max(bar.value, bar.high or 0.0) for bar in bars], default=0.0))
    room = (RIGHT - LEFT) / max(1, len(bars))
    middles = [round(LEFT + (index + 0.5) * room, 1) for index in range(len(bars))]
    apart = max(1, math.ceil(len(bars) * max((len(bar.name) for bar in bars), default=0) / LETTERS_PER_AXIS))
    return Chart(
        title, unit, top, [(x, bar.name) for x, bar in zip(middles, bars, strict=True)][::apart],
        [(round(x - 0.43 * room, 1), _y(bar.value, top), round(0.86 * room, 1), f"{bar.name}: {bar.value:g} {bar.note}")
         for x, bar in zip(middles, bars, strict=True)],
        [(x, _y(bar.low, top), _y(bar.high, top))
         for x, bar in zip(middles, bars, strict=True) if bar.low is not None and bar.high is not None],
    )  # fmt: skip


def scatter(title: str, points: Sequence[tuple[float, float]], unit: str) -> Chart:
    """Return a chart of (x, y) points, both from 0."""
    right, top = (_round_top(max([point[axis] for point in points], default=0.0)) for axis in (0, 1))
    names = [(LEFT + (RIGHT - LEFT) * share, f"{right * share:g}") for share in QUARTERS]
    dots = [(round(LEFT + (RIGHT - LEFT) * x / right, 1), _y(y, top)) for x, y in points]
    return Chart(title, unit, top, names, dots=dots)


def _y(value: float, top: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * max(0.0, value) / top, 1)


def _round_top(largest: float) -> float:
    """Return the end of an axis that includes `largest` and has round quarters."""
    return 4 * _round_step(largest / 4, (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)) if largest > 0 else 1.0


def _round_step(step: float, factors: Sequence[float] = (1, 2, 5, 10)) -> float:
    """Return the smallest of the factors times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in factors if factor * power >= step * (1 - 1e-9))


def write_evaluation_page(path: Path, evaluation: Evaluation, breakdown: Analysis, title: str) -> None:
    """Write the page; audio is linked by relative paths, so that a folder can be moved as a whole."""
    parts: dict[str, list[Any]] = defaultdict(list)
    for part in breakdown.slices:
        rate = with_bounds(part.score.rates["wer"]) if part.score.words else "none"
        parts[part.key].append((part.value, rate, part.score.words, part.score.utterances))
    confusions = [(KINDS[one.kind], one.reference, one.hypothesis, one.told()) for one in breakdown.confusions]
    rows = [_entry(row, path.parent.absolute()) for row in evaluation.rows]
    write_page(
        path, "evaluation.html", title=title, summary=[*figures(evaluation), *beside(breakdown)],
        charts=_charts(evaluation), slices=parts, confusions=confusions, rows=rows,
    )  # fmt: skip


def _charts(evaluation: Evaluation) -> list[Chart]:
    """Return WER by duration: a bar for each bucket, and a dot for each utterance."""
    rows = [row for row in evaluation.scored if row.audio_seconds and row.words and row.words.words]
    if not rows:
        return []
    bars = []
    for part in slices(rows, "duration", evaluation.unit):
        rate = part.score.rates["wer"]
        note = f"% of {part.score.words} words in {part.score.utterances} utterances"
        low, high = (None if bound is None else 100 * bound for bound in (rate.low, rate.high))
        bars.append(Bar(part.value, 100 * rate.value, low, high, note))
    dots = [(row.audio_seconds, 100 * row.words.rate) for row in rows[:MOST_DOTS] if row.words]
    by_bucket = bar_chart("WER % by duration, with 95 % intervals", bars, "duration")
    return [by_bucket, scatter("WER % of each utterance", dots, "seconds")]


def _entry(row: Row, folder: Path) -> dict[str, Any]:
    """Return what the page shows of an utterance."""
    errors, speaker = row.words, row.utterance.extra.get("speaker")
    pairs = align_words(row.normalized_reference, row.normalized_hypothesis or "") if errors else []
    marks = {mark for _, _, mark in pairs if mark}
    return {
        "kinds": "".join(sorted([*marks, *["E"] * bool(marks), *["F"] * bool(row.error)])),
        "errors": errors.count if errors else 0,
        "rate": f"{errors.rate if errors else 0.0:.4f}",
        "seconds": f"{row.audio_seconds:.3f}",
        "audio": row.utterance.audio,
        "name": f"{row.utterance.audio.name}{f' · {speaker}' if speaker else ''} · {row.audio_seconds:.1f} s",
        "count": f"{errors.count} / {errors.words} · {percent(errors.rate)}" if errors else "failed",
        "error": row.error,
        "pairs": pairs,
        "link": _link(row, folder),
    }


def _link(row: Row, folder: Path) -> str:
    """Return the address of an utterance for an audio player, or an empty text if there is no file."""
    utterance = row.utterance
    if not utterance.audio.is_file():
        return ""
    link = quote(os.path.relpath(utterance.audio, folder).replace(os.sep, "/"), errors="replace")
    if utterance.offset or utterance.duration is not None:
        end = "" if utterance.duration is None else f",{utterance.offset + utterance.duration:.3f}"
        link += f"#t={utterance.offset:.3f}{end}"
    return link


def write_preparation_page(
    path: Path, facts: dict[str, Any], kept: Sequence[PreparedUtterance], findings: Sequence[Finding]
) -> None:
    """Write the page; `facts` are those of report.json, the rest comes from a preprocessing `Report`."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for finding in findings:
        reasons[finding.kind].append(finding.reason)
    rows = [(name, value) for name, value in facts.items() if not isinstance(value, (dict, list))]
    chosen = [(name, "none" if value is None else value) for name, value in facts["settings"].items()]
    write_page(
        path, "preparation.html", title="Prepared speech", facts=facts, figures=rows, charts=_preparation_charts(kept),
        findings=reasons, most_shown=MOST_SHOWN, settings=chosen,
    )  # fmt: skip


def _preparation_charts(kept: Sequence[PreparedUtterance]) -> list[Chart]:
    letters = Counter(char for one in kept for char in one.utterance.text if not char.isspace())
    common = [Bar(char, count) for char, count in letters.most_common(MOST_CHARACTERS)]
    return [
        histogram("Duration", [one.measured.seconds for one in kept], "seconds"),
        histogram("Level", [one.measured.rms_db for one in kept], "mean power, dB of full scale"),
        histogram("Peak", [one.measured.peak_db for one in kept], "dB of full scale"),
        histogram("Speaking rate", [one.rate for one in kept], "characters per second"),
        histogram("Text length", [float(len(one.utterance.text)) for one in kept], "characters"),
        bar_chart("Characters", common, f"{len(letters)} different, the {len(common)} most frequent"),
    ]
