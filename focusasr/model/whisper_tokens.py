"""Tokenizers and generation settings of Whisper checkpoints of any format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine

from focusasr.config import ModelConfig, TextConfig, WhisperConfig
from focusasr.runtime.errors import InputError
from focusasr.runtime.files import read_json, read_text
from focusasr.runtime.settings import read_settings
from focusasr.text.whisper_tokenizer import (
    ENGLISH_VOCABULARY,
    LANGUAGE_CODES,
    Task,
    WhisperTokenizer,
    document_from_parts,
    engine_from_pieces,
    openai_engine,
    read_merges,
    special_tokens,
)

# (decoder layers, heads, tokens) → layer.head of the cross-attention heads for alignment, as published by OpenAI.
ALIGNMENT_HEADS = {
    (4, 6, 51_864): "1.0 2.0 2.5 3.0 3.1 3.2 3.3 3.4",  # tiny.en
    (4, 6, 51_865): "2.2 3.0 3.2 3.3 3.4 3.5",  # tiny
    (6, 8, 51_864): "3.3 4.7 5.1 5.5 5.7",  # base.en
    (6, 8, 51_865): "3.1 4.2 4.3 4.7 5.1 5.2 5.4 5.6",  # base
    (12, 12, 51_864): "6.6 7.0 7.3 7.8 8.2 8.5 8.7 9.0 9.4 9.8 9.10 10.0 10.1 10.2 10.3 10.6 10.11 11.2 11.4",
    (12, 12, 51_865): "5.3 5.9 8.0 8.4 8.7 8.8 9.0 9.7 9.9 10.5",  # small, after small.en
    (24, 16, 51_864): "11.4 14.1 14.12 14.14 15.4 16.0 16.4 16.9 17.12 17.14 18.7 18.10 18.15 20.0 20.3 20.9 20.14 "
    "21.12",
    (24, 16, 51_865): "13.15 15.4 15.15 16.1 20.0 23.4",  # medium, after medium.en
    (32, 20, 51_865): "10.12 13.17 16.11 16.12 16.13 17.15 17.16 18.4 18.11 18.19 19.11 21.2 21.3 22.3 22.9 22.12 23.5 "
    "23.7 23.13 25.5 26.1 26.12 27.15",  # large-v2
    (32, 20, 51_866): "7.0 10.17 12.18 13.12 16.1 17.14 19.11 21.4 24.1 25.6",  # large-v3
    (4, 20, 51_866): "2.4 2.11 3.3 3.6 3.11 3.14",  # large-v3-turbo
}
LARGE_V1_HEADS = "9.19 11.2 11.4 11.17 22.7 22.11 22.17 23.2 23.15"  # large-v2 has the same shape


def default_alignment_heads(settings: ModelConfig, name: str = "") -> list[tuple[int, int]]:
    """Return the heads that OpenAI published for a model of this shape, else every head of the decoder's second half.

    `name` distinguishes large-v1 from large-v2, which have the same shape.
    """
    published = ALIGNMENT_HEADS.get((settings.decoder_layers, settings.heads, settings.vocabulary))
    if published is None:
        layers = range(settings.decoder_layers // 2, settings.decoder_layers)
        return [(layer, head) for layer in layers for head in range(settings.heads)]
    if settings.decoder_layers == 32 and "large-v1" in name:
        published = LARGE_V1_HEADS
    return [(int(layer), int(head)) for layer, head in (pair.split(".") for pair in published.split())]


def whisper_policy(settings: ModelConfig, multilingual: bool) -> TextConfig:
    """Return Whisper's text policy: unchanged text, and English for .en models."""
    language = None if multilingual else "en"
    return TextConfig("keep", "keep", "bpe", language=language, vocabulary_size=settings.vocabulary)


def check_generation(whisper: WhisperConfig, settings: ModelConfig, where: Path) -> None:
    """Raise InputError for tokens and heads that the model does not have."""
    forced = [token for _, token in whisper.forced_decoder_ids]
    tokens = {"suppress_tokens": whisper.suppress_tokens, "begin_suppress_tokens": whisper.begin_suppress_tokens}
    for name, ids in {**tokens, "forced_decoder_ids": forced}.items():
        bad = [id for id in ids if not 0 <= id < settings.vocabulary]
        if bad:
            raise InputError(f"{where}: {name} has {bad[0]}, but the model has {settings.vocabulary} tokens")
    for layer, head in whisper.alignment_heads:
        if not (0 <= layer < settings.decoder_layers and 0 <= head < settings.heads):
            shape = f"{settings.decoder_layers} decoder layers of {settings.heads} heads"
            raise InputError(f"{where}: alignment_heads has {[layer, head]}, but the model has {shape}")


