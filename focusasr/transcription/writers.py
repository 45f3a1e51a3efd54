"""Output files in openai/whisper's formats: txt, vtt, srt, tsv and json."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from focusasr.runtime.errors import InputError, SettingError, UsageError
from focusasr.runtime.files import ensure_writable, folded, free_name, real_path, write_errors, written_aside
from focusasr.transcription.result import Segment, Transcript
from focusasr.transcription.subtitles import LINE_WIDTH, Clock, Cue, cues, split_for_reading
from focusasr.whisper_config import OutputConfig

if TYPE_CHECKING:
    from focusasr.audio.source import Source
    from focusasr.transcription.result import Outcome
    from focusasr.transcription.resume import OutputCache


LONGEST_NAME = 240  # bytes of a file's name without suffix


def to_json_dict(transcript: Transcript) -> dict[str, Any]:
    """Return Whisper's object {text, segments, language}; a segment has `words` and `channel` only if they are set."""
    result = dataclasses.asdict(transcript)
    for segment in result["segments"]:
        del segment["subtitle_words"]
        for name in ("words", "channel"):
            if segment[name] is None:
                del segment[name]
    return result


def render_txt(transcript: Transcript, config: OutputConfig = OutputConfig()) -> str:
    """Return the text with one segment per line."""
    return "".join(f"{_line(segment)}\n" for segment in transcript.segments)


def render_vtt(transcript: Transcript, config: OutputConfig = OutputConfig()) -> str:
    """Return WebVTT with times as [HH:]MM:SS.mmm, hours only if needed."""
    cues = _cues(transcript, config, clock)
    return "WEBVTT\n\n" + "".join(f"{cue.start} --> {cue.end}\n{cue.text}\n\n" for cue in cues)


def render_srt(transcript: Transcript, config: OutputConfig = OutputConfig()) -> str:
    """Return SubRip, numbered from 1, with times as HH:MM:SS,mmm."""
    cues = enumerate(_cues(transcript, config, _srt_time), start=1)
    return "".join(f"{number}\n{cue.start} --> {cue.end}\n{cue.text}\n\n" for number, cue in cues)


def render_tsv(transcript: Transcript, config: OutputConfig = OutputConfig()) -> str:
    """Return a table of start, end (whole milliseconds) and text."""
    rows = [("start", "end", "text")]
    for segment in transcript.segments:
        start, end = (str(_milliseconds(seconds)) for seconds in (segment.start, segment.end))
        rows.append((start, end, _line(segment).replace("\t", " ")))
    return "".join("\t".join(row) + "\n" for row in rows)


def render_json(transcript: Transcript, config: OutputConfig = OutputConfig()) -> str:
    """Return ASCII JSON, on one line or with `pretty_json` indented; ValueError for NaN or infinity."""
    return json.dumps(to_json_dict(transcript), allow_nan=False, indent=2 if config.pretty_json else None)


_RENDERERS: dict[str, Callable[[Transcript, OutputConfig], str]] = {
    "txt": render_txt,
    "vtt": render_vtt,
    "srt": render_srt,
    "tsv": render_tsv,
    "json": render_json,
}
FORMATS = tuple(_RENDERERS)
ANOTHER = "choose another folder with --output-dir"


def parse_formats(asked: str | Iterable[str]) -> list[str]:
    """Return the requested formats, given as names or separated by commas; SettingError for an unknown format.

    "all" means every format, and is returned unchanged.
    """
    several = [asked] if isinstance(asked, str) else asked
    named = [name.strip().lower() for one in several for name in one.split(",")]
    for name in named:
        if name not in (*FORMATS, "all"):
            raise SettingError("output_format", name, f"{', '.join(FORMATS)} or all")
    return list(dict.fromkeys(named))


def render(transcript: Transcript, suffix: str, config: OutputConfig = OutputConfig()) -> str:
    """Return the content of a file in this format; InputError for an unknown format."""
    if suffix not in _RENDERERS:
        raise InputError(f"output format is {suffix!r}; expected: {', '.join(FORMATS)}")
    return _RENDERERS[suffix](transcript, config)


def write(
    transcript: Transcript, path_without_suffix: Path, formats: Iterable[str], config: OutputConfig = OutputConfig()
) -> list[Path]:
    """Write one file per format, UTF-8, each atomically; return their paths.

    Everything is rendered before anything is written. InputError for an unknown format, or if a file cannot be written.
    Existing files are replaced.
    """
    formats = list(formats)
    contents = [render(transcript, suffix, config).encode("utf-8") for suffix in formats]
    paths = output_paths(path_without_suffix, formats)
    for path, content in zip(paths, contents, strict=True):
        with write_errors(path, ANOTHER), written_aside(path) as aside:
            aside.write_bytes(content)
    return paths


