"""Whisper's weights, as the model classes of this package: Hugging Face folders, the hub, and OpenAI's .pt files."""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from focusasr.config import SAMPLE_RATE_HZ, ModelConfig, TextConfig, WhisperConfig
from focusasr.features import FFT_SAMPLES, HOP_SAMPLES
from focusasr.files import read_json, read_text
from focusasr.model import Model
from focusasr.settings import InputError, read_settings
from focusasr.whisper_tokenizer import (
    ENGLISH_RANKS,
    Task,
    WhisperTokenizer,
    document_from_parts,
    engine_from_ranks,
    read_merges,
    special_tokens,
)

HUB_FILES = [
    "config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors",
    "model.safetensors.index.json", "model-*-of-*.safetensors", "tokenizer.json", "vocab.json", "merges.txt",
    "added_tokens.json", "metrics.json", "README.md",
]  # fmt: skip
ENGLISH_VOCABULARY = ENGLISH_RANKS + len(special_tokens(99))  # multilingual ones are larger

# Their names → ours. Layers: {encoder,decoder}.{layers,blocks}.N.REST, where REST is one of these.
HUGGING_FACE_PARTS = {
    "self_attn_layer_norm": "attention.ln_global", "self_attn.q_proj": "attention.attn_global.query",
    "self_attn.k_proj": "attention.attn_global.key", "self_attn.v_proj": "attention.attn_global.value",
    "self_attn.out_proj": "attention.attn_global.out", "encoder_attn_layer_norm": "ln_cross",
    "encoder_attn.q_proj": "cross.query", "encoder_attn.k_proj": "cross.key", "encoder_attn.v_proj": "cross.value",
    "encoder_attn.out_proj": "cross.out", "final_layer_norm": "mlp.0", "fc1": "mlp.1", "fc2": "mlp.3",
}  # fmt: skip
OPENAI_PARTS = {
    "attn_ln": "attention.ln_global", "attn.query": "attention.attn_global.query",
    "attn.key": "attention.attn_global.key", "attn.value": "attention.attn_global.value",
    "attn.out": "attention.attn_global.out", "cross_attn_ln": "ln_cross", "cross_attn.query": "cross.query",
    "cross_attn.key": "cross.key", "cross_attn.value": "cross.value", "cross_attn.out": "cross.out",
    "mlp_ln": "mlp.0", "mlp.0": "mlp.1", "mlp.2": "mlp.3",
}  # fmt: skip
HUGGING_FACE_REST = {
    "encoder.conv1": "encoder.stem.conv1", "encoder.conv2": "encoder.stem.conv2",
    "encoder.layer_norm": "encoder.ln_post", "decoder.layer_norm": "decoder.ln",
    "decoder.embed_tokens": "decoder.token_embedding",
}  # fmt: skip
OPENAI_REST = {"encoder.conv1": "encoder.stem.conv1", "encoder.conv2": "encoder.stem.conv2"}
WHOLE_NAMES = {
    "encoder.embed_positions.weight": "encoder.positions", "encoder.positional_embedding": "encoder.positions",
    "decoder.embed_positions.weight": "decoder.positional_embedding",
}  # fmt: skip

Read = Callable[[], Tensor]


class Weight(NamedTuple):
    """A weight as it lies in a file: its shape, and how to read it."""

    shape: tuple[int, ...]
    read: Read


class Pieces(NamedTuple):
    """What a Whisper checkpoint from elsewhere consists of."""

    model: Model
    tokenizer: WhisperTokenizer
    card: str


def is_whisper(path: Path) -> bool:
    """Return whether a file or folder is a Whisper checkpoint of another house: .pt, or config.json of that type."""
    if path.is_file():
        return path.suffix == ".pt"
    return (path / "config.json").is_file() and "model_type" in read_json(path / "config.json")


def load_whisper(path: Path, device: str = "cpu") -> Pieces:
    """Read a Hugging Face folder or OpenAI's .pt; InputError names what is missing, broken or of another shape."""
    return _load_openai(path, device) if path.is_file() else _load_hugging_face(path, device)


