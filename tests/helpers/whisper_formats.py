"""Small Whisper models in the formats of other programs, written by hand from a folder of transformers."""

from __future__ import annotations

import base64
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from focusasr.text.whisper_tokenizer import byte_letters
from tests.helpers.tiny_whisper import small_vocabulary, write_whisper

WIDE = {"d_model": 32, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}  # rows of 32 numbers, as ggml's blocks need
OPENAI_NAMES = {  # of transformers → of OpenAI, within a layer
    "self_attn_layer_norm": "attn_ln", "encoder_attn_layer_norm": "cross_attn_ln", "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0", "fc2": "mlp.2",
    **{f"self_attn.{part[0]}_proj": f"attn.{part}" for part in ("query", "key", "value")},
    **{f"encoder_attn.{part[0]}_proj": f"cross_attn.{part}" for part in ("query", "key", "value")},
    "self_attn.out_proj": "attn.out", "encoder_attn.out_proj": "cross_attn.out",
}  # fmt: skip
OPENAI_WHOLE = {
    "embed_positions.weight": "positional_embedding", "embed_tokens": "token_embedding",
    "encoder.layer_norm": "encoder.ln_post", "decoder.layer_norm": "decoder.ln",
}  # fmt: skip


def openai_weights(folder: Path) -> dict[str, Tensor]:
    """Return a folder's weights under OpenAI's names."""
    weights = {}
    for name, value in load_file(folder / "model.safetensors").items():
        layer = re.fullmatch(r"model\.(\w+)\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if layer:
            name = f"{layer[1]}.blocks.{layer[2]}.{OPENAI_NAMES[layer[3]]}.{layer[4]}"
        for theirs, openai in OPENAI_WHOLE.items():
            name = name.replace(theirs, openai)
        weights[name.removeprefix("model.")] = value
    return weights


def openai_dims(folder: Path) -> dict[str, int]:
    shape = json.loads((folder / "config.json").read_text())
    dims = {"n_vocab": shape["vocab_size"], "n_mels": shape["num_mel_bins"]}
    for side, ours, context in (
        ("audio", "encoder", "max_source_positions"),
        ("text", "decoder", "max_target_positions"),
    ):
        dims[f"n_{side}_ctx"], dims[f"n_{side}_state"] = shape[context], shape["d_model"]
        dims[f"n_{side}_head"], dims[f"n_{side}_layer"] = shape[f"{ours}_attention_heads"], shape[f"{ours}_layers"]
    return dims


def write_openai(folder: Path, path: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a folder's model as OpenAI writes its own, with a small vocabulary's ranks next to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(dtype) for name, value in openai_weights(folder).items()}
    torch.save({"dims": openai_dims(folder), "model_state_dict": state}, path)
    for name in ("gpt2.tiktoken", "multilingual.tiktoken"):
        (path.parent / name).write_text(ranks_text(small_vocabulary()[0]))
    return path


def ranks_text(pieces: dict[str, int]) -> str:
    """Return a vocabulary as OpenAI writes ranks."""
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(token_bytes(pieces)))


def token_bytes(pieces: dict[str, int]) -> list[bytes]:
    """Return the bytes of each piece, in the order of their ids."""
    bytes_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    return [bytes(bytes_of[letter] for letter in piece) for piece in sorted(pieces, key=pieces.__getitem__)]


