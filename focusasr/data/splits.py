"""Train, dev and test sets by speaker or text, stable across runs."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from focusasr.audio.source import Source
from focusasr.config import PreprocessConfig, TextConfig
from focusasr.data.manifest import Utterance
from focusasr.runtime.console import pluralize
from focusasr.runtime.errors import InputError, SettingError
from focusasr.runtime.files import append_line, read_lines, real_path
from focusasr.text.normalize import apply_policy

BARE = TextConfig(case="lower", punctuation="remove")
NAMES = {2: ("train", "dev"), 3: ("train", "dev", "test")}

RECORD = ".prepared.jsonl"
Part = tuple[str, float, float | None]  # of a recording; the path is relative to the folder, so both can be moved


def parse_shares(text: str) -> list[float]:
    """Return 90/5/5 as shares that sum to 1; SettingError unless they are two or three positive numbers."""
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) not in NAMES or not all(number > 0 for number in numbers) or not abs(sum(numbers) - 100) <= 0.5:
        raise SettingError("split", text, "TRAIN/DEV/TEST or TRAIN/DEV in percent, 100 in all, such as 90/5/5")
    return [number / sum(numbers) for number in numbers]


def divide(
    utterances: Sequence[Utterance],
    shares: Sequence[float],
    keys: Sequence[str],
    parts: Sequence[Hashable] = (),
    homes: Mapping[Any, str] = MappingProxyType({}),
) -> list[str]:
    """Return the split of each utterance; utterances that share a value of any key, or are one part, go together.

    Groups are assigned largest first, each to the split that lacks most of its share of the seconds. The same corpus
    gives the same splits in any order. Without keys each utterance is a group. A part of a recording with a split in
    `homes` keeps it, and its group joins it. A new utterance that would link two such splits gets "". SettingError for
    a key that no utterance has; utterances without a key are not linked by it.
    """
    check_keys(utterances, keys)
    names = NAMES[len(shares)]
    parts = parts or range(len(utterances))
    at_home = [home if (home := homes.get(part, "")) in names else "" for part in parts]
    values = [[(key, value) for key in keys if (value := key_of(one, key))] for one in utterances]
    groups = _connected([[*own, part] for own, part in zip(values, parts, strict=True)], at_home)
    members: dict[int, list[int]] = defaultdict(list)
    drawn: dict[int, str] = {}
    for index, group in enumerate(groups):
        if group is not None:
            members[group].append(index)
            drawn[group] = drawn.get(group) or at_home[index]
    weights = {group: sum(utterances[i].duration or 1.0 for i in own) for group, own in members.items()}
    order = sorted(members, key=lambda group: (-weights[group], _mark([utterances[i] for i in members[group]])))
    whole = sum(weights.values())
    room = {name: share * whole for name, share in zip(names, shares, strict=True)}
    for group in order:
        if drawn[group]:
            room[drawn[group]] -= weights[group]
    wanted = dict(zip(names, shares, strict=True))
    for group in order:
        if not drawn[group]:
            drawn[group] = max(names, key=lambda name: room[name] / wanted[name])
            room[drawn[group]] -= weights[group]
    return [home or ("" if group is None else drawn[group]) for home, group in zip(at_home, groups, strict=True)]


def key_of(utterance: Utterance, key: str) -> str:
    """Return an utterance's value of a key in the form used for comparison; empty if it has none.

    Sentences that differ only in case, punctuation or the encoding of accents are equal.
    """
    value = utterance.extra.get(key)
    if key == "text":
        value = apply_policy(utterance.text.casefold(), BARE) or utterance.text
    return "" if value is None else unicodedata.normalize("NFC", str(value)).strip()


def check_keys(utterances: Sequence[Utterance], keys: Sequence[str]) -> None:
    """Check that some utterance has each key: SettingError with the existing keys."""
    for key in keys:
        if utterances and not any(key_of(utterance, key) for utterance in utterances):
            known = ["text", *sorted({name for utterance in utterances for name in utterance.extra})]
            told = "another key in a table's column, a manifest, or each recording's .json instead of .txt"
            wanted = f"a key of the utterances: {', '.join(known)}; or {told}, as in "
            raise SettingError("by", key, wanted + '{"text": "...", "speaker": "anna"}')


def _connected(values: Sequence[Sequence[Hashable]], homes: Sequence[str]) -> list[int | None]:
    """Return a group number for each; all that are linked by equal values share one (union-find).

    Those with a home are processed first, whatever links them. Of the others, one that would link two homes gets None.
    """
    parents = list(range(len(values)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first: dict[Hashable, int] = {}
    homes_of = [{home} - {""} for home in homes]  # of the group, if an index is a root
    between = set()
    for index in sorted(range(len(values)), key=lambda index: not homes[index]):
        roots = {index, *(root(first[value]) for value in values[index] if value in first)}
        together = set[str]().union(*(homes_of[one] for one in roots))
        if len(together) > 1 and not homes[index]:
            between.add(index)
            continue
        for one in roots:
            parents[one] = index
        homes_of[index] = together
        first.update(dict.fromkeys(values[index], index))
    return [None if index in between else root(index) for index in range(len(values))]


def _mark(members: Sequence[Utterance]) -> str:
    """Return a sort key for groups of equal size: pseudo-random but reproducible."""
    lines = sorted(f"{utterance.audio.name} {utterance.offset} {utterance.text}" for utterance in members)
    return hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()


class _Gone(NamedTuple):
    """Parts of one recording that are no longer in the corpus, sorted by start, and the longest length."""

    parts: list[Part]
    starts: list[float]
    longest: float

    @classmethod
    def of(cls, parts: Sequence[Part]) -> _Gone:
        ordered = sorted(parts, key=lambda part: part[1])
        return cls(ordered, [part[1] for part in ordered], max(_end(part) - part[1] for part in parts))


class SplitHistory:
    """The record of earlier runs in an output folder, which keeps every utterance in its split."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.homes: dict[Part, str] = {}  # the split of each part, of all runs
        self._gone: dict[str, _Gone] = {}  # parts that are no longer in the corpus, by recording
        self.remarks: list[str] = []  # for the user
        self._inputs: list[str] = []
        self._division: dict[str, Any] = {}
        self._written: list[str] = []
        self._sources: Mapping[Path, Source] = {}
        for line in read_lines(folder / RECORD):
            with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):  # a record of another version
                self._inputs = [str(given) for given in line.get("inputs", self._inputs)]
                self._division = dict(line.get("division", self._division))
                self._written = [str(name) for name in line.get("written", self._written)]
                self.homes.update({(path, offset, length): home for path, offset, length, home in line.get("in", ())})

    def check(self, inputs: Sequence[str | Path] | None, config: PreprocessConfig) -> None:
        """Check that the split settings and inputs agree with those of earlier runs.

        Inputs are None if the folder has no outputs yet.
        """
        now = [Path(given).resolve() for given in inputs or ()]
        before = [Path(os.path.normpath(self.folder / given)) for given in self._inputs if inputs is not None]
        lost = [path for path in before if not any(path == one or one in path.parents for one in now)]
        gone = [path for path in lost if not path.exists()]
        if lost and (len(gone) < len(lost) or lost == before):
            other = next((path for path in lost if path not in gone), lost[0])
            raise InputError(
                f"{self.folder}: was made from {other}, which is not among the inputs. Name it too, or choose another "
                "--output-dir."
            )
        if self.homes and self._division != _division(config):
            raise InputError(
                f"{self.folder}: its utterances are divided {_told(self._division)}. Use the same options, or choose "
                "another --output-dir, so that no utterance moves from test to train."
            )

    def check_owned(self, names: Iterable[str]) -> None:
        """Check that existing files to be overwritten were written by an earlier run."""
        there = [name for name in sorted(names) if name not in self._written and (self.folder / name).exists()]
        # Read the record again: another process may have written the files since.
        foreign = set(there).difference(SplitHistory(self.folder)._written) if there else ()
        if foreign:
            names = sorted(foreign)
            raise InputError(
                f"{self.folder}: {', '.join(names)} would be overwritten, and no earlier run here is known to have "
                "written that. Move it away, or choose another --output-dir."
            )

    def claim_new(self, outputs: Iterable[Path]) -> None:
        """Check that no output exists before the first run; after a killed run any of them may."""
        there = [] if self._inputs else [output for output in outputs if os.path.exists(output)]
        if there and not SplitHistory(self.folder)._inputs:
            raise InputError(
                f"{there[0]}: would be overwritten, and no earlier run here is known to have written it. Move it "
                "away, or choose another --output-dir."
            )

    def begin(self, inputs: Sequence[str | Path], config: PreprocessConfig, sources: Mapping[Path, Source]) -> None:
        """Record the inputs and split settings; `sources` maps each output to its source."""
        self._sources = sources
        now = {self._exact(source) for source in sources.values()}
        gone: dict[str, list[Part]] = defaultdict(list)
        for part in self.homes.keys() - now:
            gone[part[0]].append(part)
        self._gone = {path: _Gone.of(parts) for path, parts in gone.items()}
        told = [_relative(Path(given).resolve(), self.folder) for given in inputs]
        if (told, _division(config)) != (self._inputs, self._division):
            append_line(self.folder / RECORD, {"inputs": told, "division": _division(config)})

    def part(self, utterance: Utterance) -> Part:
        """Return the part of a recording that a finished utterance is, or a missing part that mostly overlaps with it.

        So a part keeps its identity if its length becomes known or its times are corrected.
        """
        part = self._exact(self._sources[utterance.audio])
        if part in self.homes or part[0] not in self._gone:
            return part
        gone = self._gone[part[0]]
        near = gone.parts[bisect_left(gone.starts, part[1] - gone.longest) : bisect_left(gone.starts, _end(part))]
        best = max(near, key=lambda other: _shared(part, other), default=part)
        return best if _shared(part, best) else part

    def _exact(self, source: Source) -> Part:
        return _relative(Path(real_path(source.path)), self.folder), source.offset, source.duration

    def record(self, splits: Mapping[str, Sequence[Utterance]], names: Sequence[str]) -> None:
        """Record the members of each split and the files to be written; delete the files of splits that are gone."""
        moved: dict[tuple[str, str], list[Utterance]] = defaultdict(list)
        news: list[tuple[str, float, float | None, str]] = []
        for split, utterances in splits.items():
            for utterance in utterances:
                part = self.part(utterance)
                home = self.homes.get(part)
                if home != split:
                    news.append((*part, split))
                if home not in (split, None):
                    moved[str(home), split].append(utterance)
        for (home, split), several in moved.items():
            told = f"{pluralize(len(several), 'utterance')}, such as {several[0].audio.name}"
            self.remarks.append(f"moved from {home} to {split}: {told}. Train again.")
        for name in set(self._written).difference(names):
            (self.folder / name).unlink(missing_ok=True)
        if news or sorted(names) != self._written:
            append_line(self.folder / RECORD, {"written": sorted(names), "in": news})

    def left(self, outputs: Iterable[Path]) -> None:
        """Add a remark about outputs of earlier runs that are in no manifest now."""
        there = [output for output in outputs if output not in self._sources and output.is_file()]
        if there:
            files = f"{pluralize(len(there), 'file')} of earlier runs"
            self.remarks.append(f"{files} in no manifest now, such as {there[0]}. Delete unneeded ones.")


def _end(part: Part) -> float:
    return math.inf if part[2] is None else part[1] + part[2]


def _shared(part: Part, other: Part) -> float:
    """Return the seconds that two parts of a recording share, 0 if that is not most of the shorter one."""
    shared = min(_end(part), _end(other)) - max(part[1], other[1])
    mostly = shared == math.inf or shared > min(_end(part) - part[1], _end(other) - other[1]) / 2
    return shared if mostly else 0.0


def _relative(path: Path, folder: Path) -> str:
    """Return a path relative to the folder, or absolute if there is none (between Windows drives)."""
    return os.path.relpath(path, folder) if path.anchor == folder.anchor else str(path)


def _division(config: PreprocessConfig) -> dict[str, Any]:
    return {"split": config.split, "by": sorted(config.by or []), "split_seconds": config.split_seconds}


def _told(division: dict[str, Any]) -> str:
    split, by, seconds = (division.get(name) for name in ("split", "by", "split_seconds"))
    words = ["as in the corpus, without --split"] if split is None else [f"by --split {split}"]
    words += [f"--by {key}" for key in by or []]
    return " ".join([*words, *([f"--split-seconds {seconds:g}"] if seconds else [])])