def download(name: str, local_files_only: bool = False, cache: Path | None = None) -> Path:
    """Return the folder of a repository on the hub, such as openai/whisper-tiny.en, fetched or from the cache,
    the hub's usual one or `cache`.

    InputError where it is neither.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=local_files_only, cache_dir=cache)
        )
    except Exception as error:  # the library passes on those of its HTTP client
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        asked = "leave --local-files-only out" if local_files_only else "check name and connection"
        raise InputError(
            f"{name}: no such checkpoint folder here, nor in the hub's cache, and the hub gives none ({reason}); "
            f"{asked}, or give --model FOLDER"
        ) from None


def translated(name: str, parts: Mapping[str, str], rest: Mapping[str, str]) -> str | None:
    """Return our name of one of their weights; None for one that we do not have."""
    name = name.removeprefix("model.")
    if name in WHOLE_NAMES:
        return WHOLE_NAMES[name]
    stem, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"(encoder|decoder)\.(?:layers|blocks)\.(\d+)\.(.+)", stem)
    if layer:
        part = parts.get(layer[3])
        return part and f"{layer[1]}.blocks.{layer[2]}.{part}.{kind}"
    return f"{rest[stem]}.{kind}" if stem in rest else name


def fill(model: Model, weights: Mapping[str, Weight], where: Path) -> None:
    """Give `model`, on the meta device, its weights in float32; InputError where names or shapes differ."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(wanted.keys() | weights.keys()):
        found = weights[name].shape if name in weights else None
        if wanted.get(name) != found:
            raise InputError(
                f"{where}: weight {name} has shape {found}, the configuration wants {wanted.get(name)}; "
                "the files belong to different models, or it is no Whisper model"
            )
    model.load_state_dict({name: weights[name].read().float() for name in wanted}, assign=True)


def _load_hugging_face(folder: Path, device: str) -> Pieces:
    config = read_json(folder / "config.json")
    if config.get("model_type") != "whisper":
        raise InputError(f"{folder}: model_type is {config.get('model_type')!r}; wanted: 'whisper'")
    _check_front_end(folder, config)
    generation = _optional_json(folder / "generation_config.json") or config
    with contextlib.ExitStack() as files:
        named = dict(_safetensors(folder, device, files))
        weights: dict[str, Weight] = {}
        for name, weight in named.items():
            ours = translated(name, HUGGING_FACE_PARTS, HUGGING_FACE_REST)
            if name != "proj_out.weight":
                weights[ours or name] = weight
        embedding = weights.get("decoder.token_embedding.weight")
        if embedding is None or len(embedding.shape) != 2:
            raise InputError(f"{folder}: the weights hold no token embedding; it is no whole Whisper model")
        _check_tied(named.get("proj_out.weight"), embedding, folder)
        settings = _hugging_face_settings(config, embedding.shape[0], folder / "config.json")
        model = _empty(settings)
        fill(model, weights, folder)
    return Pieces(model.eval(), _hugging_face_tokenizer(folder, generation, settings), _card(folder.name, model))


def _safetensors(folder: Path, device: str, files: contextlib.ExitStack) -> Iterator[tuple[str, Weight]]:
    """Yield the weights of model.safetensors or of its shards, with their names; the files stay open in `files`."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        shards = [single.name]
    elif index.is_file():
        shards = sorted({str(shard) for shard in read_json(index).get("weight_map", {}).values()})
    else:
        raise InputError(
            f"{folder}: model.safetensors is missing; copy the folder again, or save it anew with safe_serialization"
        )
    for shard in shards:
        path = folder / Path(shard).name
        if not path.is_file():
            raise InputError(f"{folder}: the shard {path.name} is missing; copy the folder again")
        try:
            file = files.enter_context(safe_open(path, framework="pt", device=device))
        except SafetensorError as error:
            raise InputError(f"{path}: not a whole safetensors file ({error}); copy it again") from None
        for name in file.keys():  # noqa: SIM118
            shape = tuple(file.get_slice(name).get_shape())
            yield name, Weight(shape, lambda file=file, name=name: file.get_tensor(name))  # type: ignore[misc]


def _check_tied(output: Weight | None, embedding: Weight, folder: Path) -> None:
    """Refuse an output embedding of its own: Whisper's is the input embedding."""
    if output is not None and not torch.equal(output.read(), embedding.read()):
        raise InputError(f"{folder}: proj_out differs from the token embedding; wanted: a model with both tied")


