"""The engine on ONNX Runtime computes what the model computes, and each row and chunk as it would alone."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from focusasr.audio.features import input_mel
from focusasr.audio.load import load
from focusasr.config import DecodingConfig, ModelConfig
from focusasr.model import onnx_engine as onnx_engine_module
from focusasr.model import onnx_layers
from focusasr.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint
from focusasr.model.engine import prepare
from focusasr.model.imported import read_checkpoint
from focusasr.model.onnx_engine import OnnxEngine, supports
from focusasr.model.onnx_memory import Memory
from focusasr.model.onnx_weights import WeightReader
from focusasr.model.quantization import has_wide_products
from focusasr.model.transformer import Model
from focusasr.runtime.errors import InputError
from tests.conftest import ROOT
from tests.helpers.tiny_whisper import as_whisper, write_whisper

WIDE = {"d_model": 64, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "decoder_layers": 2}
HYBRIDS: list[dict[str, Any]] = [
    {"attention": "global"},
    {"attention": "global", "tail_frames": None},  # as Whisper's: its cross-attention and logits differ
    {"attention": "hybrid", "max_span": 8, "ramp": 3, "win_size": 8},
    {"attention": "hybrid", "max_span": 5, "ramp": 2, "win_size": 8, "sharpen_longer": False, "temperature": "formula"},
]
CPU = torch.device("cpu")
TOKENS = [5, 9, 30, 7, 7, 12]


def adapted(folder: Path, dtype: torch.dtype = torch.float32, **shape: Any) -> Checkpoint:
    """Write a small model with random weights for audio of its own length, and return it as it is read."""
    source = load_checkpoint(write_whisper(folder / "source", **WIDE))
    torch.manual_seed(1)
    model = Model(dataclasses.replace(source.model.config, **{"tail_frames": 4, **shape}))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0.1 if weight.dim() == 1 else 0.0, weight.shape[-1] ** -0.5)
    save_checkpoint(folder / "model", dataclasses.replace(source, model=model), dtype=dtype)
    return load_checkpoint(folder / "model")


def onnx_engine(checkpoint: Checkpoint) -> OnnxEngine:
    assert checkpoint.folder
    with ExitStack() as files:
        read = read_checkpoint(checkpoint.folder, files)
        return OnnxEngine(WeightReader(read.tensors, read.place), read.config, threads=1)


@pytest.mark.parametrize("shape", HYBRIDS, ids=str)
@pytest.mark.parametrize("frames", [2, 16, 70, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_results_are_those_of_the_model(tmp_path: Path, shape: dict[str, Any], frames: int, dtype: torch.dtype) -> None:
    checkpoint = adapted(tmp_path, dtype, **shape)
    assert as_whisper(checkpoint.tokenizer)
    mel = torch.randn(frames, 20, generator=torch.Generator().manual_seed(frames))
    whole = prepare(checkpoint.model, CPU, DecodingConfig(compute_type="float32"))
    expected = whole.advance(torch.tensor([TOKENS]), whole.start(whole.encode([mel])))[0]
    engine = onnx_engine(checkpoint)
    logits, _ = engine.advance(np.array([TOKENS]), engine.start(engine.encode([mel.numpy()])), keep=len(TOKENS))
    error = np.abs(logits[0] - expected.numpy())
    assert error.mean() < 0.03 * float(expected.std())


@pytest.mark.parametrize("shape", HYBRIDS[1:3], ids=str)
def test_a_row_and_a_chunk_get_the_bits_that_they_get_alone(tmp_path: Path, shape: dict[str, Any]) -> None:
    engine = onnx_engine(adapted(tmp_path, **shape))
    memory = engine.encode([np.random.default_rng(0).normal(size=(60, 20)).astype(np.float32)])
    whole, end = engine.advance(np.array([TOKENS]), engine.start(memory), keep=3)
    rows = np.array([TOKENS, TOKENS[::-1]])
    logits, state = engine.advance(rows[:, :3], engine.start(memory, rows=2))
    state = engine.select(state, [1, 0, 0])
    logits, state = engine.advance(rows[[1, 0, 0], 3:], state, keep=3)
    assert np.array_equal(logits[1], whole[0]) and np.array_equal(logits[2], whole[0])
    assert not np.array_equal(logits[0], whole[0])
    again, _ = engine.advance(np.array([TOKENS[4:]]), engine.cut(end, 4), keep=2)
    assert np.array_equal(again[0], whole[0, 1:])


@pytest.mark.parametrize("shape", HYBRIDS[:3], ids=str)
def test_a_window_gets_the_bits_that_it_gets_alone(tmp_path: Path, shape: dict[str, Any]) -> None:
    engine = onnx_engine(adapted(tmp_path, **shape))
    chance = np.random.default_rng(0)
    mels = [chance.normal(size=(frames, 20)).astype(np.float32) for frames in (60, 96, 2, 40)]
    alone = []
    for mel in mels:
        logits, state = engine.advance(np.array([TOKENS[:3]] * 2), engine.start(engine.encode([mel]), rows=2))
        alone.append(engine.advance(np.array([TOKENS[3:4]] * 2), state)[0][0])
    memory = Memory.joined([engine.encode(mels[:1]), *(engine.encode([mel]) for mel in mels[1:])])
    _, state = engine.advance(np.array([TOKENS[:3]] * 4), engine.start(memory))
    order = memory.keep([1, 3])
    assert memory.numbers[:2] == order and sorted(order) == [1, 3]
    state = engine.select(state, [row for row in order for _ in range(2)], len(order))
    logits, _ = engine.advance(np.array([TOKENS[3:4]] * 4), state)
    for place, number in enumerate(order):
        assert all(np.array_equal(row, alone[number]) for row in logits[2 * place : 2 * place + 2])
    for number in range(len(mels)):
        _, state = engine.advance(np.array([TOKENS[:3]]), engine.start(memory.window(number)))
        assert np.array_equal(engine.advance(np.array([TOKENS[3:4]]), state)[0][0], alone[number])


@pytest.mark.parametrize("shape", HYBRIDS[:3], ids=str)
def test_weights_without_a_sign_give_the_same_bits(
    tmp_path: Path, shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if onnx_layers.exact_zero("MatMulIntegerToFloat") != 0 or onnx_layers.exact_zero("MatMulInteger") != 0:
        pytest.skip("this CPU does not multiply signed 8 bit integers exactly")
    checkpoint = adapted(tmp_path, **shape)
    chance, found = np.random.default_rng(0), []
    mels = [chance.normal(size=(frames, 20)).astype(np.float32) for frames in (60, 96)]
    for zero in (0, onnx_layers.ZERO):
        for module in (onnx_layers, onnx_engine_module):
            monkeypatch.setattr(module, "exact_zero", lambda operator, zero=zero: zero)
        engine = onnx_engine(checkpoint)
        tokens = np.array([TOKENS[:3], TOKENS[1:4]] * 2)
        found.append(engine.advance(tokens, engine.start(engine.encode(mels), rows=2), keep=3)[0])
    assert np.array_equal(*found)


@pytest.mark.parametrize("rows", [[0, 1, 2], [0, 0, 2], [1, 1, 1], [1, 0, 2], [2, 1], [0, 2, 2, 1]], ids=str)
def test_selected_rows_are_those_of_the_state(tmp_path: Path, rows: list[int]) -> None:
    engine = onnx_engine(adapted(tmp_path))
    memory = engine.encode([np.random.default_rng(0).normal(size=(16, 20)).astype(np.float32)])
    _, state = engine.advance(np.array([TOKENS[:3], TOKENS[1:4], TOKENS[2:5]]), engine.start(memory, rows=3))
    expected = [one[rows] for one in state.past]
    found = engine.select(state, rows)
    assert all(np.array_equal(*pair) for pair in zip(found.past, expected, strict=True))


def test_the_default_model_is_as_near_to_float32_as_in_pytorch() -> None:
    folder = find_checkpoint("default")
    checkpoint = load_checkpoint(folder)
    mel = input_mel(torch.from_numpy(load(ROOT / "tests" / "data" / "sample.flac")), checkpoint.model.config)
    tokens = [50257, 50363, 311, 317]

    def log_probs(compute_type: Any) -> torch.Tensor:
        engine = prepare(checkpoint.model, CPU, DecodingConfig(compute_type=compute_type))
        return engine.advance(torch.tensor([tokens]), engine.start(engine.encode([mel])))[0].log_softmax(-1)

    engine = onnx_engine(checkpoint)
    logits, _ = engine.advance(np.array([tokens]), engine.start(engine.encode([mel.numpy()])), keep=4)
    found, exact = torch.from_numpy(logits[0]).log_softmax(-1), log_probs("float32")
    assert float((found - exact).abs().mean()) < 0.12
    if has_wide_products():  # else PyTorch's activations have 14 bits
        assert float((found - exact).abs().mean()) < 1.5 * float((log_probs("int8") - exact).abs().mean())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda weights: weights.pop("decoder.ln.bias"), "decoder.ln.bias is missing"),
        (lambda weights: weights.update(surplus=torch.zeros(2)), "surplus"),
        (lambda weights: weights.update({"decoder.ln.bias": torch.zeros(3)}), r"decoder.ln.bias has shape \(3,\)"),
        (lambda weights: weights["encoder.ln_post.bias"].fill_(torch.nan), "encoder.ln_post.bias"),
        (lambda weights: weights["encoder.blocks.0.mlp.1.weight.scale"].fill_(torch.inf), "mlp.1.weight.scale"),
        (lambda weights: weights["encoder.positions"].fill_(torch.inf), "encoder.positions"),
    ],
)
def test_bad_weights_are_rejected_in_one_line(tmp_path: Path, change: Any, part: str) -> None:
    checkpoint = adapted(tmp_path, torch.int8)
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(InputError, match=part) as caught:
        onnx_engine(checkpoint)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_not_safetensors_is_rejected(tmp_path: Path) -> None:
    checkpoint = adapted(tmp_path)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        onnx_engine(checkpoint)


@pytest.mark.parametrize(
    "change", [{"width": 48}, {"decoder_attention": "hybrid"}, {"positions": "rotary"}, {"ctc": True}, {"max_dist": 9}]
)
def test_other_shapes_are_left_to_pytorch(change: dict[str, Any]) -> None:
    usual = ModelConfig(width=384, heads=6, positions="absolute", conv_kernel=0, ctc=False)
    assert supports(usual) and not supports(dataclasses.replace(usual, **change))
