"""Checks of a corpus: faults of audio and text, duplicates, leaks between splits."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from focusasr.audio.source import Source
from focusasr.data.corpus import CorpusUtterance, Reject
from focusasr.data.loudness import LevelStats
from focusasr.data.manifest import Utterance
from focusasr.data.splits import key_of

SILENT_DB = -60.0  # mean power
CLIPPED_SHARE = 0.0005  # 8 samples per second
OFFSET = 0.01
# allowed error of the corpus's lengths: the larger of both
DURATION_SECONDS, DURATION_SHARE = 0.1, 0.01
RATE_DEVIATIONS = 6.0  # median absolute deviations from the median of the logarithm
FEWEST_FOR_RATES = 20
COMMAND_REPEATS, COMMANDS_SHARE = 5, 0.9  # repeats of one text, and share of utterances with such texts
SCRIPTS = dict.fromkeys(
    ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "IDEOGRAPHIC"), "CJK"
)  # used together in one language
OF_ANY_SCRIPT = ("MODIFIER", "FEMININE", "MASCULINE", "MICRO")
BROKEN = "\ufffd"

KINDS = (
    *("silent", "clipped", "dc offset", "mismatched duration", "foreign text", "speaking rate"),
    *("same sound", "same text and speaker", "speaker in two splits", "sentence in two splits"),
)


@dataclass
class PreparedUtterance:
    """An utterance on its way: found in a corpus, then with an output, then with its levels and manifest entry."""

    found: CorpusUtterance
    source: Source
    output: Path
    alone: bool = True  # whether no other utterance is in the same file
    measured: LevelStats = field(init=False)
    utterance: Utterance = field(init=False)

    def finish(self, measured: LevelStats) -> None:
        """Add the levels of the output, and the entry of the manifest."""
        extra = {("source_channel" if key == "channel" else key): v for key, v in self.found.utterance.extra.items()}
        self.measured = measured
        self.utterance = Utterance(self.output, self.found.utterance.text, 0.0, measured.seconds, extra)

    def reject(self, kind: str, reason: str) -> Reject:
        """Return the reject of a finished output."""
        return Reject(kind, f"{self.output.name}: {reason}", self.output, self.utterance.text)

    @property
    def rate(self) -> float:
        """The number of characters per second."""
        return len(self.utterance.text) / max(self.measured.seconds, 1e-9)


@dataclass(frozen=True)
class Finding:
    """A problem of one utterance (its index among those kept): the kind, one of KINDS, and one line."""

    index: int
    kind: str
    reason: str


def check(kept: Sequence[PreparedUtterance]) -> list[Finding]:
    """Return every finding, in the order of KINDS."""
    found = [finding for index, one in enumerate(kept) for finding in _of_one(index, one)]
    found += [*_foreign(kept), *_rates(kept), *_repeats(kept), *_leaks(kept, "speaker"), *_leaks(kept, "text")]
    found = [replace(one, reason=f"{kept[one.index].utterance.audio.name}: {one.reason}") for one in found]
    return sorted(found, key=lambda finding: (KINDS.index(finding.kind), finding.index))


def _of_one(index: int, one: PreparedUtterance) -> Iterator[Finding]:
    sound = one.measured
    if sound.rms_db < SILENT_DB:
        yield Finding(index, "silent", f"{sound.rms_db:.0f} dB of full scale, below {SILENT_DB:.0f}")
    if sound.clipped > CLIPPED_SHARE:
        yield Finding(index, "clipped", f"{100 * sound.clipped:.2f} % of its samples are at full scale")
    if abs(sound.offset) > OFFSET:
        yield Finding(index, "dc offset", f"its mean is {sound.offset:+.3f} of full scale, not 0")
    told = one.found.told_seconds
    if told is not None and abs(told - sound.source_seconds) > max(DURATION_SECONDS, DURATION_SHARE * told):
        reason = f"{sound.source_seconds:.2f} s long, but {told:.2f} s in the corpus"
        yield Finding(index, "mismatched duration", reason)


def _foreign(kept: Sequence[PreparedUtterance]) -> Iterator[Finding]:
    """Find texts with letters of another script than most of their language's, and lost characters."""
    scripts = [Counter(_scripts(one.utterance.text)) for one in kept]
    usual: dict[str, Counter[str]] = defaultdict(Counter)
    for one, found in zip(kept, scripts, strict=True):
        usual[key_of(one.utterance, "language")].update(found)
    for index, (one, found) in enumerate(zip(kept, scripts, strict=True)):
        if BROKEN in one.utterance.text:
            yield Finding(index, "foreign text", f"a character that was lost in some conversion ({BROKEN})")
            continue
        own = usual[key_of(one.utterance, "language")].most_common(1)
        others = [script for script in found if own and script != own[0][0]]
        if others:
            reason = f"letters that are {others[0].lower()}, while most are {own[0][0].lower()}"
            yield Finding(index, "foreign text", reason)


