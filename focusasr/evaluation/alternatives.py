"""References with alternatives in sclite's format: {one / 1 / @} and optional words."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace

from focusasr.data.manifest import Utterance
from focusasr.evaluation.wer import count_errors, normalizer

SUFFIXES = frozenset((".stm", ".trn"))  # files whose references may have alternatives
CHOICE = re.compile(r"\{([^{}]*)\}|(?<!\S)\(([^(){}]+)\)(?!\S)")
MOST_TEXTS = 256  # combinations tried per reference; beyond them each choice is independent


def has_choices(text: str) -> bool:
    """Return whether a reference has alternatives."""
    return CHOICE.search(text) is not None


def resolve(utterances: Sequence[Utterance], texts: Sequence[str | None], rules: str) -> list[Utterance]:
    """Return the utterances with the alternatives nearest to their hypotheses, after the normalizer `rules`."""
    return [
        replace(one, text=best_text(one.text, text or "", rules)) if has_choices(one.text) else one
        for one, text in zip(utterances, texts, strict=True)
    ]


def best_text(reference: str, hypothesis: str, rules: str = "none") -> str:
    """Return the alternative text with the fewest word errors, the first of equals."""
    rewrite = normalizer(rules)
    compared = rewrite(hypothesis)
    fixed, choices = _parsed(reference)

    def errors(chosen: Sequence[str]) -> int:
        return count_errors(rewrite(_joined(fixed, chosen)), compared).count

    if math.prod(map(len, choices)) <= MOST_TEXTS:
        return _joined(fixed, min(itertools.product(*choices), key=errors))
    chosen = [options[0] for options in choices]
    for place, options in enumerate(choices):
        chosen[place] = min(options, key=lambda option: errors([*chosen[:place], option, *chosen[place + 1 :]]))
    return _joined(fixed, chosen)


def _parsed(reference: str) -> tuple[list[str], list[list[str]]]:
    """Return the texts around the choices, and the options of each choice."""
    fixed, choices, end = [], [], 0
    for match in CHOICE.finditer(reference):
        fixed.append(reference[end : match.start()])
        options = [match[2], "@"] if match[1] is None else re.split(r"(?:^|\s)/(?=\s|$)", match[1])
        choices.append([option.strip().removeprefix("@") for option in options])
        end = match.end()
    return [*fixed, reference[end:]], choices


def _joined(fixed: Sequence[str], chosen: Sequence[str]) -> str:
    parts = [part for pair in itertools.zip_longest(fixed, chosen, fillvalue="") for part in pair]
    return " ".join(" ".join(parts).split())