def write_bin(folder: Path, out: Path, shards: int = 1) -> Path:
    """Write a folder with pytorch_model.bin, or its shards, in place of safetensors; the head is tied."""
    _copy_texts(folder, out)
    weights: dict[str, Tensor] = load_file(folder / "model.safetensors")
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"]
    if shards == 1:
        torch.save(weights, out / "pytorch_model.bin")
        return out
    names = sorted(weights, key=lambda name: name.replace("proj_out", "model.decoder.embed_tokens"))
    places = {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05}-of-{shards:05}.bin"
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        torch.save({key: weights[key].clone() for key in part}, out / name)
        places |= dict.fromkeys(part, name)
    (out / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return out


def _copy_texts(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        (out / path.name).write_bytes(path.read_bytes())


# CTranslate2

KINDS = {
    "float32": np.float32, "float16": np.float16, "bfloat16": "bfloat16", "int8": np.float32, "int16": np.float32,
    "int8_float16": np.float16,
}  # fmt: skip
NUMBERS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}


def write_ctranslate2(folder: Path, out: Path, kind: str = "float16", version: int = 6, tokens: bool = True) -> Path:
    """Write a folder as CTranslate2's converter does; with `tokens` False the vocabulary is only a list."""
    out.mkdir(parents=True, exist_ok=True)
    generation = json.loads((folder / "generation_config.json").read_text())
    config = {
        "alignment_heads": generation["alignment_heads"], "suppress_ids": generation["suppress_tokens"],
        "suppress_ids_begin": generation["begin_suppress_tokens"], "lang_ids": [],
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    document = json.loads((folder / "tokenizer.json").read_text())
    ids = {**document["model"]["vocab"], **{one["content"]: one["id"] for one in document["added_tokens"]}}
    (out / "vocabulary.txt").write_text("".join(f"{piece}\n" for piece in sorted(ids, key=ids.__getitem__)))
    if tokens:
        (out / "tokenizer.json").write_text(json.dumps(document))
    variables = stored_as(joined_variables(folder), kind)
    (out / "model.bin").write_bytes(ctranslate2_bytes(variables, version))
    return out


def joined_variables(folder: Path) -> dict[str, np.ndarray]:
    """Return what CTranslate2 calls the weights; query, key and value are joined."""
    weights = {
        name.removeprefix("model."): value.numpy() for name, value in load_file(folder / "model.safetensors").items()
    }
    shape = json.loads((folder / "config.json").read_text())
    out: dict[str, np.ndarray] = {
        "decoder/embeddings/weight": weights["decoder.embed_tokens.weight"],
        "encoder/num_heads": np.int16(shape["encoder_attention_heads"]).reshape(()),
        "decoder/num_heads": np.int16(shape["decoder_attention_heads"]).reshape(()),
    }

    def put(theirs: str, *ours: str) -> None:
        names = ("gamma", "beta") if theirs.endswith("layer_norm") else ("weight", "bias")
        for word, our_word in zip(names, ("weight", "bias"), strict=True):
            zeros = np.zeros(shape["d_model"], np.float32)
            out[f"{theirs}/{word}"] = np.concatenate([weights.get(f"{one}.{our_word}", zeros) for one in ours])

    put("encoder/conv1", "encoder.conv1")
    put("encoder/conv2", "encoder.conv2")
    for side in ("encoder", "decoder"):
        out[f"{side}/position_encodings/encodings"] = weights[f"{side}.embed_positions.weight"]
        put(f"{side}/layer_norm", f"{side}.layer_norm")
        for number in range(shape[f"{side}_layers"]):
            theirs, ours = f"{side}/layer_{number}", f"{side}.layers.{number}"
            put(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            put(f"{theirs}/self_attention/linear_0", *(f"{ours}.self_attn.{part}_proj" for part in "qkv"))
            put(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            put(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            put(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            put(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
            if side == "decoder":
                put(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                put(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                put(f"{theirs}/attention/linear_1", *(f"{ours}.encoder_attn.{part}_proj" for part in "kv"))
                put(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
    return out


Stored = tuple[str, tuple[int, ...], bytes]  # type, shape, data


def stored_as(variables: dict[str, np.ndarray], kind: str) -> dict[str, Stored]:
    """Return type, shape and bytes of each variable; linear layers and embeddings are quantized."""
    stored: dict[str, Stored] = {}
    for name, value in variables.items():
        if value.dtype != np.float32:
            stored[name] = (value.dtype.name, value.shape, value.tobytes())
        elif kind.startswith("int8") and name.endswith("weight") and "conv" not in name:
            scale = 127 / np.abs(value).max(axis=1)
            stored[name] = ("int8", value.shape, np.rint(value * scale[:, None]).astype(np.int8).tobytes())
            stored[f"{name}_scale"] = ("float32", scale.shape, scale.astype(np.float32).tobytes())
        elif kind == "int16" and name.endswith("weight") and "conv" not in name:
            scale = np.float32(2**10 / np.abs(value).max())
            stored[name] = ("int16", value.shape, np.rint(value * scale).astype(np.int16).tobytes())
            stored[f"{name}_scale"] = ("float32", (), scale.tobytes())
        elif KINDS[kind] == "bfloat16":
            narrow = torch.from_numpy(value).bfloat16().view(torch.int16).numpy()
            stored[name] = ("bfloat16", value.shape, narrow.tobytes())
        else:
            narrow = value.astype(KINDS[kind])
            stored[name] = (narrow.dtype.name, narrow.shape, narrow.tobytes())
    return stored


def ctranslate2_bytes(variables: dict[str, Stored], version: int = 6, spec: str = "WhisperSpec") -> bytes:
    """Return a model.bin; equal variables are one and its aliases, as the converter has them."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    first: dict[Stored, str] = {}
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    body: list[bytes] = []
    for name, (kind, shape, data) in sorted(variables.items()):
        if shape and version >= 3 and first.setdefault((kind, shape, data), name) != name:
            aliases[name] = first[kind, shape, data]
            continue
        width = {"float32": 4, "int32": 4, "int8": 1}.get(kind, 2)
        form = (NUMBERS[kind], len(data)) if version >= 4 else (width, len(data) // width)
        head = text(name) + struct.pack(f"<B{len(shape)}I", len(shape), *shape) + struct.pack("<BI", *form)
        body.append(head + data)
    end = struct.pack("<I", len(aliases)) + b"".join(text(one) + text(other) for one, other in aliases.items())
    head = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(body))
    return b"".join([head, *body, end if version >= 3 else b""])


# whisper.cpp

FTYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9}  # of a whole file
TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q6_K": 14}  # of a tensor


def write_ggml(folder: Path, path: Path, kind: str = "f16", tokens: list[bytes] | None = None) -> Path:
    """Write a folder's model as whisper.cpp's converter does, with the small vocabulary or other tokens."""
    dims = openai_dims(folder)
    names = [f"n_{side}_{name}" for side in ("audio", "text") for name in ("ctx", "state", "head", "layer")]
    sizes = [dims[name] for name in ("n_vocab", *names, "n_mels")]
    tokens = tokens or token_bytes(small_vocabulary()[0])
    ftype = FTYPES.get(kind, 0) + (2000 if kind[0] == "q" else 0)
    data = struct.pack("<I11i", 0x67676D6C, *sizes, ftype)
    data += struct.pack("<ii", dims["n_mels"], 201) + bytes(4 * 201 * dims["n_mels"])
    data += struct.pack("<i", len(tokens)) + b"".join(struct.pack("<I", len(token)) + token for token in tokens)
    tensors = [ggml_tensor(name, value.numpy(), kind) for name, value in openai_weights(folder).items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join([data, *tensors]))
    return path


def ggml_tensor(name: str, value: np.ndarray, kind: str) -> bytes:
    """Return a tensor as it is stored: matrices in the kind of the file, other things in float."""
    if re.search(r"conv\d\.bias", name):
        value = value[:, None]
    plain = value.ndim == 1 or "positional" in name or name.endswith("bias")
    stored = "f32" if plain else "f16" if value.ndim == 3 and kind != "f32" else kind
    head = struct.pack("<iii", value.ndim, len(name), TYPES[stored]) + struct.pack(
        f"<{value.ndim}i", *value.shape[::-1]
    )
    return head + name.encode() + ggml_data(value, stored)


def ggml_data(value: np.ndarray, kind: str) -> bytes:
    if kind in ("f32", "f16"):
        return value.astype(np.float32 if kind == "f32" else np.float16).tobytes()
    if kind == "q6_K":  # any bytes are numbers
        return np.random.default_rng(value.size).integers(0, 60, value.size // 256 * 210, dtype=np.uint8).tobytes()
    return quantized(value.reshape(-1, 32).astype(np.float32), kind).tobytes()


def quantized(blocks: np.ndarray, kind: str) -> np.ndarray:
    """Return the bytes (B, n) of blocks (B, 32) in one of ggml's types."""

    def half(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        narrow = numbers.astype(np.float16)[:, None]
        return narrow.astype(np.float32), narrow.view(np.uint8)

    bits, largest = int(kind[1]), np.abs(blocks).max(axis=1)
    if kind == "q8_0":
        scale, head = half(np.maximum(largest / 127, 1e-6))
        return np.hstack([head, np.clip(np.rint(blocks / scale), -127, 127).astype(np.int8).view(np.uint8)])
    lowest, below = half(blocks.min(axis=1) if kind.endswith("1") else -largest)
    span = blocks.max(axis=1) - lowest[:, 0] if kind.endswith("1") else 2 * largest
    scale, head = half(np.maximum(span / (2**bits - 1), 1e-6))
    zero = lowest if kind.endswith("1") else -scale * 2 ** (bits - 1)
    numbers = np.clip(np.rint((blocks - zero) / scale), 0, 2**bits - 1).astype(np.uint8)
    fifth = np.packbits(numbers >> 4, axis=1, bitorder="little")
    low = (numbers & 15)[:, :16] | (numbers & 15)[:, 16:] << 4
    return np.hstack([head, *([below] if kind.endswith("1") else []), *([fifth] if bits == 5 else []), low])


def write_wide(folder: Path, **changes: Any) -> Path:
    """Write a folder whose rows fill ggml's blocks."""
    return write_whisper(folder, **{**WIDE, **changes})
