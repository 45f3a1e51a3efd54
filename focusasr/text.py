"""Transcripts as text: the case and punctuation policy, applied the same way wherever text becomes tokens."""

from __future__ import annotations

import re
import unicodedata

from focusasr.config import TextConfig

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u00b4": "'", "`": "'"})
_EDGE_APOSTROPHES = re.compile(r"(?<!\w)'+|'+(?!\w)")


def apply_policy(text: str, policy: TextConfig) -> str:
    """Return `text` composed (NFC), spaces collapsed, in the policy's case, without punctuation where it says so.

    Letters, marks and numbers of any script stay; of punctuation and symbols only the apostrophe inside a word does.
    """
    text = unicodedata.normalize("NFC", text)
    if policy.case == "lower":
        text = text.lower()
    elif policy.case == "upper":
        text = text.upper()
    if policy.punctuation == "remove":
        kept = (char if _is_wordlike(char) else " " for char in text.translate(_APOSTROPHES))
        text = _EDGE_APOSTROPHES.sub(" ", "".join(kept))
    return " ".join(text.split())


def _is_wordlike(char: str) -> bool:
    return char == "'" or unicodedata.category(char)[0] in "LMN"
