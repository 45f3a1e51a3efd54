"""Utterances divided into train, dev and test so that no speaker, sentence or other key is in two of them."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from focusasr.manifest import Utterance
from focusasr.settings import SettingError

NAMES = {2: ("train", "dev"), 3: ("train", "dev", "test")}


def parse_shares(text: str) -> list[float]:
    """Return 90/5/5 as shares that add up to 1; SettingError where they are not two or three positive numbers."""
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) not in NAMES or min(numbers) <= 0 or abs(sum(numbers) - 100) > 0.5:
        raise SettingError("split", text, "TRAIN/DEV/TEST or TRAIN/DEV in percent, 100 in all, such as 90/5/5")
    return [number / sum(numbers) for number in numbers]


def divide(utterances: Sequence[Utterance], shares: Sequence[float], keys: Sequence[str]) -> list[str]:
    """Return the split of each utterance; utterances that share a value of any key go together.

    Groups are taken largest first, each to the split that lacks most of its share of the seconds; the same corpus
    gives the same splits in whatever order it is read. Without keys each utterance is a group. A key that no
    utterance has is a SettingError; one that some lack leaves those free.
    """
    check_keys(utterances, keys)
    groups = _connected(utterances, keys)
    members: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    weights = {group: sum(utterances[i].duration or 1.0 for i in own) for group, own in members.items()}
    order = sorted(members, key=lambda group: (-weights[group], _mark([utterances[i] for i in members[group]])))
    whole = sum(weights.values())
    room = [share * whole for share in shares]
    names = NAMES[len(shares)]
    chosen = [""] * len(utterances)
    for group in order:
        place = max(range(len(room)), key=lambda split: room[split] / shares[split])
        room[place] -= weights[group]
        for index in members[group]:
            chosen[index] = names[place]
    return chosen


def key_of(utterance: Utterance, key: str) -> str:
    """Return an utterance's value of a key as it counts for being the same; empty where it has none."""
    value = utterance.text.casefold() if key == "text" else utterance.extra.get(key)
    return "" if value is None else str(value)


def check_keys(utterances: Sequence[Utterance], keys: Sequence[str]) -> None:
    """Refuse a key that no utterance has: SettingError with those that there are."""
    for key in keys:
        if utterances and not any(key_of(utterance, key) for utterance in utterances):
            known = ["text", *sorted({name for utterance in utterances for name in utterance.extra})]
            raise SettingError("by", key, f"what an utterance has: {', '.join(known)}")


def _connected(utterances: Sequence[Utterance], keys: Sequence[str]) -> list[int]:
    """Return a group number for each utterance: one for all that are linked by equal values (union-find)."""
    parents = list(range(len(utterances)))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for key in keys:
        first: dict[str, int] = {}
        for index, utterance in enumerate(utterances):
            value = key_of(utterance, key)
            if value:
                parents[root(index)] = root(first.setdefault(value, index))
    return [root(index) for index in range(len(utterances))]


def _mark(members: Sequence[Utterance]) -> str:
    """Return what orders groups of one size: by chance, but always the same."""
    lines = sorted(f"{utterance.audio.name} {utterance.offset} {utterance.text}" for utterance in members)
    return hashlib.sha256("\n".join(lines).encode(errors="backslashreplace")).hexdigest()