class OutputPlan:
    """The sources to transcribe and the outputs of each: those that the cache has, unchanged, are skipped.

    InputError or UsageError, before any work, if the folder is a file or an output would replace a recording.
    """

    def __init__(self, sources: Sequence[Source], folder: Path, formats: list[str], cache: OutputCache | None) -> None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; give --output-dir a folder")
        self.folder, self._cache = folder, cache
        self._formats = list(FORMATS) if "all" in formats else formats
        self._stems = dict(zip(sources, output_stems(sources, folder), strict=True))
        given = {real_path(source.path) for source in sources}
        for path in (path for source in sources for path in self._outputs(source)):
            if real_path(path) in given:
                raise UsageError(f"{path}: is one of the recordings, which a text would replace; choose another -o")
        self.sources = [one for one in sources if not (cache and cache.finished(one, self._outputs(one)))]
        self.written = 0  # files

    def _outputs(self, source: Source) -> list[Path]:
        return output_paths(self._stems[source], self._formats)

    def check_folder(self) -> None:
        """Raise InputError if something is left to write and the folder is not writable."""
        if self.sources:
            ensure_writable(self.folder, ANOTHER)

    def rewritten(self) -> list[Path]:
        """Return the outputs in the cache, with other inputs, that will be replaced."""
        there = (path for source in self.sources for path in self._outputs(source))
        return [path for path in there if self._cache and self._cache.wrote(path)]

    def write(self, outcome: Outcome, config: OutputConfig) -> None:
        """Write the files of a transcript."""
        assert outcome.transcript is not None
        paths = write(outcome.transcript, self._stems[outcome.source], self._formats, config)
        self.written += len(paths)
        if self._cache and outcome.error is None:
            self._cache.add(outcome.source, paths)


def output_paths(path_without_suffix: Path, formats: Iterable[str]) -> list[Path]:
    """Return the output files of a transcript, one per format."""
    return [path_without_suffix.with_name(f"{path_without_suffix.name}.{suffix}") for suffix in formats]


def output_stems(sources: Sequence[Source], output_dir: Path) -> list[Path]:
    """Return each source's output path without suffix; paths are unique even if case is ignored.

    The name is the file's own without suffix. Files that would share it keep their suffix (`a.wav`, `a.mp3`), then get
    the names of their parent folders (`x-a.wav`, `y-a.wav`) as far up as needed. Repeated files are numbered. Names
    that are too long for a file system are truncated. Standard input is `stdin`.
    """
    ladders = [_names(source.path) for source in sources]
    steps = [0] * len(ladders)
    while True:
        sharing = defaultdict(list)
        for index, (names, step) in enumerate(zip(ladders, steps, strict=True)):
            sharing[folded(names[step])].append(index)
        clashes = [group for group in sharing.values() if len({ladders[index][-1] for index in group}) > 1]
        rising = [index for group in clashes for index in group if steps[index] + 1 < len(ladders[index])]
        if not rising:
            break
        for index in rising:
            steps[index] += 1
    names = [ladder[step] for ladder, step in zip(ladders, steps, strict=True)]
    return [output_dir / name for name in _numbered(names)]


def _names(path: str) -> list[str]:
    """Return the possible names of a file's outputs, from the shortest to the whole path as one name."""
    if path == "-":
        return ["stdin"]
    whole = Path(os.path.abspath(path))
    parts = [*whole.parts[1:]] or [whole.name]
    shortest = whole.name if whole.stem in (".", "..") else whole.stem  # of "..wav": a folder, not a name
    return [_cut(name) for name in (shortest, *("-".join(parts[start:]) for start in reversed(range(len(parts)))))]


def _cut(name: str) -> str:
    """Return a name truncated so that a number and a suffix fit into the 255 bytes of file systems."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST_NAME else encoded[:LONGEST_NAME].decode("utf-8", "ignore")


def _numbered(names: list[str]) -> list[str]:
    """Append -2, -3 ... to repeated names."""
    taken = {folded(name) for name in names}
    used: set[str] = set()
    result = []
    for name in names:
        result.append(free_name(name, taken) if folded(name) in used else name)
        used.add(folded(name))
    return result


def _line(segment: Segment) -> str:
    """Return the segment's text on one line: a line break would end a row, a blank line a cue."""
    return " ".join(segment.shown.text.strip().splitlines())


def _cues(transcript: Transcript, config: OutputConfig, clock: Clock) -> Iterator[Cue]:
    """Yield the cues of a transcript: from its words if they have times, else from its segments.

    Overlong segments are split unless line options are given.
    """
    segments = [segment.shown for segment in transcript.segments]
    if any(segment.subtitle_words for segment in segments) and not config.shapes_lines:
        parts = [part for one in segments for part in split_for_reading(one.subtitle_words or _as_word(one))]
        yield from cues(parts, replace(config, max_line_width=LINE_WIDTH), parts[0][0]["start"], clock)
        return
    timed = [segment.words for segment in segments]
    if segments and (any(timed) or None not in timed):
        words = [_as_word(segment) if segment.words is None else segment.words for segment in segments]
        first = next((word["start"] for line in words for word in line), segments[0].start)
        yield from cues(words, config, first, clock)
        return
    for segment in segments:
        yield Cue(clock(segment.start), clock(segment.end), _line(segment).replace("-->", "->"))


def _as_word(segment: Segment) -> list[dict[str, Any]]:
    return [{"word": segment.text, "start": segment.start, "end": segment.end}]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def clock(seconds: float) -> str:
    """Return a time as MM:SS.mmm, with HH: in front from one hour on."""
    return _clock(seconds).removeprefix("00:")


def _srt_time(seconds: float) -> str:
    return _clock(seconds).replace(".", ",")


def _clock(seconds: float) -> str:
    whole, milliseconds = divmod(_milliseconds(seconds), 1000)
    minutes, seconds_left = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours:02d}:{minutes_left:02d}:{seconds_left:02d}.{milliseconds:03d}"
