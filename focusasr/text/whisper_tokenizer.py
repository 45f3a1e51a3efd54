"""Whisper's tokenizer, byte-level BPE with special tokens, from Hugging Face's or OpenAI's files."""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import itertools
import json
import lzma
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from focusasr.config import TextConfig, WhisperConfig
from focusasr.runtime.errors import InputError, SettingError, nearest
from focusasr.text.languages import OWN_NAMES, table, without_region
from focusasr.text.normalize import apply_policy
from focusasr.text.tokenizer import Tokenizer, check_ids

LANGUAGE_NAMES = table(  # in the order of their tokens; large-v3 added the last one
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
LANGUAGE_CODES = LANGUAGE_NAMES | table(
    "burmese my, valencian ca, flemish nl, haitian ht, letzeburgesch lb, pushto ps, panjabi pa, moldavian ro, "
    "moldovan ro, sinhalese si, castilian es, mandarin zh"
)
LANGUAGES = list(LANGUAGE_NAMES.values())
Task = Literal["translate", "transcribe"]
TASKS = get_args(Task)
TIMESTAMPS = [f"<|{step // 50}.{step % 50 * 2:02}|>" for step in range(1501)]  # 0.00 to 30.00, 20 ms apart
ENGLISH_RANKS = 50_256  # tokens of text; multilingual vocabularies have one more
MERGES = Path(__file__).parent / "merges"  # see NOTICE.txt there
MOST_SPLITTING = 20_000_000  # sum of squared token lengths; OpenAI's vocabularies have 3 million
OTHER_NAMES = {"<|nospeech|>": "<|nocaptions|>", "<|he|>": "<|iw|>"}  # as in the first conversions

Merge = tuple[str, str]


def special_tokens(languages: int) -> list[str]:
    """Return Whisper's special tokens in the order of their ids, for a vocabulary with `languages` languages."""
    names = ("startoflm", "startofprev", "nospeech", "notimestamps")
    middle = [f"<|{name}|>" for name in (*LANGUAGES[:languages], *TASKS, *names)]
    return ["<|endoftext|>", "<|startoftranscript|>", *middle, *TIMESTAMPS]


ENGLISH_VOCABULARY = ENGLISH_RANKS + len(special_tokens(99))  # multilingual ones are larger


class WhisperTokenizer(Tokenizer):
    """Whisper's tokenizer for one language and task, with its generation settings.

    `start` and `end` are the decoder's. Whisper has no blank and, with byte-level BPE, no unknown token: both names
    give `end`. InputError if a special token is missing.
    """

    def __init__(self, engine: Engine, policy: TextConfig, whisper: WhisperConfig) -> None:
        engine.encode_special_tokens = True  # "<|endoftext|>" in a text is plain text
        self.engine = engine
        self.policy = policy
        self.whisper = whisper
        self.start = self.token("<|startoftranscript|>")
        self.end = self.blank = self.unknown = self.token("<|endoftext|>")
        self.transcribe, self.translate = self.token("<|transcribe|>"), self.token("<|translate|>")
        self.sot_lm, self.sot_prev = self.token("<|startoflm|>"), self.token("<|startofprev|>")
        self.no_speech, self.no_timestamps = self.token("<|nospeech|>"), self.token("<|notimestamps|>")
        self.timestamp_begin = self.token("<|0.00|>")
        ids = {code: self._id(f"<|{code}|>") for code in LANGUAGES}
        self.languages = {code: int(index) for code, index in ids.items() if index is not None}
        if policy.language is not None and policy.language not in self.languages:
            raise SettingError("language", policy.language, f"one of {' '.join(self.languages)}")

    def token(self, name: str) -> int:
        """Return the id of a special token such as "<|nospeech|>"."""
        index = self._id(name)
        if index is None:
            raise InputError(f"tokenizer.json lacks the special token {name!r}; use the tokenizer of a Whisper model")
        return index

    def _id(self, name: str) -> int | None:
        names = (name, OTHER_NAMES.get(name, name))
        return next((id for id in map(self.engine.token_to_id, names) if id is not None), None)

    @property
    def separator(self) -> list[int]:
        """Return the tokens that join two encoded texts: none, since each starts with its own space."""
        return []

    @property
    def sot_sequence(self) -> list[int]:
        """Return the first tokens of a transcript: start and, in multilingual models, language and task.

        The language is English if the policy has none.
        """
        if not self.whisper.multilingual:
            return [self.start]
        language = self.languages[self.policy.language or "en"]
        return [self.start, language, self.transcribe if self.whisper.task == "transcribe" else self.translate]

    @property
    def prompt(self) -> list[int]:
        """Return the tokens before the first token of a text without timestamps."""
        return [*self.sot_sequence, self.no_timestamps]

    def speaking(self, language: str | None = None, task: Task | None = None) -> WhisperTokenizer:
        """Return the tokenizer for another language or task; SettingError if the language has no token."""
        policy = dataclasses.replace(self.policy, language=language or self.policy.language)
        whisper = dataclasses.replace(self.whisper, task=task or self.whisper.task)
        return WhisperTokenizer(self.engine, policy, whisper)

    def for_language(self, language: str | None) -> WhisperTokenizer:
        """Return the tokenizer for an utterance in this language, given by code, name or tag such as de-DE.

        For an unknown language, or in an English-only model, it is this tokenizer.
        """
        if not self.whisper.multilingual or not language or language == self.policy.language:
            return self
        with contextlib.suppress(SettingError):
            return self.speaking(language_code(language))
        return self

    def encode(self, text: str) -> list[int]:
        """Return the ids of a transcript after the policy, with a leading space as in Whisper."""
        return self.encode_exactly(" " + apply_policy(text, self.policy)) if text.strip() else []

    def encode_exactly(self, text: str) -> list[int]:
        """Return the ids of `text` unchanged, as in OpenAI's tokenizer."""
        return self.engine.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` without special tokens and surrounding spaces."""
        return self.decode_exactly(tokens).strip()

    def decode_exactly(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` with its spaces, without special tokens and timestamps."""
        return self.engine.decode(list(tokens), skip_special_tokens=True)

    def decode_with_specials(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` with special tokens and timestamps, such as <|1.08|>."""
        return self.engine.decode(list(tokens), skip_special_tokens=False)

    def non_speech_tokens(self) -> list[int]:
        """Return the tokens of OpenAI's `suppress_tokens="-1"`: brackets, notes, dashes and the like.

        A symbol is included with and without a space before it if it is one token; of notes the first token is
        included, which all miscellaneous symbols share. A hyphen or apostrophe is excluded only before a word.
        """
        signs = [
            *'"#()*+/:;<=>@[\\]^_`{|}~「」『』',
            *"<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }}".split(),
        ]
        notes = [*"♩♪♫♬♭♮♯", "♪♪", "♪♪♪"]
        found = {self.encode_exactly(" -")[0], self.encode_exactly(" '")[0]}
        for sign in (*signs, *notes):
            for written in (sign, " " + sign):
                ids = self.encode_exactly(written)
                if len(ids) == 1 or (sign in notes and len(sign) == 1):
                    found.add(ids[0])
        return sorted(found)

    @classmethod
    def from_document(
        cls, text: str, policy: TextConfig, whisper: WhisperConfig, vocabulary: int | None = None
    ) -> WhisperTokenizer:
        """Read the text of tokenizer.json; `vocabulary` is the number of tokens in the weights.

        Timestamps, which the first conversions lack, are added. InputError if it is not a Whisper tokenizer or has
        another number of tokens.
        """
        try:
            document = json.loads(text)
            pieces, merges = document["model"]["vocab"], document["model"]["merges"]
            specials = {str(added["content"]): int(added["id"]) for added in document["added_tokens"]}
            pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
            return cls(build_engine(pieces, pairs, specials, vocabulary), policy, whisper)  # type: ignore[arg-type]
        except InputError:
            raise
        except Exception as error:  # the library raises bare Exception
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(f"tokenizer.json cannot be read ({reason}); copy it again") from None


def build_engine(
    pieces: Mapping[str, int], merges: Sequence[Merge], specials: Mapping[str, int], vocabulary: int | None = None
) -> Engine:
    """Return the engine of byte-level BPE with special tokens at their ids; InputError if ids do not fit.

    Missing timestamps are added at the end. InputError if the number of tokens is not `vocabulary`, if given.
    """
    named = dict(specials)
    if "<|notimestamps|>" in named and not named.keys() & set(TIMESTAMPS):
        first = named["<|notimestamps|>"] + 1
        named |= {name: first + step for step, name in enumerate(TIMESTAMPS)}
    engine = Engine(models.BPE(dict(pieces), list(merges)))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    ordered = sorted(named, key=named.__getitem__)
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ordered])
    for name in ordered:
        if engine.token_to_id(name) != named[name]:
            raise InputError(
                f"the special token {name!r} should have id {named[name]}, and would get {engine.token_to_id(name)}; "
                "tokenizer and vocabulary belong to different models"
            )
    check_ids(engine)
    if vocabulary is not None and engine.get_vocab_size() != vocabulary:
        raise InputError(
            f"the tokenizer has {engine.get_vocab_size()} tokens, the weights {vocabulary}; "
            "they belong to different models"
        )
    return engine


