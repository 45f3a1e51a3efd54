"""The languages that Whisper knows, by code and by name: what people type after --language."""

from __future__ import annotations

import difflib

from focusasr.settings import SettingError

NAMES = (
    "english en, chinese zh, german de, spanish es, russian ru, korean ko, french fr, japanese ja, portuguese pt, "
    "turkish tr, polish pl, catalan ca, dutch nl, arabic ar, swedish sv, italian it, indonesian id, hindi hi, finnish "
    "fi, vietnamese vi, hebrew he, ukrainian uk, greek el, malay ms, czech cs, romanian ro, danish da, hungarian hu, "
    "tamil ta, norwegian no, thai th, urdu ur, croatian hr, bulgarian bg, lithuanian lt, latin la, maori mi, "
    "malayalam ml, welsh cy, slovak sk, telugu te, persian fa, latvian lv, bengali bn, serbian sr, azerbaijani az, "
    "slovenian sl, kannada kn, estonian et, macedonian mk, breton br, basque eu, icelandic is, armenian hy, nepali "
    "ne, mongolian mn, bosnian bs, kazakh kk, albanian sq, swahili sw, galician gl, marathi mr, punjabi pa, sinhala "
    "si, khmer km, shona sn, yoruba yo, somali so, afrikaans af, occitan oc, georgian ka, belarusian be, tajik tg, "
    "sindhi sd, gujarati gu, amharic am, yiddish yi, lao lo, uzbek uz, faroese fo, haitian creole ht, pashto ps, "
    "turkmen tk, nynorsk nn, maltese mt, sanskrit sa, luxembourgish lb, myanmar my, tibetan bo, tagalog tl, malagasy "
    "mg, assamese as, tatar tt, hawaiian haw, lingala ln, hausa ha, bashkir ba, javanese jw, sundanese su, cantonese "
    "yue"
)
OTHER_NAMES = (
    "burmese my, valencian ca, flemish nl, haitian ht, letzeburgesch lb, pushto ps, panjabi pa, moldavian ro, "
    "moldovan ro, sinhalese si, castilian es, mandarin zh"
)


def _table(text: str) -> dict[str, str]:
    pairs = [entry.rpartition(" ") for entry in text.split(", ")]
    return {name: code for name, _, code in pairs}


CODES = _table(NAMES) | _table(OTHER_NAMES)  # name → code


def language_code(given: str) -> str:
    """Return the code of a language given by code or English name, in any case; SettingError with the nearest name."""
    wanted = given.strip().lower()
    if wanted in CODES.values():
        return wanted
    if wanted not in CODES:
        near = difflib.get_close_matches(wanted, CODES, n=1)
        hint = f"; did you mean {near[0].title()}?" if near else ""
        raise SettingError("language", given, f"a code such as en or a name such as English{hint}")
    return CODES[wanted]
