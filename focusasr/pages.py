"""Pages that open anywhere, offline: one HTML file with its style, script and charts (SVG) inside."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from focusasr.files import unwritable, written_aside

WIDTH, HEIGHT = 460, 240
LETTERS_PER_AXIS = 64
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 44

STYLE = """
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


def write_page(path: Path, title: str, body: str, style: str = "", script: str = "") -> None:
    """Write one self-contained page, whole or not at all; InputError where it cannot be written."""
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escaped(title)}</title>\n'
    size = '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    whole = f"{head}{size}<style>{STYLE}{style}</style>\n<body>\n{body}\n<script>{script}</script>\n</body>\n</html>\n"
    try:
        with written_aside(path) as aside:
            aside.write_text(whole, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")
    except OSError as error:
        raise unwritable(path, error, "choose another place for it") from None


def escaped(text: object) -> str:
    """Return text that is safe inside HTML, in and outside attributes."""
    return html.escape(str(text), quote=True)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; all cells are escaped, and those of numbers stand to the right."""

    def cell(tag: str, value: object, column: int) -> str:
        number = bool(rows) and isinstance(rows[0][column], (int, float))
        return f"<{tag}{' class=number' if number else ''}>{escaped(value)}</{tag}>"

    above = "".join(cell("th", name, column) for column, name in enumerate(head))
    lines = ("".join(cell("td", value, column) for column, value in enumerate(row)) for row in rows)
    return f"<table><tr>{above}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


@dataclass(frozen=True)
class Bar:
    """One bar of a chart: its name, height and, where there is one, the interval around it."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def histogram(title: str, values: Sequence[float], unit: str, bins: int = 24) -> str:
    """Return a chart of how often values occur; nothing finite gives an empty one."""
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
    """Return a chart of bars from 0, with whiskers where they have an interval; names thin out where many."""
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
    """Return the title, the unit of the horizontal axis, and lines at a quarter, half and so on of the height."""
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
    """Return the end of an axis that holds `largest` and whose quarters are round numbers."""
    return 4 * _round_step(largest / 4, (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)) if largest > 0 else 1.0


def _round_step(step: float, factors: Sequence[float] = (1, 2, 5, 10)) -> float:
    """Return the smallest of the factors times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in factors if factor * power >= step * (1 - 1e-9))