def openai_engine(vocabulary: int) -> Engine:
    """Return the engine of OpenAI's vocabulary with `vocabulary` tokens, from the merges in this package.

    InputError if OpenAI has no vocabulary of this size.
    """
    multilingual = vocabulary > ENGLISH_VOCABULARY
    packed = (MERGES / f"{'multilingual' if multilingual else 'english'}.xz").read_bytes()
    pieces, merges = sorted(byte_letters()), []  # the order of GPT-2's first tokens
    for left, right in struct.iter_unpack("<HH", lzma.decompress(packed)):
        merges.append((pieces[left], pieces[right]))
        pieces.append(pieces[left] + pieces[right])
    return _with_openai_specials(pieces + [""] * multilingual, merges, vocabulary)


def engine_from_ranks(text: str, vocabulary: int) -> Engine:
    """Return the engine for OpenAI's ranks (per line: base64 of the bytes, rank); InputError if malformed."""
    try:
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, text.splitlines())}
    except (ValueError, binascii.Error) as error:
        raise InputError(f"not a file of ranks ({error}); install openai-whisper again") from None
    return engine_from_tokens(sorted(ranks, key=ranks.__getitem__), vocabulary)


def engine_from_tokens(tokens: Sequence[bytes], vocabulary: int) -> Engine:
    """Return the engine for the bytes of all text tokens, in the order of their ids.

    OpenAI's special tokens follow; the size of the vocabulary gives the number of languages. InputError if the tokens
    are not merges of each other, or do not fit the size.
    """
    letters = byte_letters()
    pieces = ["".join(letters[byte] for byte in token) for token in tokens]
    return _with_openai_specials(pieces, _merges(tokens), vocabulary)


