"""The engine against its slow twin, the decoder of `model`: whole, token by token, rows at different places."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from focusasr.audio.features import stack
from focusasr.config import DecodingConfig
from focusasr.model.attention import HybridAttention
from focusasr.model.checkpoint import Checkpoint, load_checkpoint, open_checkpoint, save_checkpoint
from focusasr.model.decoding_state import DecodingState
from focusasr.model.engine import Engine, joined, prepare
from focusasr.model.quantization import (
    Int8Linear,
    Integers,
    JoinedInt8Linear,
    Linear,
    choose_compute_type,
    has_products,
    has_wide_products,
    make_linear,
)
from focusasr.model.transformer import EncoderOutput, Model
from focusasr.runtime.errors import InputError
from focusasr.training.finetune import begin_as_global
from tests.helpers.toy_speech import letters_tokenizer, mels, tiny_model

TOKENIZER = letters_tokenizer()
SOUNDS = mels(["abcabcab", "h", "fed cab"])
SHAPES = [
    {},
    {"positions": "absolute", "attention": "global", "ctc": False},
    {"decoder_attention": "hybrid"},
    {"max_dist": 2},
    {"decoder_attention": "hybrid", "max_dist": 3, "temperature": "formula", "sharpen_longer": False},
]


def both(seed: int = 0, **settings: object) -> tuple[Model, Engine, EncoderOutput]:
    model = tiny_model(TOKENIZER, seed, decoder_layers=2, **settings)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)
    return model, Engine(model), model.encode(*stack(SOUNDS))


def random_tokens(rows: int, length: int) -> Tensor:
    return torch.randint(0, TOKENIZER.size, (rows, length), generator=torch.Generator().manual_seed(7))


def slow(model: Model, memory: EncoderOutput, tokens: Tensor) -> Tensor:
    """Return the logits (B, L, V) of whole texts."""
    return model.decoder(tokens, memory)


@pytest.mark.parametrize("settings", SHAPES, ids=str)
@torch.inference_mode()
def test_in_passes_of_any_length_it_computes_what_the_decoder_computes(settings: dict) -> None:
    model, engine, memory = both(**settings)
    torch.testing.assert_close(engine.encode(SOUNDS).states, memory.states)
    tokens = random_tokens(3, 12)
    wanted = slow(model, memory, tokens)
    for cuts in ([12], [1] * 12, [1, 4, 1, 6], [7, 5]):
        state = engine.start(memory)
        parts = [engine.advance(part, state) for part in tokens.split(cuts, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), wanted, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_last_logits_alone_are_those_of_all() -> None:
    _, engine, memory = both()
    tokens = random_tokens(3, 5)
    alone, whole = (engine.advance(tokens, engine.start(memory), last=last) for last in (True, False))
    torch.testing.assert_close(alone, whole[:, -1:])


@torch.inference_mode()
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("compute_type", ["int8", "float32"])
@pytest.mark.parametrize("settings", SHAPES[:3], ids=str)
def test_weights_read_layer_by_layer_compute_what_the_loaded_model_computes(
    stored: torch.dtype, compute_type: str, settings: dict, tmp_path: Path
) -> None:
    model = tiny_model(TOKENIZER, decoder_layers=2, **settings)
    save_checkpoint(tmp_path / "model", Checkpoint(model, TOKENIZER, {}, ""), dtype=stored)
    opened = open_checkpoint(tmp_path / "model")
    config = DecodingConfig(compute_type=compute_type)  # type: ignore[arg-type]
    engine = prepare(opened.model, torch.device("cpu"), config, opened.unread)
    whole = Engine(load_checkpoint(tmp_path / "model").model, compute_type)  # type: ignore[arg-type]
    assert {one.device.type for one in opened.model.parameters()} == {"meta"}, "the checkpoint has its weights"
    if compute_type == "int8":
        table = engine.embedding
        assert isinstance(table, Integers) if stored == torch.int8 else table.dtype == stored  # type: ignore[union-attr]
    memories = [one.encode(SOUNDS) for one in (engine, whole)]
    tokens = random_tokens(3, 6)
    ours, wanted = (
        one.advance(tokens, one.start(memory)) for one, memory in zip((engine, whole), memories, strict=True)
    )
    close = 0.01 if compute_type == "int8" and stored == torch.int8 else 0.0  # scales differ in the last bit
    assert (ours - wanted).norm() <= close * wanted.norm()


@torch.inference_mode()
def test_perceptrons_by_row_blocks_equal_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_model(TOKENIZER), "int8")
    whole = engine.encode(SOUNDS).states
    monkeypatch.setattr("focusasr.model.quantization.ROWS_IN_CACHE", 5)
    assert torch.equal(engine.encode(SOUNDS).states, whole)


@torch.inference_mode()
def test_sound_is_encoded_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, engine, memory = both()
    for frames in (1, 100, 200):
        monkeypatch.setattr("focusasr.model.engine.FRAMES_AT_ONCE", frames)
        found = engine.encode(SOUNDS)
        assert memory.mask is not None and found.mask is not None and torch.equal(found.mask, memory.mask)
        torch.testing.assert_close(found.states[memory.mask], memory.states[memory.mask], atol=1e-5, rtol=1e-5)
        for one, other in zip(found.spans, memory.spans, strict=True):
            torch.testing.assert_close(one, other)
    monkeypatch.setattr("focusasr.model.engine.FRAMES_AT_ONCE", 1)
    alike = engine.encode([SOUNDS[0], SOUNDS[0]])
    assert alike.mask is None
    torch.testing.assert_close(alike.states[1], model.encode(*stack(SOUNDS[:1])).states[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", SHAPES, ids=str)
@torch.inference_mode()
def test_rows_may_stand_at_different_places_and_be_set_back(settings: dict) -> None:
    model, engine, memory = both(**settings)
    tokens = random_tokens(3, 14)
    wanted = slow(model, memory, tokens)
    state = engine.start(memory)
    engine.advance(torch.cat((tokens[:, :6], tokens[:, :3]), dim=1), state)  # the last three are wrong
    state.lengths = [6, 2, 4]
    for length in (1, 3, 1):
        at = torch.tensor(state.lengths)[:, None] + torch.arange(length)
        logits = engine.advance(tokens.gather(1, at), state)
        torch.testing.assert_close(logits, wanted.gather(1, at[..., None].expand(logits.shape)), atol=1e-5, rtol=1e-5)
    assert state.lengths == [11, 7, 9]


@pytest.mark.parametrize("settings", SHAPES, ids=str)
@torch.inference_mode()
def test_rows_are_selected_repeated_and_grouped(settings: dict) -> None:
    model, engine, memory = both(**settings)
    tokens = random_tokens(6, 9)
    doubled = EncoderOutput(
        memory.states.repeat_interleave(2, 0), None if memory.mask is None else memory.mask.repeat_interleave(2, 0), []
    )
    wanted = slow(model, doubled, tokens)
    state = engine.start(memory, group=2)
    engine.advance(tokens[:, :5], state)
    order = [5, 4, 0, 0]  # the third utterance's two rows, changed about, then the first's first, twice
    state.select(order)
    rest = tokens[[5, 4, 0, 0], 5:]
    torch.testing.assert_close(engine.advance(rest, state), wanted[[5, 4, 0, 0], 5:], atol=1e-5, rtol=1e-5)
    assert (state.group, len(state.memory[0][0])) == (2, 2)
    state.select([1, 2])
    assert (state.group, len(state.lengths), len(state.memory[0][0])) == (1, 2, 2)
    state.lengths = [8, 8]
    torch.testing.assert_close(engine.advance(tokens[[4, 0], 8:], state), wanted[[4, 0], 8:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_utterances_may_have_unequal_numbers_of_rows() -> None:
    model, engine, memory = both()
    tokens = random_tokens(3, 7)
    owners = [0, 2, 0, 2, 2, 1]
    wanted = slow(model, memory, tokens)[owners]
    state = engine.start(memory)
    engine.advance(tokens[:, :4], state)
    state.select(owners)
    torch.testing.assert_close(engine.advance(tokens[owners, 4:], state), wanted[:, 4:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_row_that_is_full_does_not_stop_the_others() -> None:
    model, engine, memory = both(text_context=8)
    tokens = random_tokens(3, 8)
    wanted = slow(model, memory, tokens)
    state = engine.start(memory)
    engine.advance(tokens, state)
    state.lengths = [8, 3, 6]
    logits = engine.advance(torch.stack([tokens[0, :4], tokens[1, 3:7], tokens[2, 4:]]), state)
    torch.testing.assert_close(logits[1], wanted[1, 3:7], atol=1e-5, rtol=1e-5)
    state.lengths = [8, 8, 8]
    with pytest.raises(ValueError, match="9 tokens exceed text_context 8"):
        engine.advance(tokens[:, :1], state)


def copies_a_cache(state: DecodingState) -> list[int]:
    return [cache.data_ptr() for cache in state.caches]


@torch.inference_mode()
def test_caches_are_written_in_place() -> None:
    _, engine, memory = both()
    state = engine.start(memory)
    before = copies_a_cache(state)
    for _ in range(20):
        engine.advance(random_tokens(3, 1), state)
    assert copies_a_cache(state) == before


@torch.inference_mode()
def test_linear_layers_compute_what_torch_computes() -> None:
    torch.manual_seed(1)
    x, weight, bias = torch.randn(4, 5, 64), torch.randn(48, 64) / 8, torch.randn(48)
    wanted = torch.nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(Linear(weight, bias)(x), wanted)
    torch.testing.assert_close(Linear(weight, None)(x) + bias, wanted)
    error = Int8Linear(weight, bias)(x) - wanted
    assert 0 < error.norm() / wanted.norm() < (0.012 if has_wide_products() else 0.03)


@torch.inference_mode()
def test_fine_layers_keep_small_values_beside_an_outlier() -> None:
    x = torch.randn(9, 64)
    x[:, 7] = 200.0
    fine, plain = (Int8Linear(torch.eye(64), None, fine)(x) - x for fine in (True, False))
    assert fine.norm() < 0.01 * plain.norm()
    assert plain.norm() / x.norm() > 1e-3


@pytest.mark.skipif(not has_wide_products(), reason="this CPU has no VNNI, so that both ways are the same")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512"])
def test_a_cpu_whose_products_saturate_gets_float32_or_narrow_activations(instructions: str) -> None:
    code = """
