"""Training corpora: usable utterances of manifests, and findings on the others."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from focusasr.audio.load import length_seconds
from focusasr.config import SAMPLE_RATE_HZ, SHORTEST_SAMPLES, ModelConfig
from focusasr.data.manifest import Utterance, read_utterances
from focusasr.runtime.errors import InputError, UsageError
from focusasr.runtime.files import real_path, write_lines
from focusasr.text.tokenizer import Tokenizer

BAD_LINE = "bad line in the manifest"
MOST_LINES = 5  # of those, in full
NO_TEXT = "empty text"
LEAST_SECONDS = 0.1  # no spoken word is shorter
UNREADABLE = frozenset(("no such audio file", "audio cannot be read", BAD_LINE))


@dataclass(frozen=True)
class Corpus:
    """The usable utterances of one manifest, and how often each is used per epoch."""

    name: str
    weight: float
    utterances: list[Utterance]
    tokens: list[list[int]]
    prompts: list[list[int]]  # prompt of the decoder before each text

    @property
    def seconds(self) -> float:
        """Return the total length of the utterances."""
        return sum(utterance.duration or 0.0 for utterance in self.utterances)


@dataclass
class Findings:
    """Utterances excluded from training, or suspicious, by reason."""

    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    suspect: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # but used for training

    def exclude(self, reason: str, utterance: Utterance) -> None:
        """Count one excluded utterance under its reason."""
        self.left_out[reason].append(utterance_name(utterance))

    def warn(self, reason: str, utterance: Utterance) -> None:
        """Count one suspicious utterance that is used for training."""
        self.suspect[reason].append(utterance_name(utterance))

    def unreadable(self) -> bool:
        """Return whether audio was missing or corrupt, which is an error and no choice."""
        return not UNREADABLE.isdisjoint(self.left_out)

    def lines(self) -> list[str]:
        """Return one line per reason, with the count and the first example; the first five of invalid lines."""
        kinds = (("left out", self.left_out), ("used, but look at", self.suspect))
        bad = [f"left out: {line}" for line in self.left_out.get(BAD_LINE, [])[:MOST_LINES]]
        return bad + [
            f"{what} {len(places)} ({reason}), such as {places[0]}"
            for what, kind in kinds
            for reason, places in kind.items()
            if places and (reason != BAD_LINE or len(places) > MOST_LINES)
        ]

    def write(self, path: Path) -> None:
        """Write one JSON line per excluded or suspicious utterance, whole or not at all."""
        kinds = ((False, self.left_out), (True, self.suspect))
        every = ((used, reason, place) for used, kind in kinds for reason in kind for place in kind[reason])
        rows = ({"utterance": place, "reason": reason, "used": used} for used, reason, place in every)
        write_lines(path, rows)


def utterance_name(utterance: Utterance) -> str:
    """Return the name of an utterance in messages: its file, and the offset if there is one."""
    return f"{utterance.audio} at {utterance.offset:g} s" if utterance.offset else str(utterance.audio)


def parse_manifest_option(option: str) -> tuple[Path, float]:
    """Split PATH or PATH=WEIGHT; the weight is how often each utterance is used per epoch."""
    path, equals, weight = option.rpartition("=")
    if not equals or Path(option).exists():
        return Path(option), 1.0
    try:
        number = float(weight)
    except ValueError:
        if not Path(path).exists():
            return Path(option), 1.0
        number = math.nan
    if not 0 < number < 1000:
        raise UsageError(f"manifest {option!r}: the weight is {weight}; expected: above 0 and below 1000")
    return Path(path), number


def read_texts(options: Sequence[str]) -> list[str]:
    """Return every text of the manifests, to train a tokenizer; InputError names an invalid line if there is none."""
    paths = [parse_manifest_option(option)[0] for option in options]
    bad: list[str] = []  # read_corpus reports them if others are valid
    read = [(path, *line) for path in paths for line in read_utterances(path, bad.append)]
    if not any(utterance.text.strip() for _, _, utterance in read):
        bad += [f"{path}, line {number}: the text is empty" for path, number, _ in read] or [
            f"{paths[0]}: has no lines"
        ]
        raise InputError(f"{bad[0]}; no text is left to train on")
    return [utterance.text for _, _, utterance in read]


def read_corpus(option: str, tokenizer: Tokenizer, model: ModelConfig, max_seconds: float, found: Findings) -> Corpus:
    """Read one manifest for training; unusable utterances are noted in `found` with the reason."""
    path, weight = parse_manifest_option(option)
    kept, tokens, prompts = [], [], []
    speaking = functools.cache(tokenizer.for_language)
    for number, utterance in read_utterances(path, lambda line: found.left_out[BAD_LINE].append(line)):
        ids = tokenizer.encode(utterance.text)
        prompt = speaking(utterance.language).prompt
        try:
            utterance = _with_duration(utterance)
            reason = _refusal(utterance, ids, model, max_seconds)
            if reason is None and len(ids) + len(prompt) > model.text_context:
                reason = f"text longer than text_context {model.text_context}"
        except InputError:
            reason = "audio cannot be read"
        if reason == NO_TEXT:
            found.left_out[reason].append(f"{path}, line {number}: {utterance_name(utterance)}")
        elif reason:
            found.exclude(reason, utterance)
        else:
            if tokenizer.unknown in ids:
                found.warn("text has characters that the tokenizer does not know", utterance)
            kept.append(utterance)
            tokens.append(ids)
            prompts.append(prompt)
    return Corpus(str(path), weight, kept, tokens, prompts)


def warn_duplicates(corpora: Sequence[Corpus], dev: Iterable[Utterance], found: Findings) -> None:
    """Report utterances that are repeated in the training manifests, or that are in a dev manifest too."""
    held_out = {_part_of_file(utterance) for utterance in dev}
    seen: set[tuple[str, float, int | None]] = set()
    for corpus in corpora:
        for utterance in corpus.utterances:
            part = _part_of_file(utterance)
            if part in seen:
                found.warn("stands twice in the training manifests", utterance)
            if part in held_out:
                found.warn("is in a dev manifest too: its WER will flatter", utterance)
            seen.add(part)


def _part_of_file(utterance: Utterance) -> tuple[str, float, int | None]:
    return real_path(utterance.audio), utterance.offset, utterance.channel


def _with_duration(utterance: Utterance) -> Utterance:
    """Return the utterance with its length, decoded if the header has none; InputError if that fails."""
    if utterance.duration is not None or not utterance.audio.is_file():
        return utterance
    return dataclasses.replace(utterance, duration=max(0.0, length_seconds(utterance.audio) - utterance.offset))


def _refusal(utterance: Utterance, ids: list[int], model: ModelConfig, max_seconds: float) -> str | None:
    """Return the reason for which an utterance is unusable, or None."""
    seconds = utterance.duration or 0.0
    repeats = sum(a == b for a, b in itertools.pairwise(ids))
    if not utterance.audio.is_file():
        return "no such audio file"
    if not ids:
        return NO_TEXT
    if seconds < LEAST_SECONDS:
        return f"less than {LEAST_SECONDS:g} s of sound"
    if seconds > max_seconds:
        return f"longer than max_seconds {max_seconds:g}"
    heard_seconds = max(seconds, SHORTEST_SAMPLES / SAMPLE_RATE_HZ)  # including the silence after a short one
    if model.ctc and heard_seconds < (len(ids) + repeats) * model.step_seconds:
        return "too short for its text"
    return None