def engine_from_pieces(pieces: Sequence[str], vocabulary: int) -> Engine:
    """Return the engine for a vocabulary in the order of its ids, in byte letters, with special tokens at the end."""
    bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    end = pieces.index("<|endoftext|>") if "<|endoftext|>" in pieces else len(pieces)
    try:
        tokens = [bytes(bytes_of[letter] for letter in piece) for piece in pieces[:end]]
    except KeyError as error:
        raise InputError(f"the vocabulary has {error.args[0]!r}, which stands for no byte. Copy it again.") from None
    numbered = {piece: id for id, piece in enumerate(pieces)}
    text = {piece: numbered[piece] for piece in pieces[:end]}
    return build_engine(text, _merges(tokens), {name: numbered[name] for name in pieces[end:]}, vocabulary)


def _with_openai_specials(pieces: Sequence[str], merges: Sequence[Merge], vocabulary: int) -> Engine:
    languages = vocabulary - len(pieces) - len(special_tokens(0))
    if not 0 < languages <= len(LANGUAGES):
        raise InputError(f"the weights have {vocabulary} tokens, which {len(pieces)} ranks do not lead to")
    specials = {name: len(pieces) + place for place, name in enumerate(special_tokens(languages))}
    return build_engine({piece: id for id, piece in enumerate(pieces)}, merges, specials, vocabulary)


def _merges(tokens: Sequence[bytes]) -> list[Merge]:
    """Return the merges for tokens that are given in the order of their ids."""
    if sum(len(token) ** 2 for token in tokens) > MOST_SPLITTING:
        raise InputError("the vocabulary has tokens that are too long. Copy it again.")
    ranks = {token: rank for rank, token in enumerate(tokens)}
    letters = byte_letters()
    pairs = [split_by_rank(token, ranks) for token in tokens if len(token) > 1]
    return [tuple("".join(letters[byte] for byte in part) for part in pair) for pair in pairs]  # type: ignore[misc]


def split_by_rank(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens whose merge gives `token`: the parts left by all merges of lower rank."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        place = min(range(len(joined)), key=joined.__getitem__)
        if joined[place] >= ranks[token]:
            break
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    if len(parts) > 2 or not all(part in ranks for part in parts):
        raise InputError(f"the ranks make no way to the token {token!r}; copy the vocabulary again")
    return parts[0], parts[1]


def byte_letters() -> list[str]:
    """Return the letter of each byte in byte-level BPE (GPT-2): itself if it is printable.

    The others are, in order, the letters from U+0100.
    """
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, spare = [], 0x100
    for byte in range(256):
        letters.append(chr(byte) if byte in seen else chr(spare))
        spare += byte not in seen
    return letters


def read_merges(text: str) -> list[Merge]:
    """Return the pairs of a merges.txt; its first line may be a comment."""
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#version")]
    pairs = [tuple(line.split(" ")) for line in lines]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError("merges.txt has lines that are not two tokens; copy it again")
    return pairs  # type: ignore[return-value]


def document_from_parts(pieces: Mapping[str, int], merges: Sequence[Merge], added: Mapping[str, int]) -> str:
    """Return the text of a tokenizer.json for vocab.json, merges.txt and added_tokens.json."""
    model: dict[str, Any] = {"vocab": dict(pieces), "merges": [" ".join(pair) for pair in merges]}
    return json.dumps({"model": model, "added_tokens": [{"content": name, "id": id} for name, id in added.items()]})


def language_name(code: str) -> str:
    """Return the English name of a Whisper language, such as German for de."""
    return next((name.title() for name, own in LANGUAGE_NAMES.items() if own == code), code)


def language_code(given: str) -> str:
    """Return the code of a language given by code, with or without region, or by its English or native name.

    Case is ignored. SettingError, with the nearest name, if the language is unknown.
    """
    wanted = given.strip().casefold()
    names = {**OWN_NAMES, **LANGUAGE_CODES}
    if wanted in names:
        return names[wanted]
    if (code := without_region(wanted)) in LANGUAGE_CODES.values():
        return code
    near = nearest(wanted, names)
    hint = f"; did you mean {near.title()}?" if near else ""
    raise SettingError("language", given, f"a code such as en or a name such as English{hint}")