def _check_front_end(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a preprocessor that makes other frames than ours."""
    ours = {"n_fft": FFT_SAMPLES, "hop_length": HOP_SAMPLES, "sampling_rate": SAMPLE_RATE_HZ}
    ours["feature_size"] = config.get("num_mel_bins", 80)
    theirs = _optional_json(folder / "preprocessor_config.json") or {}
    for name, value in ours.items():
        if theirs.get(name, value) != value:
            raise InputError(f"{folder / 'preprocessor_config.json'}: {name} is {theirs[name]}; wanted: {value}")


def _hugging_face_settings(config: Mapping[str, Any], vocabulary: int, where: Path) -> ModelConfig:
    wanted = {
        "activation_function": "gelu", "scale_embedding": False,
        "decoder_attention_heads": config.get("encoder_attention_heads"),
        "encoder_ffn_dim": 4 * int(config.get("d_model", 0)), "decoder_ffn_dim": 4 * int(config.get("d_model", 0)),
    }  # fmt: skip
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise InputError(f"{where}: {name} is {config[name]!r}; wanted: {value!r}, as in Whisper's own models")
    ours = {
        "mel_bands": "num_mel_bins", "width": "d_model", "heads": "encoder_attention_heads",
        "encoder_layers": "encoder_layers", "decoder_layers": "decoder_layers",
        "audio_context": "max_source_positions", "text_context": "max_target_positions",
    }  # fmt: skip
    return _settings({name: config.get(theirs) for name, theirs in ours.items()}, vocabulary, where)


def _settings(shape: Mapping[str, Any], vocabulary: int, where: Path) -> ModelConfig:
    """Return Whisper's configuration of our classes for one of its shapes."""
    lacking = [name for name, value in shape.items() if value is None]
    if lacking:
        raise InputError(f"{where}: says nothing of the model's {lacking[0]}; copy it again")
    whisper = {
        "vocabulary": vocabulary, "strides": (1, 2), "attention": "global", "decoder_attention": "global",
        "conv_kernel": 0, "positions": "absolute", "ctc": False, "dropout": 0.0,
    }  # fmt: skip
    return read_settings(ModelConfig, {**whisper, **shape}, str(where))


def _empty(settings: ModelConfig) -> Model:
    with torch.device("meta"):
        return Model(settings)


def _optional_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _hugging_face_tokenizer(folder: Path, generation: Mapping[str, Any], settings: ModelConfig) -> WhisperTokenizer:
    multilingual = bool(generation.get("is_multilingual", settings.vocabulary > ENGLISH_VOCABULARY))
    forced = [tuple(pair) for pair in generation.get("forced_decoder_ids") or [] if None not in pair]
    kept = {
        "suppress_tokens": generation.get("suppress_tokens") or [],
        "begin_suppress_tokens": generation.get("begin_suppress_tokens") or [],
        "forced_decoder_ids": forced,
        "alignment_heads": generation.get("alignment_heads") or _later_heads(settings),
    }
    initial = generation.get("max_initial_timestamp_index")
    if initial is not None:
        kept["max_initial_timestamp_index"] = initial
    whisper = read_settings(
        WhisperConfig, {"multilingual": multilingual, **kept}, str(folder / "generation_config.json")
    )
    policy = _policy(settings, multilingual)
    try:
        tokenizer = WhisperTokenizer.from_document(_document(folder), policy, whisper, settings.vocabulary)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    return tokenizer.speaking(_language(tokenizer, generation), _task(tokenizer, generation))


def _policy(settings: ModelConfig, multilingual: bool) -> TextConfig:
    language = None if multilingual else "en"
    return TextConfig("keep", "keep", "bpe", language=language, vocabulary_size=settings.vocabulary)


def _document(folder: Path) -> str:
    """Return the text of tokenizer.json, or of one made from vocab.json and merges.txt."""
    if (folder / "tokenizer.json").is_file():
        return read_text(folder / "tokenizer.json")
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        raise InputError("tokenizer.json is missing, and so are vocab.json and merges.txt; copy the folder again")
    pieces = read_json(folder / "vocab.json")
    added = _optional_json(folder / "added_tokens.json") or {}
    if not added:
        specials = special_tokens(99)
        first = pieces.get(specials[0], len(pieces))
        added = {name: first + place for place, name in enumerate(specials)}
    return document_from_parts(pieces, read_merges(read_text(folder / "merges.txt")), added)


def _language(tokenizer: WhisperTokenizer, generation: Mapping[str, Any]) -> str | None:
    """Return the language that a fine-tuned model was made for, where its generation settings force one."""
    forced = {token for _, token in tokenizer.whisper.forced_decoder_ids}
    said = str(generation.get("language") or "").strip("<|>")
    return next((code for code, id in tokenizer.languages.items() if id in forced or code == said), None)


def _task(tokenizer: WhisperTokenizer, generation: Mapping[str, Any]) -> Task:
    forced = {token for _, token in tokenizer.whisper.forced_decoder_ids}
    return "translate" if tokenizer.translate in forced or generation.get("task") == "translate" else "transcribe"


def _later_heads(settings: ModelConfig) -> list[tuple[int, int]]:
    """Return every head of the later half of the decoder: OpenAI's choice where nobody looked for better ones."""
    layers = range(settings.decoder_layers // 2, settings.decoder_layers)
    return [(layer, head) for layer in layers for head in range(settings.heads)]


def _load_openai(path: Path, device: str) -> Pieces:
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        dims, state = dict(saved["dims"]), dict(saved["model_state_dict"])
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path}: not one of OpenAI's .pt files, or it would run code when read ({reason}); "
            "wanted: dims and model_state_dict"
        ) from None
    for audio, text in (("n_audio_state", "n_text_state"), ("n_audio_head", "n_text_head")):
        if dims.get(audio) != dims.get(text):
            raise InputError(f"{path}: {audio} is {dims.get(audio)}, {text} {dims.get(text)}; wanted: the same")
    ours = {
        "mel_bands": "n_mels", "width": "n_audio_state", "heads": "n_audio_head", "encoder_layers": "n_audio_layer",
        "decoder_layers": "n_text_layer", "audio_context": "n_audio_ctx", "text_context": "n_text_ctx",
    }  # fmt: skip
    vocabulary = len(state.get("decoder.token_embedding.weight", ()))
    settings = _settings({name: dims.get(theirs) for name, theirs in ours.items()}, vocabulary, path)
    model = _empty(settings)
    weights = {
        translated(name, OPENAI_PARTS, OPENAI_REST) or name: Weight(tuple(value.shape), lambda value=value: value)  # type: ignore[misc]
        for name, value in state.items()
    }
    fill(model, weights, path)
    return Pieces(model.eval(), _openai_tokenizer(path, settings), _card(path.stem, model))