import torch
from focusasr.config import ModelConfig
from focusasr.model.quantization import Int8Linear, choose_compute_type, has_wide_products
assert not has_wide_products()
assert choose_compute_type("auto", torch.device("cpu"), ModelConfig(width=384)) == "float32"
torch.testing.assert_close(Int8Linear(torch.ones(8, 64), None)(torch.ones(1, 64)), torch.full((1, 8), 64.0))
"""
    environment = {**os.environ, "FBGEMM_ENABLE_INSTRUCTIONS": instructions}  # as if the CPU had no more than these
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@torch.inference_mode()
def test_a_part_with_small_weights_is_not_rounded_away() -> None:
    torch.manual_seed(3)
    local, identity = torch.randn(64, 64) * 1e-3, torch.eye(64)
    x = torch.cat((torch.randn(9, 64), 100 * torch.randn(9, 64)), dim=1)
    wanted = x[:, :64] @ local.T
    whole = make_linear(torch.cat((local, identity), dim=1), None, "int8", parts=2)
    without = make_linear(torch.cat((torch.zeros(64, 64), identity), dim=1), None, "int8", parts=2)
    assert (whole(x) - without(x) - wanted).norm() / wanted.norm() < 0.05


@torch.inference_mode()
def test_integers_give_a_row_the_same_result_whatever_stands_beside_it() -> None:
    torch.manual_seed(2)
    layer = Int8Linear(torch.randn(48, 64), torch.randn(48))
    x = torch.randn(5, 64) * torch.tensor([1e-3, 1.0, 300.0, 0.0, 2.0])[:, None]
    together = layer(x)
    assert torch.isfinite(together).all()
    for row in range(5):
        assert torch.equal(layer(x[row]), together[row])


@torch.inference_mode()
@pytest.mark.parametrize("compute_type", ["int8", "bfloat16", "float16"])
def test_other_compute_types_stay_near(compute_type: str) -> None:
    model, _, memory = both(decoder_attention="hybrid")
    other = Engine(model, compute_type)  # type: ignore[arg-type]
    tokens = random_tokens(3, 10)
    heard = other.encode(SOUNDS)
    logits = other.advance(tokens, other.start(heard)).float()
    wanted = slow(model, memory, tokens)
    assert 0 < (logits - wanted).norm() / wanted.norm() < 0.1
    assert model.decoder.token_embedding.weight.dtype == torch.float32, "the model that was given has changed"


@torch.inference_mode()
def test_a_hybrid_model_that_began_as_global_keeps_what_its_local_half_learned() -> None:
    """As training leaves a model that grew on Whisper: the global half is the identity, the local half is small."""
    model = tiny_model(TOKENIZER, decoder_layers=2, decoder_attention="hybrid", ctc=False)
    hybrids = [module for module in model.modules() if isinstance(module, HybridAttention)]
    for layer in hybrids:
        begin_as_global(layer)
        layer.projection.weight[:, : model.config.width].normal_(std=2e-3)
    engine = Engine(model, "int8")
    halves = [layer.projection for layer in engine.encoder.modules() if isinstance(layer, HybridAttention)]
    halves += [layer.projection for layer in engine.layers]
    assert len(halves) == len(hybrids)
    for half, layer in zip(halves, hybrids, strict=True):
        assert isinstance(half, JoinedInt8Linear)
        x = torch.randn(5, 2 * model.config.width)
        x[:, model.config.width :] = 0
        wanted = layer.projection(x) - layer.projection(torch.zeros_like(x))
        error = half(x) - half(torch.zeros_like(x)) - wanted
        assert error.norm() / wanted.norm() < 0.05


def test_integers_are_the_cpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_model(TOKENIZER).config
    with pytest.raises(InputError, match="int8"):
        choose_compute_type("int8", torch.device("cuda"), config)
    monkeypatch.setattr("focusasr.model.quantization.has_products", lambda: False)  # as on ARM
    with pytest.raises(InputError, match="compute_type is 'int8'"):
        choose_compute_type("int8", torch.device("cpu"), config)
    assert choose_compute_type("auto", torch.device("cuda"), config) == "float16"
    assert choose_compute_type("auto", torch.device("cpu"), config) == "float32"


@pytest.mark.skipif(not has_products(), reason="PyTorch has no 8 bit products for this CPU")
@torch.inference_mode()
def test_rows_of_a_batch_have_every_bit_that_they_have_alone() -> None:
    """With integers, neither the other rows nor the padding of the audio changes a bit, also after some rows end."""
    model = tiny_model(TOKENIZER, 0, decoder_layers=2, positions="absolute", tail_frames=8, ctc=False)
    engine = Engine(model, "int8")
    assert engine.keeps_rows_apart and not Engine(model).keeps_rows_apart
    assert not Engine(tiny_model(TOKENIZER, 0, decoder_attention="hybrid"), "int8").keeps_rows_apart
    memories = [engine.encode([torch.randn(frames, 20)]) for frames in (7, 60, 33, 34, 120, 18)]
    tokens = random_tokens(len(memories), 12)

    def steps(memory: EncoderOutput, rows: list[int]) -> list[Tensor]:
        state = engine.start(memory)
        logits = [engine.advance(tokens[rows, :3], state)]
        for place in range(3, 12):
            if place == 7 and len(rows) > 1:
                state.select([0, 2, 3, 5])
                rows = [rows[row] for row in (0, 2, 3, 5)]
            logits.append(engine.advance(tokens[rows, place : place + 1], state))
        return logits

    together = steps(joined(memories), list(range(6)))
    for row in range(6):
        alone = steps(memories[row], [row])
        assert all(torch.equal(one[row], other[0]) for one, other in zip(together[:5], alone[:5], strict=True))
        if row in (0, 2, 3, 5):
            place = (0, 2, 3, 5).index(row)
            assert all(torch.equal(one[place], other[0]) for one, other in zip(together[5:], alone[5:], strict=True))
