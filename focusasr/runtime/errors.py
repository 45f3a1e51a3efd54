"""Errors of the user, each one line with the problem, the value and the remedy."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """A user's mistake or an invalid input: one line with the thing, the value and the remedy; exit status 1."""


class UsageError(InputError):
    """An invalid option or combination of options; exit status 2."""


class SettingError(UsageError):
    """An invalid value of a setting, named as in files and in Python; `typed` names it as an option."""

    def __init__(self, name: str, value: Any, wanted: str) -> None:
        self.name = name
        super().__init__(f"{name} is {quote(value)}; expected: {wanted}")
        self._value, self._wanted = value, wanted

    @property
    def typed(self) -> str:
        """The line with the setting as an option, as it is typed."""
        return f"{as_option(self.name, self._value)}; expected: {self._wanted}"


FAR = 0.25  # share of letters: a name that differs by more is no suggestion


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant, None if there is none.

    It has the lowest optimal string alignment distance (Damerau 1964), and the same first letter, which is rarely
    misspelled.
    """
    from rapidfuzz import process
    from rapidfuzz.distance import OSA

    alike = [one for one in known if one[:1] == name[:1]]
    found = process.extractOne(name[:LONGEST_SHOWN], alike, scorer=OSA.normalized_distance, score_cutoff=FAR)
    return found[0] if found else None


LONGEST_SHOWN = 200  # characters of a value in a message


def as_option(name: str, value: Any = None) -> str:
    """Return a setting as a command-line option, such as --batch-size 0."""
    flag = f"--{name.replace('_', '-')}"
    if value is None or isinstance(value, bool):
        return flag if value is not False else f"--no-{flag[2:]}"
    several = value if isinstance(value, (list, tuple)) else [value]
    words = [f"{one:.15g}" if isinstance(one, float) else shlex.quote(str(one)) for one in several]
    typed = " ".join([flag, *words])
    return typed if len(typed) <= LONGEST_SHOWN else f"{typed[:LONGEST_SHOWN]}…"


def quote(value: Any) -> str:
    """Return a value for a message: its repr, shortened to LONGEST_SHOWN characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or deep nesting
        return f"{type(value).__name__} too large to be shown"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