def _openai_tokenizer(path: Path, settings: ModelConfig) -> WhisperTokenizer:
    multilingual = settings.vocabulary > ENGLISH_VOCABULARY
    ranks = _find_ranks(path, "multilingual.tiktoken" if multilingual else "gpt2.tiktoken")
    try:
        engine = engine_from_ranks(read_text(ranks), settings.vocabulary)
    except InputError as error:
        raise InputError(f"{path}: {ranks}: {error}") from None
    policy = _policy(settings, multilingual)
    plain = WhisperTokenizer(engine, policy, WhisperConfig(multilingual=multilingual))
    never = [plain.transcribe, plain.translate, plain.start, plain.sot_prev, plain.sot_lm, plain.no_speech]
    whisper = WhisperConfig(
        multilingual=multilingual,
        suppress_tokens=sorted({*plain.non_speech_tokens(), *never}),
        begin_suppress_tokens=[*plain.encode_exactly(" "), plain.end],
        alignment_heads=_published_heads(path.stem, settings) or _later_heads(settings),
    )
    return WhisperTokenizer(engine, policy, whisper)


def _find_ranks(path: Path, name: str) -> Path:
    """Return OpenAI's vocabulary file: beside the weights, or inside the installed package openai-whisper."""
    spec = importlib.util.find_spec("whisper")
    places = [path.parent, *(Path(place) / "assets" for place in (spec and spec.submodule_search_locations) or ())]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise InputError(
        f"{path}: a .pt file has no vocabulary; put {name} beside it, or 'pip install openai-whisper', which has it"
    )


def _published_heads(name: str, settings: ModelConfig) -> list[tuple[int, int]]:
    """Return the alignment heads that OpenAI published for a model of this name; none where that is not known."""
    if importlib.util.find_spec("whisper") is None:
        return []
    import whisper

    if name not in getattr(whisper, "_ALIGNMENT_HEADS", {}):
        return []
    import base64
    import gzip

    mask = gzip.decompress(base64.b85decode(whisper._ALIGNMENT_HEADS[name]))
    if len(mask) != settings.decoder_layers * settings.heads:
        return []
    return [divmod(place, settings.heads) for place, chosen in enumerate(mask) if chosen]


def _card(name: str, model: Model) -> str:
    """Return the README.md of a checkpoint from elsewhere."""
    config = model.config
    layers = f"{config.encoder_layers} + {config.decoder_layers} layers of width {config.width}"
    return (
        f"# {name}\n\nA Whisper model with {model.parameter_count() / 1e6:.1f} million weights: {layers}, "
        f"{config.mel_bands} bands, {config.vocabulary} tokens.\n"
        "Its makers' card says what it was trained on and under which licence.\n"
    )