def tokenizer_of_engine(engine: Engine, settings: ModelConfig, name: str) -> WhisperTokenizer:
    """Return the tokenizer of a file without generation settings, with those of OpenAI's models."""
    multilingual = settings.vocabulary > ENGLISH_VOCABULARY
    policy = whisper_policy(settings, multilingual)
    plain = WhisperTokenizer(engine, policy, WhisperConfig(multilingual=multilingual))
    never = [plain.transcribe, plain.translate, plain.start, plain.sot_prev, plain.sot_lm, plain.no_speech]
    whisper = WhisperConfig(
        multilingual=multilingual,
        suppress_tokens=sorted({*plain.non_speech_tokens(), *never}),
        begin_suppress_tokens=[*plain.encode_exactly(" "), plain.end],
        alignment_heads=default_alignment_heads(settings, name),
    )
    return WhisperTokenizer(engine, policy, whisper)


def tokenizer_of_folder(folder: Path, generation: Mapping[str, Any], settings: ModelConfig) -> WhisperTokenizer:
    """Return the tokenizer of a folder, with settings under the names of generation_config.json.

    A folder without a vocabulary has OpenAI's. InputError if files do not fit each other.
    """
    multilingual = bool(generation.get("is_multilingual", settings.vocabulary > ENGLISH_VOCABULARY))
    whisper = _generation_settings(folder, generation, settings, multilingual)
    policy = whisper_policy(settings, multilingual)
    try:
        document = _document(folder)
        if document is not None:
            tokenizer = WhisperTokenizer.from_document(document, policy, whisper, settings.vocabulary)
        else:
            tokenizer = WhisperTokenizer(_engine(folder, settings.vocabulary), policy, whisper)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    return tokenizer.speaking(_language(tokenizer, generation), _task(tokenizer, generation))


def _generation_settings(
    folder: Path, generation: Mapping[str, Any], settings: ModelConfig, multilingual: bool
) -> WhisperConfig:
    forced = generation.get("forced_decoder_ids") or []
    if isinstance(forced, list):  # a position without a token is not forced
        forced = [pair for pair in forced if not (isinstance(pair, list) and None in pair)]
    default_heads = default_alignment_heads(settings, str(folder))
    kept = {
        "suppress_tokens": generation.get("suppress_tokens") or [],
        "begin_suppress_tokens": generation.get("begin_suppress_tokens") or [],
        "forced_decoder_ids": forced,
        "alignment_heads": generation.get("alignment_heads") or default_heads,
    }
    initial = generation.get("max_initial_timestamp_index")
    if initial is not None:
        kept["max_initial_timestamp_index"] = initial
    whisper = read_settings(
        WhisperConfig, {"multilingual": multilingual, **kept}, str(folder / "generation_config.json")
    )
    if any(layer >= settings.decoder_layers for layer, _ in whisper.alignment_heads):  # from a teacher with more layers
        whisper = replace(whisper, alignment_heads=default_heads)
    check_generation(whisper, settings, folder)
    return whisper


def optional_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None without the file."""
    return read_json(path) if path.is_file() else None


def _document(folder: Path) -> str | None:
    """Return the text of tokenizer.json, or one built from vocab.json and merges.txt; None without these."""
    if (folder / "tokenizer.json").is_file():
        return read_text(folder / "tokenizer.json")
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        return None
    pieces = read_json(folder / "vocab.json")
    added = optional_json(folder / "added_tokens.json") or {}
    if not added:
        specials = special_tokens(99)
        first = pieces.get(specials[0], len(pieces))
        if type(first) is not int:
            raise InputError(f"vocab.json: {specials[0]} is {first!r}; expected: a number; copy the folder again")
        added = {name: first + place for place, name in enumerate(specials)}
    return document_from_parts(pieces, read_merges(read_text(folder / "merges.txt")), added)


def _engine(folder: Path, vocabulary: int) -> Engine:
    """Return the engine of vocabulary.txt or vocabulary.json, CTranslate2's lists of tokens, else OpenAI's."""
    for name, read in (("vocabulary.json", _listed_json), ("vocabulary.txt", _listed_text)):
        if (folder / name).is_file():
            return engine_from_pieces(read(folder / name), vocabulary)
    try:
        return openai_engine(vocabulary)
    except InputError as error:
        raise InputError(
            f"tokenizer.json is missing, and so are vocab.json and merges.txt, and OpenAI's vocabulary does not fit "
            f"({error}). Copy the folder again."
        ) from None


def _listed_text(path: Path) -> list[str]:
    return read_text(path).removesuffix("\n").split("\n")


def _listed_json(path: Path) -> list[str]:
    pieces = read_json(path, list)
    if not all(isinstance(piece, str) for piece in pieces):
        raise InputError(f"{path.name}: has tokens that are no text. Copy it again.")
    return pieces


def _language(tokenizer: WhisperTokenizer, generation: Mapping[str, Any]) -> str | None:
    """Return the language of a fine-tuned model if its generation settings force one, else None."""
    forced = {token for _, token in tokenizer.whisper.forced_decoder_ids}
    named = str(generation.get("language") or "").strip("<|>").lower()
    named = LANGUAGE_CODES.get(named, named)
    return next((code for code, id in tokenizer.languages.items() if id in forced or code == named), None)


def _task(tokenizer: WhisperTokenizer, generation: Mapping[str, Any]) -> Task:
    forced = {token for _, token in tokenizer.whisper.forced_decoder_ids}
    return "translate" if tokenizer.translate in forced or generation.get("task") == "translate" else "transcribe"
