"""HTML reports in one file each: an evaluation, or a prepared corpus."""

from __future__ import annotations

import html
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from focusasr.cli.tables import beside, figures, percent, with_bounds
from focusasr.data.quality import Finding, PreparedUtterance
from focusasr.evaluation.analysis import Analysis, slices
from focusasr.evaluation.evaluate import Evaluation, Row
from focusasr.evaluation.wer import align_words
from focusasr.runtime.files import unwritable, written_aside

WIDTH, HEIGHT = 460, 240
LETTERS_PER_AXIS = 64
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 44

PAGE_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #667085; --line: #d0d5dd; --paper: #fff; --bar: #3b7dd8;
  --S: #fff0c2; --D: #ffd9d6; --I: #ead9ff }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #3a4352; --paper: #141a22;
  --bar: #6ea8fe; --S: #5a4708; --D: #6b221d; --I: #4a2a78 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1080px;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .25rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p.soft, .soft { color: var(--soft) } table { border-collapse: collapse; margin: .5rem 0 }
td, th { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.charts { display: flex; flex-wrap: wrap }
svg { width: 460px; max-width: 100%; height: auto }
svg text { fill: var(--soft); font-size: 11px }
svg text.title { fill: var(--ink); font-size: 13px; font-weight: 600 } svg .axis { stroke: var(--line) }
svg .bar { fill: var(--bar) } svg .whisker { stroke: var(--ink) } svg .dot { fill: var(--bar); fill-opacity: .45 }
"""

MOST_DOTS = 3000
NAMES = {"S": "substitution", "D": "deletion", "I": "insertion"}

STYLE = """
article { border-top: 1px solid var(--line); padding: .7rem 0; content-visibility: auto; contain-intrinsic-size: 9rem }
article[hidden] { display: none } article header { display: flex; gap: 1rem; justify-content: space-between }
.words { display: flex; flex-wrap: wrap; gap: .1rem .35rem; margin: .3rem 0 }
.pair { display: inline-grid; grid-template-rows: auto auto; padding: 0 .2rem; border-radius: .25rem }
.pair.S { background: var(--S) } .pair.D { background: var(--D) } .pair.I { background: var(--I) }
.pair span { min-height: 1.5em } .pair.D .said { text-decoration: line-through } .pair.I .heard { font-style: italic }
audio { height: 2rem; width: 320px } .tools { position: sticky; top: 0; background: var(--paper); padding: .6rem 0;
  display: flex; gap: .5rem; flex-wrap: wrap; align-items: center; z-index: 1 }
.legend .pair { display: inline; margin-right: .4rem } pre { white-space: pre-wrap; margin: 0; color: var(--soft) }
"""

SCRIPT = """
const rows = [...document.querySelectorAll('article')], list = document.getElementById('rows');
const byId = name => document.getElementById(name);
const value = (row, key) => Number(row.dataset[key]);
function show() {
  const kind = byId('kind').value, words = byId('find').value.toLowerCase(), key = byId('order').value;
  let shown = 0;
  for (const row of rows) {
    const fits = kind === 'all' || row.dataset.kinds.includes(kind) || (kind === 'right' && !row.dataset.kinds);
    row.hidden = !(fits && row.textContent.toLowerCase().includes(words));
    shown += !row.hidden;
  }
  const order = key === 'place' ? 1 : -1;
  list.append(...rows.slice().sort((a, b) => order * (value(a, key) - value(b, key))));
  byId('shown').textContent = shown + ' of ' + rows.length;
}
for (const name of ['kind', 'find', 'order']) byId(name).addEventListener('input', show);
show();
"""

TOOLS = """
<div class="tools">
<select id="kind" aria-label="which utterances"><option value="all">all utterances</option>
<option value="E">with errors</option><option value="S">with substitutions</option>
<option value="D">with deletions</option><option value="I">with insertions</option><option value="F">failed</option>
<option value="right">without errors</option></select>
<select id="order" aria-label="order"><option value="errors">most errors first</option>
<option value="rate">highest rate first</option><option value="seconds">longest first</option>
<option value="place">as in the manifest</option></select>
<input id="find" type="search" placeholder="find a word, speaker or file"> <span id="shown" class="soft"></span>
<span class="legend"><span class="pair S">heard as another</span><span class="pair D">not heard</span><span
class="pair I">invented</span></span>
</div>
"""

MOST_SHOWN = 200  # findings per kind
MOST_CHARACTERS = 60


def write_page(path: Path, title: str, body: str, style: str = "", script: str = "") -> None:
    """Write one self-contained page, whole or not at all; InputError if it cannot be written."""
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escaped(title)}</title>\n'
    size = '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    whole = (
        f"{head}{size}<style>{PAGE_STYLE}{style}</style>\n<body>\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
    )
    try:
        with written_aside(path) as aside:
            aside.write_text(whole, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")
    except OSError as error:
        raise unwritable(path, error, "choose another place for it") from None


def escaped(text: object) -> str:
    """Return text that is safe in HTML, inside and outside attributes."""
    return html.escape(str(text), quote=True)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table with all cells escaped and numbers aligned to the right."""

    def cell(tag: str, value: object, column: int) -> str:
        number = bool(rows) and isinstance(rows[0][column], (int, float))
        return f"<{tag}{' class=number' if number else ''}>{escaped(value)}</{tag}>"

    above = "".join(cell("th", name, column) for column, name in enumerate(head))
    lines = ("".join(cell("td", value, column) for column, value in enumerate(row)) for row in rows)
    return f"<table><tr>{above}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: its name, height and optional interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def histogram(title: str, values: Sequence[float], unit: str, bins: int = 24) -> str:
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


def bar_chart(title: str, bars: Sequence[Bar], unit: str) -> str:
    """Return a chart of bars from 0, with whiskers for intervals; crowded names are thinned out."""
    top = _round_top(max([max(bar.value, bar.high or 0.0) for bar in bars], default=0.0))
    parts = [*_frame(title, unit, top)]
    room = (WIDTH - LEFT - RIGHT) / max(1, len(bars))
    apart = max(1, math.ceil(len(bars) * max((len(bar.name) for bar in bars), default=0) / LETTERS_PER_AXIS))
    for index, bar in enumerate(bars):
        x, y = LEFT + index * room, _y(bar.value, top)
        note = f"<title>{escaped(f'{bar.name}: {bar.value:g} {bar.note}')}</title>"
        size = f'width="{room * 0.86:.1f}" height="{HEIGHT - BOTTOM - y:.1f}"'
        parts.append(f'<rect class="bar" x="{x + room * 0.07:.1f}" y="{y:.1f}" {size}>{note}</rect>')
        if bar.low is not None and bar.high is not None:
            ends = f'y1="{_y(bar.low, top):.1f}" y2="{_y(bar.high, top):.1f}"'
            parts.append(f'<line class="whisker" x1="{x + room / 2:.1f}" x2="{x + room / 2:.1f}" {ends}/>')
        if index % apart == 0:
            parts.append(_text(x + room / 2, HEIGHT - BOTTOM + 14, bar.name, "middle"))
    return _svg(parts)


def scatter(title: str, points: Sequence[tuple[float, float]], unit: str) -> str:
    """Return a chart of (x, y) points, both from 0."""
    right, top = (_round_top(max([point[axis] for point in points], default=0.0)) for axis in (0, 1))
    parts = [*_frame(title, unit, top)]
    span = WIDTH - LEFT - RIGHT
    for x, y in points:
        parts.append(f'<circle class="dot" r="2.5" cx="{LEFT + span * x / right:.1f}" cy="{_y(y, top):.1f}"/>')
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_text(LEFT + span * share, HEIGHT - BOTTOM + 14, f"{right * share:g}", "middle"))
    return _svg(parts)


