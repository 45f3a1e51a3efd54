"""Layout of words as subtitles: line width, lines per cue, highlighted words.

The rules are openai/whisper's, except for `split_for_reading`, which Whisper's short segments do not need. A word is
{word, start, end, ...}; the space before a word belongs to it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from focusasr.whisper_config import OutputConfig

LONG_PAUSE_SECONDS = 3.0
ENDLESS = 1000  # characters or words, if there is no limit
LINE_WIDTH = 42  # characters; a cue of two such lines and six seconds can be read in passing
MOST_LINES = 2
MOST_SECONDS = 6.0
EVEN_SECONDS = 0.1  # added to each pause when split points are compared: prefers splits in the middle

Word = dict[str, Any]
Clock = Callable[[float], str]


class Cue(NamedTuple):
    """A cue: its text, and its start and end as they are written."""

    start: str
    end: str
    text: str


def split_for_reading(words: list[Word]) -> Iterator[list[Word]]:
    """Yield groups of words short enough for one cue each, split at pauses, preferably in the middle."""
    seconds = words[-1]["end"] - words[0]["start"]
    lines = textwrap.wrap("".join(word["word"] for word in words), LINE_WIDTH)
    if len(words) == 1 or (seconds <= MOST_SECONDS and len(lines) <= MOST_LINES):
        yield words
        return

    def worth(place: int) -> float:
        end, start = words[place - 1]["end"], words[place]["start"]
        return float((start - end + EVEN_SECONDS) * min(end - words[0]["start"], words[-1]["end"] - start))

    place = max(range(1, len(words)), key=worth)
    yield from split_for_reading(words[:place])
    yield from split_for_reading(words[place:])


class _Layout:
    """Layout of words into the lines of successive cues."""

    def __init__(self, config: OutputConfig, start: float) -> None:
        self.width = config.max_line_width or ENDLESS
        self.most_lines = config.max_line_count
        self.free = config.max_line_count is not None and config.max_line_width is not None  # segments may be joined
        self.words: list[Word] = []
        self.line_length, self.lines, self.last_start = 0, 1, start

    def add(self, word: Word, first: bool) -> list[Word] | None:
        """Add a word, the `first` of its group or not; return the previous cue if a new one starts."""
        paused = self.free and word["start"] - self.last_start > LONG_PAUSE_SECONDS
        parted = first and bool(self.words) and not self.free
        text, complete = word["word"], None
        if self.line_length > 0 and self.line_length + len(text) <= self.width and not paused and not parted:
            self.line_length += len(text)
        else:
            text = text.strip()
            full = self.most_lines is not None and (paused or self.lines >= self.most_lines)
            if parted or (self.words and full):
                complete, self.words, self.lines = self.words, [], 1
            elif self.line_length > 0:
                self.lines += 1
                text = "\n" + text
            self.line_length = len(text.strip())
        self.words.append({**word, "word": text})
        self.last_start = word["start"]
        return complete


def layout(segments: Sequence[Sequence[Word]], config: OutputConfig, start: float) -> Iterator[list[Word]]:
    """Yield cues as lists of words, with a line break before the first word of a line; `start` is the first time."""
    layout = _Layout(config, start)
    most = config.max_words_per_line or ENDLESS
    for words in segments:
        for index, word in enumerate(words):
            if complete := layout.add(_one_line(word), index % most == 0):
                yield complete
    if layout.words:
        yield layout.words


def _one_line(word: Word) -> Word:
    """Return a word that cannot break a cue: a blank line would end it, and an arrow would look like its times."""
    text = word["word"]
    return {**word, "word": re.sub(r"[\r\n]+", " ", text).replace("-->", "->")}


def cues(segments: Sequence[Sequence[Word]], config: OutputConfig, start: float, clock: Clock) -> Iterator[Cue]:
    """Yield the cues of segments of words."""
    for subtitle in layout(segments, config, start):
        if config.highlight_words:
            yield from _highlighted(subtitle, clock)
        else:
            yield Cue(clock(subtitle[0]["start"]), clock(subtitle[-1]["end"]), _text(subtitle))


def _highlighted(subtitle: list[Word], clock: Clock) -> Iterator[Cue]:
    """Yield one cue per word with this word underlined, and one without underlining for each gap between words."""
    last = clock(subtitle[0]["start"])
    for index, word in enumerate(subtitle):
        start, end = clock(word["start"]), clock(word["end"])
        if last != start:
            yield Cue(last, start, _text(subtitle))
        bare = word["word"].lstrip()
        space = word["word"][: len(word["word"]) - len(bare)]
        marked = [*subtitle[:index], {"word": f"{space}<u>{bare}</u>"}, *subtitle[index + 1 :]]
        yield Cue(start, end, _text(marked))
        last = end


def _text(words: Sequence[Word]) -> str:
    return "".join(word["word"] for word in words)