def _scripts(text: str) -> Iterator[str]:
    """Yield the script of each letter, from the first word of its Unicode name."""
    for char in text:
        if unicodedata.category(char)[0] == "L":
            name = unicodedata.name(char, "UNKNOWN").removeprefix("HALFWIDTH ").removeprefix("FULLWIDTH ")
            script = name.split()[0]
            if script not in OF_ANY_SCRIPT:
                yield SCRIPTS.get(script, script)


def _rates(kept: Sequence[PreparedUtterance]) -> Iterator[Finding]:
    """Find texts with far too many or too few characters per second for their language."""
    by_language: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for index, one in enumerate(kept):
        by_language[key_of(one.utterance, "language")].append((index, math.log(max(one.rate, 1e-3))))
    for several in by_language.values():
        if len(several) < FEWEST_FOR_RATES:
            continue
        middle = median(value for _, value in several)
        spread = max(1.4826 * median(abs(value - middle) for _, value in several), 0.1)
        for index, value in several:
            if abs(value - middle) > RATE_DEVIATIONS * spread:
                seen = f"{kept[index].rate:.1f} characters per second, the median is {math.exp(middle):.1f}"
                yield Finding(index, "speaking rate", f"{seen}. Check that the text belongs to it.")


def _repeats(kept: Sequence[PreparedUtterance]) -> Iterator[Finding]:
    """Find all but the first of those with the same samples, or the same text by the same speaker."""
    sounds: dict[str, int] = {}
    texts: dict[tuple[str, str], int] = {}
    for index, one in enumerate(kept):
        first = sounds.setdefault(one.measured.digest, index)
        if first != index:
            yield Finding(index, "same sound", f"the same samples as {kept[first].utterance.audio.name}")
            continue
        speaker = key_of(one.utterance, "speaker")
        if speaker:
            first = texts.setdefault((speaker, key_of(one.utterance, "text")), index)
            if first != index:
                reason = f"{speaker} speaks the same text in {kept[first].utterance.audio.name}"
                yield Finding(index, "same text and speaker", reason)


def _leaks(kept: Sequence[PreparedUtterance], key: str) -> Iterator[Finding]:
    """Find speakers or sentences in several splits, in all but the smallest: train loses them, test keeps them."""
    if key == "text" and _are_commands(kept):
        return
    sizes = Counter(key_of(one.utterance, "split") for one in kept)
    homes: dict[str, set[str]] = defaultdict(set)
    for one in kept:
        homes[key_of(one.utterance, key)].add(key_of(one.utterance, "split"))
    kind = "sentence in two splits" if key == "text" else f"{key} in two splits"
    for index, one in enumerate(kept):
        value, split = key_of(one.utterance, key), key_of(one.utterance, "split")
        several = sorted(home for home in homes[value] if home)
        if value and split and len(several) > 1 and split != min(several, key=lambda home: (sizes[home], home)):
            yield Finding(index, kind, f"{value[:40]!r} is in {' and '.join(several)}")


def _are_commands(kept: Sequence[PreparedUtterance]) -> bool:
    """Return whether nearly every text is one of a few, as in corpora of commands or digits, which all splits share."""
    repeats = Counter(key_of(one.utterance, "text") for one in kept)
    return sum(count for count in repeats.values() if count >= COMMAND_REPEATS) > COMMANDS_SHARE * len(kept)
