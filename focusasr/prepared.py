"""What earlier runs of `preprocess` made of an output folder: from which inputs, which files, who is in which split.

It is kept beside the results, one line of JSON for each run that began and each that wrote; what comes later counts.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from focusasr.audio import Source
from focusasr.config import PreprocessConfig
from focusasr.files import append_line, read_lines
from focusasr.manifest import Utterance
from focusasr.settings import InputError
from focusasr.text import counted

RECORD = ".prepared.jsonl"
Part = tuple[str, float, float | None]  # of a recording; its path is relative to the folder, so that both may move


class Prepared:
    """The past of an output folder, which a run on it has to agree with: a split stays a split."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.homes: dict[Part, str] = {}  # the split of each part that was ever in one
        self._parts: dict[str, list[Part]] = defaultdict(list)  # these, by recording
        self.remarks: list[str] = []  # what the user should know
        self._inputs: list[str] = []
        self._division: dict[str, Any] = {}
        self._written: list[str] = []
        self._sources: Mapping[Path, Source] = {}
        for line in read_lines(folder / RECORD):
            with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):  # another version's
                self._inputs = [str(given) for given in line.get("inputs", self._inputs)]
                self._division = dict(line.get("division", self._division))
                self._written = [str(name) for name in line.get("written", self._written)]
                self.homes.update({(path, offset, length): home for path, offset, length, home in line.get("in", ())})
        for part in self.homes:
            self._parts[part[0]].append(part)

    def check(self, inputs: Sequence[str | Path] | None, config: PreprocessConfig) -> None:
        """Refuse another division than the utterances have, and other inputs than the folder was made from.

        Inputs are None where nothing lies there yet.
        """
        now = [Path(given).resolve() for given in inputs or ()]
        before = [Path(os.path.normpath(self.folder / given)) for given in self._inputs if inputs is not None]
        lost = [path for path in before if not any(path == one or one in path.parents for one in now)]
        gone = [path for path in lost if not path.exists()]
        if lost and (len(gone) < len(lost) or lost == before):
            other = next((path for path in lost if path not in gone), lost[0])
            raise InputError(
                f"{self.folder}: was made from {other}, which is not among the inputs; name it too, or choose another "
                "--output-dir"
            )
        if self.homes and self._division != _division(config):
            raise InputError(
                f"{self.folder}: its utterances are divided {_told(self._division)}; give the same again, or choose "
                "another --output-dir, so that none moves from test to train"
            )

    def claim(self, names: Iterable[str]) -> None:
        """Refuse to write over files that no earlier run wrote."""
        there = [name for name in sorted(names) if name not in self._written and (self.folder / name).exists()]
        foreign = set(there).difference(Prepared(self.folder)._written) if there else ()  # a sister's, meanwhile
        if foreign:
            names = sorted(foreign)
            raise InputError(
                f"{self.folder}: {', '.join(names)} would be overwritten, and no earlier run here is known to have "
                "written that; move it away, or choose another --output-dir"
            )

    def claim_new(self, outputs: Iterable[Path]) -> None:
        """Refuse to write sound over files where no run began before: what a killed one left may be any of its own."""
        there = [] if self._inputs else [output for output in outputs if os.path.exists(output)]
        if there and not Prepared(self.folder)._inputs:
            raise InputError(
                f"{there[0]}: would be overwritten, and no earlier run here is known to have written it; move it "
                "away, or choose another --output-dir"
            )

    def begin(self, inputs: Sequence[str | Path], config: PreprocessConfig, sources: Mapping[Path, Source]) -> None:
        """Note what a run is about to do; `sources` are what each of its outputs is made from."""
        self._sources = sources
        told = [_relative(Path(given).resolve(), self.folder) for given in inputs]
        if (told, _division(config)) != (self._inputs, self._division):
            self.folder.mkdir(parents=True, exist_ok=True)
            append_line(self.folder / RECORD, {"inputs": told, "division": _division(config)})

    def part(self, utterance: Utterance) -> Part:
        """Return which part of which recording a finished utterance is; what mostly was one before is that one."""
        source = self._sources[utterance.audio]
        folder, name = os.path.split(source.path)
        path = _relative(Path(os.path.realpath(folder), name), self.folder)
        part = path, source.offset, source.duration
        same = [part] if part in self.homes else [other for other in self._parts[path] if _mostly_one(part, other)]
        return same[0] if same else part

    def settle(self, splits: Mapping[str, Sequence[Utterance]], names: Sequence[str]) -> None:
        """Note who is in which split, and the files that are about to be written; those of splits that are gone go."""
        moved: Counter[tuple[str, str]] = Counter()
        examples: dict[tuple[str, str], Utterance] = {}
        news: list[tuple[str, float, float | None, str]] = []
        for split, utterances in splits.items():
            for utterance in utterances:
                part = self.part(utterance)
                home = self.homes.get(part)
                if home != split:
                    news.append((*part, split))
                if home not in (split, None):
                    moved[str(home), split] += 1
                    examples.setdefault((str(home), split), utterance)
        for (home, split), count in moved.items():
            such = f"such as {examples[home, split].audio.name}"
            self.remarks.append(f"moved from {home} to {split}: {counted(count, 'utterance')}, {such}; train anew")
        for name in set(self._written).difference(names):
            (self.folder / name).unlink(missing_ok=True)
        if news or sorted(names) != self._written:
            append_line(self.folder / RECORD, {"written": sorted(names), "in": news})

    def left(self, outputs: Iterable[Path]) -> None:
        """Remark on outputs of earlier runs that are in no manifest now."""
        there = [output for output in outputs if output not in self._sources and output.is_file()]
        if there:
            files = f"{counted(len(there), 'file')} of earlier runs"
            self.remarks.append(f"{files} in no manifest now, such as {there[0]}; delete what nobody needs")


def _mostly_one(part: Part, other: Part) -> bool:
    """Tell whether two parts of a recording share more than half of the shorter; one without a length has no end."""
    starts = part[1], other[1]
    ends = [math.inf if length is None else offset + length for _, offset, length in (part, other)]
    shared = min(ends) - max(starts)
    return shared == math.inf or shared > min(end - start for start, end in zip(starts, ends, strict=True)) / 2


def _relative(path: Path, folder: Path) -> str:
    """Return a path relative to the folder, where there is such a one (not from one Windows drive to another)."""
    return os.path.relpath(path, folder) if path.anchor == folder.anchor else str(path)


def _division(config: PreprocessConfig) -> dict[str, Any]:
    """Return the settings that decide which parts there are and how they are divided."""
    return {"split": config.split, "by": sorted(config.by or []), "split_seconds": config.split_seconds}


def _told(division: dict[str, Any]) -> str:
    split, by, seconds = (division.get(name) for name in ("split", "by", "split_seconds"))
    words = ["as in the corpus, without --split"] if split is None else [f"by --split {split}"]
    words += [f"--by {key}" for key in by or []]
    return " ".join([*words, *([f"--split-seconds {seconds:g}"] if seconds else [])])