def _frame(title: str, unit: str, top: float) -> list[str]:
    """Return the title, the unit of the horizontal axis, and grid lines at quarters of the height."""
    parts = [f'<text class="title" x="{LEFT}" y="16">{escaped(title)}</text>']
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, unit, "middle"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(top * share, top)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{top * share:g}", "end"))
    return parts


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * max(0.0, value) / top


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped(text)}</text>'


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _round_top(largest: float) -> float:
    """Return the end of an axis that includes `largest` and has round quarters."""
    return 4 * _round_step(largest / 4, (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)) if largest > 0 else 1.0


def _round_step(step: float, factors: Sequence[float] = (1, 2, 5, 10)) -> float:
    """Return the smallest of the factors times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in factors if factor * power >= step * (1 - 1e-9))


def write_evaluation_page(path: Path, evaluation: Evaluation, breakdown: Analysis, title: str) -> None:
    """Write the page; audio is linked by relative paths, so that a folder can be moved as a whole."""
    folder = path.parent.absolute()
    articles = "\n".join(_article(index, row, folder) for index, row in enumerate(evaluation.rows))
    parts = [
        f"<h1>{escaped(title)}</h1>",
        _summary(evaluation, breakdown),
        f'<div class="charts">{_charts(evaluation)}</div>',
        _slices(breakdown),
        _confusions(breakdown),
        f'<h2>Utterances</h2>{TOOLS}<div id="rows">{articles}</div>',
    ]
    write_page(path, title, "\n".join(parts), STYLE, SCRIPT)


def _summary(evaluation: Evaluation, breakdown: Analysis) -> str:
    rows = (*figures(evaluation), *beside(breakdown))
    return "<table>" + "".join(f"<tr><th>{escaped(a)}</th><td>{escaped(b)}</td></tr>" for a, b in rows) + "</table>"


def _charts(evaluation: Evaluation) -> str:
    """Return WER by duration: a bar for each bucket, and a dot for each utterance."""
    rows = [row for row in evaluation.scored if row.audio_seconds and row.words and row.words.words]
    if not rows:
        return ""
    bars = []
    for part in slices(rows, "duration", evaluation.unit):
        rate = part.score.interval("wer")
        note = f"% of {part.score.words} words in {part.score.utterances} utterances"
        low, high = (None if bound is None else 100 * bound for bound in (rate.low, rate.high))
        bars.append(Bar(part.value, 100 * rate.value, low, high, note))
    dots = [(row.audio_seconds, 100 * row.words.rate) for row in rows[:MOST_DOTS] if row.words]
    by_bucket = bar_chart("WER % by duration, with 95 % intervals", bars, "duration")
    return by_bucket + scatter("WER % of each utterance", dots, "seconds")


def _slices(breakdown: Analysis) -> str:
    parts = []
    for key in dict.fromkeys(part.key for part in breakdown.slices):
        own = [part for part in breakdown.slices if part.key == key]
        rates = (with_bounds(p.score.interval("wer")) if p.score.words else "none" for p in own)
        rows = [(p.value, rate, p.score.words, p.score.utterances) for p, rate in zip(own, rates, strict=True)]
        head = (key, "WER (95 % interval)", "words", "utterances")
        parts.append(f"<h2>By {escaped(key)}</h2>" + table(head, rows))
    return "".join(parts)


def _confusions(breakdown: Analysis) -> str:
    if not breakdown.confusions:
        return ""
    rows = [(NAMES[one.kind], one.reference, one.hypothesis, one.told()) for one in breakdown.confusions]
    return "<h2>Most confused words</h2>" + table(("kind", "said", "heard", "count (95 % interval)"), rows)


def _article(place: int, row: Row, folder: Path) -> str:
    errors = row.words
    marks = {"F"} if row.error else set()
    pairs = []
    if errors is not None:
        for said, heard, mark in align_words(row.normalized_reference, row.normalized_hypothesis or ""):
            marks |= {mark, "E"} if mark else set()
            cells = f'<span class="said">{escaped(said)}</span><span class="heard">{escaped(heard)}</span>'
            pairs.append(f'<span class="pair {mark}" title="{NAMES.get(mark, "")}">{cells}</span>')
    body = f"<pre>{escaped(row.error)}</pre>" if row.error else f'<div class="words">{"".join(pairs)}</div>'
    told = f"{errors.count} / {errors.words} · {percent(errors.rate)}" if errors else "failed"
    speaker = row.utterance.extra.get("speaker")
    name = f"{row.utterance.audio.name}{f' · {speaker}' if speaker else ''} · {row.audio_seconds:.1f} s"
    count, rate = (errors.count, errors.rate) if errors else (0, 0.0)
    data = f'data-place="{place}" data-kinds="{"".join(sorted(marks))}" data-errors="{count}"'
    data += f' data-rate="{rate:.4f}" data-seconds="{row.audio_seconds:.3f}"'
    header = f'<header><span title="{escaped(row.utterance.audio)}">{escaped(name)}</span><span>{told}</span></header>'
    return f"<article {data}>{header}{body}{_player(row, folder)}</article>"


def _player(row: Row, folder: Path) -> str:
    """Return an audio player of the utterance, or an empty text if there is no file."""
    utterance = row.utterance
    if not utterance.audio.is_file():
        return ""
    link = quote(os.path.relpath(utterance.audio, folder).replace(os.sep, "/"), errors="replace")
    if utterance.offset or utterance.duration is not None:
        end = "" if utterance.duration is None else f",{utterance.offset + utterance.duration:.3f}"
        link += f"#t={utterance.offset:.3f}{end}"
    return f'<audio controls preload="none" src="{escaped(link)}"></audio>'


def write_preparation_page(
    path: Path, facts: dict[str, Any], kept: Sequence[PreparedUtterance], findings: Sequence[Finding]
) -> None:
    """Write the page; `facts` are those of report.json, the rest comes from a preprocessing `Report`."""
    rows = [(name, value) for name, value in facts.items() if not isinstance(value, (dict, list))]
    parts = [
        "<h1>Prepared speech</h1>",
        table(("", ""), rows),
        f'<div class="charts">{_preparation_charts(kept)}</div>',
    ]
    for name in ("splits", "rejects", "findings"):
        if facts.get(name):
            parts.append(f"<h2>{name.capitalize()}</h2>" + table(("name", "count"), list(facts[name].items())))
    for kind in dict.fromkeys(finding.kind for finding in findings):
        own = [finding for finding in findings if finding.kind == kind]
        more = f"<p class=soft>and {len(own) - MOST_SHOWN} more</p>" if len(own) > MOST_SHOWN else ""
        lines = "".join(f"<li>{escaped(finding.reason)}</li>" for finding in own[:MOST_SHOWN])
        parts.append(f"<details><summary>{escaped(kind)}: {len(own)}</summary><ul>{lines}</ul>{more}</details>")
    parts.append("<h2>Steps</h2><ol>" + "".join(f"<li>{escaped(step)}</li>" for step in facts["steps"]) + "</ol>")
    chosen = [(name, "none" if value is None else value) for name, value in facts["settings"].items()]
    parts.append("<h2>Settings</h2>" + table(("setting", "value"), chosen))
    write_page(path, "Prepared speech", "\n".join(parts))


def _preparation_charts(kept: Sequence[PreparedUtterance]) -> str:
    letters = Counter(char for one in kept for char in one.utterance.text if not char.isspace())
    common = [Bar(char, count) for char, count in letters.most_common(MOST_CHARACTERS)]
    return "".join(
        (
            histogram("Duration", [one.measured.seconds for one in kept], "seconds"),
            histogram("Level", [one.measured.rms_db for one in kept], "mean power, dB of full scale"),
            histogram("Peak", [one.measured.peak_db for one in kept], "dB of full scale"),
            histogram("Speaking rate", [one.rate for one in kept], "characters per second"),
            histogram("Text length", [float(len(one.utterance.text)) for one in kept], "characters"),
            bar_chart("Characters", common, f"{len(letters)} different, the {len(common)} most frequent"),
        )
    )
