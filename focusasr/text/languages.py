"""Whisper's languages by their native names and by other codes."""

from __future__ import annotations


def table(text: str) -> dict[str, str]:
    """Return the codes of names, from a list such as "german de, english en"."""
    return {name: code for name, _, code in (entry.rpartition(" ") for entry in text.casefold().split(", "))}


OWN_NAMES = table(
    "Deutsch de, Français fr, Español es, Castellano es, Italiano it, Português pt, Nederlands nl, "
    "Vlaams nl, Dansk da, Svenska sv, Norsk no, Bokmål no, Suomi fi, Íslenska is, Føroyskt fo, Polski "
    "pl, Čeština cs, Slovenčina sk, Slovenščina sl, Hrvatski hr, Srpski sr, Српски sr, Bosanski bs, "
    "Македонски mk, Български bg, Русский ru, Українська uk, Беларуская be, Magyar hu, Română ro, "
    "Ελληνικά el, Türkçe tr, Azərbaycanca az, Қазақша kk, Oʻzbekcha uz, Татарча tt, Башҡортса ba, "
    "Монгол mn, Eesti et, Latviešu lv, Lietuvių lt, Shqip sq, Català ca, Galego gl, Euskara eu, "
    "Occitan oc, Brezhoneg br, Cymraeg cy, Malti mt, Lëtzebuergesch lb, Latina la, Afrikaans af, "
    "Kiswahili sw, Soomaali so, Yorùbá yo, Hausa ha, አማርኛ am, العربية ar, עברית he, ייִדיש yi, فارسی "
    "fa, پښتو ps, اردو ur, हिन्दी hi, हिंदी hi, मराठी mr, नेपाली ne, বাংলা bn, অসমীয়া as, ਪੰਜਾਬੀ pa, "
    "ગુજરાતી gu, தமிழ் ta, తెలుగు te, ಕನ್ನಡ kn, മലയാളം ml, සිංහල si, ไทย th, ລາວ lo, မြန်မာ my, ខ្មែរ "
    "km, བོད་སྐད bo, Tiếng Việt vi, Bahasa Indonesia id, Bahasa Melayu ms, Basa Jawa jw, Basa Sunda "
    "su, Tagalog tl, Filipino tl, Հայերեն hy, ქართული ka, Тоҷикӣ tg, Türkmençe tk, 中文 zh, 汉语 zh, 漢語 "
    "zh, 普通话 zh, 國語 zh, 粵語 yue, 广东话 yue, 日本語 ja, 한국어 ko, Kreyòl ayisyen ht, Māori mi, "
    "ʻŌlelo Hawaiʻi haw"
)
OTHER_CODES = {"iw": "he", "in": "id", "ji": "yi", "nb": "no", "jv": "jw", "fil": "tl", "cmn": "zh", "zh-hk": "yue"}


def without_region(code: str) -> str:
    """Return a lower-case language code without script and region, such as en for en-us."""
    code = code.replace("_", "-")
    return OTHER_CODES.get(code) or OTHER_CODES.get(code.partition("-")[0]) or code.partition("-")[0]
