"""Formats of checkpoints: each gives the same model, is known by its content, and wrong files are named."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from focusasr.config import ModelConfig
from focusasr.model import hub
from focusasr.model.checkpoint import Checkpoint, load_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint
from focusasr.model.formats import format_of
from focusasr.model.ggml import K_TYPES, OWN_TYPES, dequantize
from focusasr.model.whisper_tokens import default_alignment_heads
from focusasr.runtime.errors import InputError
from focusasr.text.whisper_tokenizer import openai_engine
from tests.helpers.tiny_whisper import as_whisper, small_vocabulary, write_whisper
from tests.helpers.whisper_formats import (
    KINDS,
    ctranslate2_bytes,
    ggml_data,
    joined_variables,
    stored_as,
    token_bytes,
    write_bin,
    write_ctranslate2,
    write_ggml,
    write_openai,
    write_wide,
)
from tests.model.test_huggingface import in_cache, refused, same

LOSS = {"float32": 0.0, "float16": 0.001, "bfloat16": 0.01, "int8": 0.01, "int16": 0.001, "int8_float16": 0.01}
GGML_LOSS = {"f32": 0.0, "f16": 0.001, "q8_0": 0.01, "q5_0": 0.07, "q5_1": 0.07, "q4_0": 0.14, "q4_1": 0.14}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_whisper(tmp_path / "tiny")


def alike(loaded: Checkpoint, wanted: Checkpoint, loss: float) -> None:
    """Check that weights differ by no more than `loss` of their largest, and the rest not at all."""
    assert loaded.model.config == wanted.model.config
    weights = loaded.model.state_dict()
    for name, value in wanted.model.state_dict().items():
        atol = loss * float(value.abs().max())
        torch.testing.assert_close(weights[name], value, rtol=0, atol=atol, msg=name)
    assert loaded.tokenizer.encode("the cat ♪") == wanted.tokenizer.encode("the cat ♪")
    assert loaded.tokenizer.size == wanted.tokenizer.size


# CTranslate2


@pytest.mark.parametrize("kind", KINDS)
def test_ctranslate2_of_every_type(folder: Path, tmp_path: Path, kind: str) -> None:
    wanted = load_checkpoint(folder)
    loaded = load_checkpoint(write_ctranslate2(folder, tmp_path / "ct2", kind))
    alike(loaded, wanted, LOSS[kind])
    assert loaded.whisper and wanted.whisper
    for name in ("suppress_tokens", "begin_suppress_tokens", "alignment_heads"):
        assert getattr(loaded.whisper, name) == getattr(wanted.whisper, name)
    if kind == "float32":
        assert loaded.tokenizer.to_json() == wanted.tokenizer.to_json()


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_ctranslate2_of_every_version(folder: Path, tmp_path: Path, kind: str, version: int) -> None:
    alike(
        load_checkpoint(write_ctranslate2(folder, tmp_path / "ct2", kind, version)), load_checkpoint(folder), LOSS[kind]
    )


def test_ctranslate2_int16_without_scales_has_the_early_one(folder: Path, tmp_path: Path) -> None:
    place = write_ctranslate2(folder, tmp_path / "ct2", "float32")
    variables = stored_as(joined_variables(folder), "float32")
    value = np.frombuffer(variables["encoder/layer_0/ffn/linear_0/weight"][2], np.float32)
    variables["encoder/layer_0/ffn/linear_0/weight"] = (
        "int16",
        (64, 16),
        np.rint(value * 1000).astype(np.int16).tobytes(),
    )
    (place / "model.bin").write_bytes(ctranslate2_bytes(variables, 3))
    alike(load_checkpoint(place), load_checkpoint(folder), 0.001)


@pytest.mark.parametrize("name", ["vocabulary.txt", "vocabulary.json"])
def test_ctranslate2_with_a_list_of_tokens_only(folder: Path, tmp_path: Path, name: str) -> None:
    place = write_ctranslate2(folder, tmp_path / "ct2", tokens=False)
    if name.endswith("json"):
        listed = (place / "vocabulary.txt").read_text().removesuffix("\n").split("\n")
        (place / "vocabulary.txt").unlink()
        (place / name).write_text(json.dumps(listed))
    loaded, wanted = load_checkpoint(place).tokenizer, load_checkpoint(folder).tokenizer
    for text in ("the cat sat on the mat", "Grüße, Straße! ♪"):
        assert loaded.encode(text) == wanted.encode(text)
    assert as_whisper(loaded).languages == as_whisper(wanted).languages


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (struct.pack("<I", 7) + b"\x0c\0WhisperSpec\0", "binary version 7 of CTranslate2; expected 2 to 6"),
        (struct.pack("<I", 6) + b"\x10\0TransformerSpec\0", "another kind, 'TransformerSpec'"),
        (struct.pack("<I", 6) + b"\x0c\0WhisperSpec\0", "8 bytes are expected at byte 18 of 18"),
    ],
)
def test_ctranslate2_of_another_kind(folder: Path, tmp_path: Path, content: bytes, says: str) -> None:
    place = write_ctranslate2(folder, tmp_path / "ct2")
    (place / "model.bin").write_bytes(content)
    refused(place, "model.bin: ", says)


def test_ctranslate2_variables_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    good = stored_as(joined_variables(folder), "int8")
    place = write_ctranslate2(folder, tmp_path / "ct2")
    name = "encoder/layer_1/self_attention/linear_0"
    bias = good[f"{name}/bias"]
    for changes, says in (
        ({f"{name}/weight_scale": None}, "variable 'encoder/layer_1/self_attention/linear_0/weight_scale' is missing"),
        ({f"{name}/weight_scale": ("float32", (2,), bytes(8))}, "weight_scale' has shape (2,)"),
        ({f"{name}/bias": ("float32", bias[1], b"\0\0\x80?" * 48)}, "bias is not zero for keys"),
        ({f"{name}/bias": None}, "variable 'encoder/layer_1/self_attention/linear_0/bias' is missing"),
        ({"decoder/num_heads": ("int16", (), b"\4\0")}, "2 heads in the encoder, 4 in the decoder"),
        ({"decoder/projection/weight": ("float32", (1,), bytes(4))}, "the output layer differs from the embedding"),
        ({"decoder/embeddings/weight": ("int32", (4,), bytes(16))}, "decoder.token_embedding.weight has shape (4,)"),
    ):
        left = {key: value for key, value in {**good, **changes}.items() if value is not None}
        (place / "model.bin").write_bytes(ctranslate2_bytes(left, 6))
        refused(place, says)


# transformers


@pytest.mark.parametrize("shards", [1, 2])
def test_pytorch_model_bin(folder: Path, tmp_path: Path, shards: int) -> None:
    same(load_checkpoint(write_bin(folder, tmp_path / "bin", shards)), load_checkpoint(folder))


def test_pytorch_model_bin_that_shares_storage_claims_too_much(folder: Path, tmp_path: Path) -> None:
    place = write_bin(folder, tmp_path / "bin")
    shared = torch.zeros(100, 1000)
    torch.save(
        {f"model.encoder.layers.{number}.fc1.weight": shared for number in range(9)}, place / "pytorch_model.bin"
    )
    refused(place, "pytorch_model.bin: not weights that torch.save wrote", "its weights would be 3600000 bytes")


# whisper.cpp


@pytest.mark.parametrize("kind", GGML_LOSS)
def test_ggml_of_every_type(tmp_path: Path, kind: str) -> None:
    folder = write_wide(tmp_path / "wide")
    tokens = [*token_bytes(small_vocabulary()[0]), *([b"<|endoftext|>"] if kind == "f16" else [])]
    path = write_ggml(folder, tmp_path / "ggml-small.bin", kind, tokens)
    alike(load_checkpoint(find_checkpoint(str(path))), load_checkpoint(folder), GGML_LOSS[kind])


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_dequantization_is_what_a_loop_computes(kind: str) -> None:
    size = next(size for label, _, size in OWN_TYPES.values() if label == kind)
    data = np.frombuffer(ggml_data(np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32), kind), np.uint8)
    blocks = data.reshape(-1, size)
    wanted = [[number_of(block.tobytes(), kind, place) for place in range(32)] for block in blocks]
    np.testing.assert_array_equal(dequantize(blocks, kind), np.array(wanted, np.float32))


def number_of(block: bytes, kind: str, place: int) -> np.float32:
    """Return one number of a block: the slow twin."""
    (scale,) = struct.unpack_from("<e", block)
    if kind == "q8_0":
        return np.float32(scale) * np.float32(struct.unpack_from("<b", block, 2 + place)[0])
    at = 2
    minimum = None
    if kind.endswith("1"):
        (minimum,), at = struct.unpack_from("<e", block, at), at + 2
    fifth = 0
    if kind.startswith("q5"):
        (bits,), at = struct.unpack_from("<I", block, at), at + 4
        fifth = (bits >> place & 1) << 4
    number = (block[at + place % 16] >> (4 if place >= 16 else 0) & 15) | fifth
    if minimum is None:
        return np.float32(scale) * np.float32(number - (8 if kind == "q4_0" else 16))
    return np.float32(scale) * np.float32(number) + np.float32(minimum)


@pytest.mark.parametrize("kind", sorted({**OWN_TYPES, **K_TYPES}))
def test_dequantization_agrees_with_gguf(kind: int) -> None:
    quants = pytest.importorskip("gguf.quants", reason="gguf is not installed")
    label, numbers, size = {**OWN_TYPES, **K_TYPES}[kind]
    blocks = np.random.default_rng(kind).integers(0, 60, (8, size), dtype=np.uint8)  # every float16 in it is finite
    wanted = quants.dequantize(blocks, quants.GGMLQuantizationType(kind))
    assert wanted.shape == (8, numbers)
    if kind in OWN_TYPES:
        np.testing.assert_allclose(dequantize(blocks, label), wanted, rtol=1e-6)


def test_ggml_of_k_types(tmp_path: Path) -> None:
    quants = pytest.importorskip("gguf.quants", reason="gguf is not installed")
    folder = write_wide(tmp_path / "wide", d_model=256, encoder_ffn_dim=1024, decoder_ffn_dim=1024)
    embedding = load_checkpoint(write_ggml(folder, tmp_path / "ggml.bin", "q6_K")).model.decoder.token_embedding.weight
    stored = np.frombuffer(ggml_data(embedding.detach().numpy(), "q6_K"), np.uint8).reshape(-1, 210)
    wanted = quants.dequantize(stored, quants.GGMLQuantizationType.Q6_K).reshape(embedding.shape)
    np.testing.assert_array_equal(embedding.detach().numpy(), wanted)


def test_ggml_of_k_types_needs_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_wide(tmp_path / "wide")
    path = write_ggml(folder, tmp_path / "ggml-small-q6_k.bin", "f16")
    good, name = path.read_bytes(), b"decoder.token_embedding.weight"
    head = struct.pack("<iii", 2, len(name), 1)
    assert good.count(head) >= 1
    at = good.index(name) - len(head) - 8
    path.write_bytes(good[:at] + struct.pack("<iii", 2, len(name), 14) + struct.pack("<ii", 256, 4) + name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(path, "quantized as q6_K", "pip install", "[ggml]")


def test_ggml_of_other_models(tmp_path: Path) -> None:
    parakeet = struct.pack("<I15i", 0x67676D6C, 8192, 5000, 1024, 8, 24, 128, 1, 512, 8, 256, 9, 640, 2, 5, 10)
    for content, says in (
        (parakeet, "a Parakeet model of whisper.cpp"),
        (struct.pack("<Ii", 0x67676D6C, 10) + b"silero-16k" + bytes(60), "a voice activity detector"),
        (struct.pack("<I", 0x67676D6C), "not a whole file"),
    ):
        (tmp_path / "ggml.bin").write_bytes(content)
        refused(tmp_path / "ggml.bin", says)


# Content, not names


def test_formats_are_known_by_content(folder: Path, tmp_path: Path) -> None:
    ct2, whole = write_ctranslate2(folder, tmp_path / "ct2"), write_bin(folder, tmp_path / "bin")
    pt = write_openai(folder, tmp_path / "pt" / "weights.whatever")
    ggml = write_ggml(folder, tmp_path / "ggml" / "model.bin")
    both = Path(shutil.copytree(ct2, tmp_path / "both"))
    shutil.copy(folder / "model.safetensors", both)
    assert format_of(both) == "ctranslate2"  # as config.json says
    wanted = {folder: "huggingface", whole: "huggingface", ct2: "ctranslate2", pt: "openai", ggml: "ggml"}
    assert {path: format_of(path) for path in wanted} == wanted
    for piece in (ct2 / "model.bin", ct2 / "config.json", folder / "model.safetensors", whole / "pytorch_model.bin"):
        assert find_checkpoint(str(piece)) == piece.parent
    assert find_checkpoint(str(pt)) == pt and find_checkpoint(str(ggml)) == ggml
    for piece in (ct2 / "model.bin", folder / "model.safetensors"):
        alone = Path(shutil.copy(piece, tmp_path / piece.name))
        refused(alone, "weights without config.json")
    refused(ggml.parent, "ggml", "not CTranslate2's", f"--model {ggml}")
    ggml.rename(ggml.with_name("ggml-base.bin"))
    refused(ggml.parent, "a folder of model files", f"--model {ggml.with_name('ggml-base.bin')}")


def test_the_hubs_cache_is_a_model(folder: Path, tmp_path: Path) -> None:
    """Its root, a snapshot, a file in a snapshot and a blob are the current snapshot."""
    place = in_cache(folder, tmp_path / "hub")
    root = place.parents[1]
    (root / "blobs").mkdir()
    (place / "model.safetensors").rename(root / "blobs" / "abc")
    (place / "model.safetensors").symlink_to("../../blobs/abc")
    (root / "snapshots" / "older").mkdir()
    for named in (root, place, place / "config.json", place / "model.safetensors", root / "blobs" / "abc"):
        assert find_checkpoint(str(named)) == place
    assert load_checkpoint(place).whisper is not None
    (root / "refs" / "main").write_text("../../../elsewhere")
    assert find_checkpoint(str(root)).parent == root / "snapshots"
    shutil.rmtree(root / "snapshots")
    refused(find_checkpoint(str(root)), "a model in the hub's cache without its files")


WRONG = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n": "a Git LFS pointer",
    b"<!DOCTYPE html><html>": "a web page",
    b"\n  <html lang=en>": "a web page",
    b"GGUF\3\0\0\0": "a GGUF file",
    b"\x89HDF\r\n": "weights of TensorFlow",
    b"\x1f\x8b\x08": "a packed archive",
}


@pytest.mark.parametrize("content", WRONG, ids=str)
@pytest.mark.parametrize("piece", ["ct2/model.bin", "tiny/model.safetensors", "tiny/config.json", "a.pt", "ggml.bin"])
def test_famous_wrong_files_are_named(folder: Path, tmp_path: Path, content: bytes, piece: str) -> None:
    write_ctranslate2(folder, tmp_path / "ct2")
    path = tmp_path / piece
    path.write_bytes(content)
    refused(path if path.parent == tmp_path else path.parent, f"{path.name}: {WRONG[content]}")


def test_a_file_of_pytorch_under_ctranslate2s_name(folder: Path, tmp_path: Path) -> None:
    place = write_ctranslate2(folder, tmp_path / "ct2")
    shutil.copy(write_openai(folder, tmp_path / "pt" / "small.pt"), place / "model.bin")
    refused(place, "model.bin: a file of PyTorch, not of CTranslate2")
    assert find_checkpoint(str(place / "model.bin")) == place / "model.bin"


def test_exports_of_other_frameworks(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    for name, says in (("tf_model.h5", "TensorFlow only"), ("onnx/encoder_model.onnx", "an ONNX export")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        refused(folder, says)
    refused(folder / "onnx", "an ONNX export")
    (folder / "config.json").write_text('{"model_type": "whisper", "n_audio_state": 384}')
    refused(folder, "a folder of MLX")


# Names


def test_names_are_sought_where_other_programs_keep_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "download", lambda name, *_: asked.append(name) or tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert find_checkpoint("base") == tmp_path and asked == ["openai/whisper-base"]
    ct2 = write_ctranslate2(folder, tmp_path / "ct2")
    turbo = in_cache(shutil.copytree(ct2, tmp_path / "copy"), tmp_path / "hub", hub.TURBO_FOR_FASTER_WHISPER[0])
    systran = in_cache(ct2, tmp_path / "hub", "Systran/faster-whisper-base")
    assert find_checkpoint("base") == systran and find_checkpoint("turbo") == turbo
    openai = in_cache(folder, tmp_path / "hub", "openai/whisper-base")
    assert find_checkpoint("base") == openai
    (openai / "model.safetensors").unlink()  # as an interrupted download leaves it
    assert find_checkpoint("base") == systran
    pt = tmp_path / "cache" / "whisper" / "base.pt"
    pt.parent.mkdir(parents=True)
    pt.touch()
    assert find_checkpoint("base") == pt
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "base.pt").touch()
    assert find_checkpoint("base", model_dir=tmp_path / "here") == tmp_path / "here" / "base.pt"
    assert asked == ["openai/whisper-base"]


def test_pickled_weights_are_fetched_if_there_are_no_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def fetch(name: str, allow_patterns: list[str], **_: object) -> str:
        asked.append("pytorch_model.bin" in allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    hub.download("a/b")
    (folder / "model.safetensors").unlink()
    hub.download("a/b")
    assert asked == [False, False, True]


# OpenAI's tables


def test_the_vocabularies_are_openais() -> None:
    tokenizer = pytest.importorskip("whisper.tokenizer", reason="openai-whisper is not installed")
    for vocabulary, languages in ((51_864, 99), (51_865, 99), (51_866, 100)):
        engine = openai_engine(vocabulary)
        theirs = tokenizer.get_tokenizer(vocabulary > 51_864, num_languages=languages)
        assert engine.get_vocab_size() == theirs.encoding.n_vocab == vocabulary
        for text in (" Hello, world!", "Zażółć gęślą jaźń 日本語 ♪♪ it's 12345   \n\t x"):
            assert engine.encode(text).ids == theirs.encoding.encode_ordinary(text)
        letters = engine.get_vocab()
        plain = {piece: id for piece, id in letters.items() if not piece.startswith("<|") or len(piece) == 2}
        ranks = theirs.encoding._mergeable_ranks
        assert dict(zip(token_bytes(plain), sorted(plain.values()), strict=True)) == ranks
    with pytest.raises(InputError, match="the weights have 60000 tokens"):
        openai_engine(60_000)


def test_alignment_heads_are_openais() -> None:
    whisper = pytest.importorskip("whisper", reason="openai-whisper is not installed")
    shapes = {
        "tiny": (4, 6),
        "base": (6, 8),
        "small": (12, 12),
        "medium": (24, 16),
        "large": (32, 20),
        "turbo": (4, 20),
    }
    for name, packed in whisper._ALIGNMENT_HEADS.items():
        layers, heads = shapes["turbo" if "turbo" in name else name.split(".")[0].split("-")[0]]
        vocabulary = 51_864 if ".en" in name else 51_866 if name in ("large", "turbo") or "v3" in name else 51_865
        config = ModelConfig(vocabulary=vocabulary, width=64 * heads, heads=heads, decoder_layers=layers)
        mask = np.frombuffer(gzip.decompress(base64.b85decode(packed)), bool).reshape(layers, heads)
        assert default_alignment_heads(config, name) == [tuple(pair) for pair in np.argwhere(mask).tolist()]
    assert default_alignment_heads(ModelConfig(vocabulary=99, heads=2, decoder_layers=1)) == [(0, 0), (0, 1)]
