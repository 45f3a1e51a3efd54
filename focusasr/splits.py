"""Utterances divided into train, dev and test so that no speaker, sentence or other key is in two of them."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from focusasr.config import TextConfig
from focusasr.manifest import Utterance
from focusasr.settings import SettingError
from focusasr.text import apply_policy

BARE = TextConfig(case="lower", punctuation="remove")
NAMES = {2: ("train", "dev"), 3: ("train", "dev", "test")}


def parse_shares(text: str) -> list[float]:
    """Return 90/5/5 as shares that add up to 1; SettingError where they are not two or three positive numbers."""
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

    Groups are taken largest first, each to the split that lacks most of its share of the seconds; the same corpus
    gives the same splits in whatever order it is read. Without keys each utterance is a group. What is at home in a
    split by its part (of a recording) stays there and draws its group along; a newcomer that would link two homes gets
    none, "". A key that no utterance has is a SettingError; one that some lack leaves those free.
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
    """Return an utterance's value of a key as it counts for being the same; empty where it has none.

    Sentences that differ in case, punctuation or the way accents are encoded are the same.
    """
    value = utterance.extra.get(key)
    if key == "text":
        value = apply_policy(utterance.text.casefold(), BARE) or utterance.text
    return "" if value is None else unicodedata.normalize("NFC", str(value)).strip()


def check_keys(utterances: Sequence[Utterance], keys: Sequence[str]) -> None:
    """Refuse a key that no utterance has: SettingError with those that there are."""
    for key in keys:
        if utterances and not any(key_of(utterance, key) for utterance in utterances):
            known = ["text", *sorted({name for utterance in utterances for name in utterance.extra})]
            told = "tell it in a table's column or a manifest, or beside each recording in a .json in place of a .txt"
            wanted = f"what an utterance has: {', '.join(known)}; or {told}, as in "
            raise SettingError("by", key, wanted + '{"text": "...", "speaker": "anna"}')


def _connected(values: Sequence[Sequence[Hashable]], homes: Sequence[str]) -> list[int | None]:
    """Return a group number for each: one for all that are linked by equal values (union-find).

    Those at home come first, whatever links them; of the others, one that would link two homes gets None.
    """
    parents = list(range(len(values)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    first: dict[Hashable, int] = {}
    homes_of = [{home} - {""} for home in homes]  # of the group, where an index is a root
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
    """Return what orders groups of one size: by chance, but always the same."""
    lines = sorted(f"{utterance.audio.name} {utterance.offset} {utterance.text}" for utterance in members)
    return hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()
