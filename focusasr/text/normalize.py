"""Case and punctuation policy of texts before tokenization."""

from __future__ import annotations

import re
import unicodedata

from focusasr.config import TextConfig

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u00b4": "'", "`": "'"})
_EDGE_APOSTROPHES = re.compile(r"(?<!\S)'+|'+(?!\S)")
_INVISIBLE_SPACE = "\u200b"  # the only format character that separates words


def apply_policy(text: str, policy: TextConfig) -> str:
    """Return `text` in NFC with collapsed spaces, in the policy's case, and without punctuation if it removes that.

    Letters and numbers of any script stay with their marks; of punctuation and symbols only the apostrophe inside a
    word stays. Format characters (soft hyphens, joiners, directions) are removed.
    """
    text = unicodedata.normalize("NFC", text)
    if policy.case == "lower":
        text = text.lower()
    elif policy.case == "upper":
        text = text.upper()
    if policy.punctuation == "remove":
        text = _EDGE_APOSTROPHES.sub(" ", _words_alone(text.translate(_APOSTROPHES)))
    return " ".join(unicodedata.normalize("NFC", text).split())  # case and removals may need NFC again


def _words_alone(text: str) -> str:
    """Return letters, numbers, marks on them and apostrophes, with a space for anything else."""
    kept: list[str] = []
    for char in text:
        category = unicodedata.category(char)
        on_letter = bool(kept) and kept[-1] not in " '"
        if category[0] in "LN" or char == "'" or (on_letter and category in ("Mn", "Mc") and not _is_selector(char)):
            kept.append(char)
        elif category[0] not in "CM" or category == "Cc" or char == _INVISIBLE_SPACE:
            kept.append(" ")
    return "".join(kept)


def _is_selector(char: str) -> bool:
    """Return whether a character is a variation selector, which chooses between text and emoji style."""
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
