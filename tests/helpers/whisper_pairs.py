"""Random Whisper models worth comparing, the same weights in openai/whisper's classes and in ours."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
import whisper
import whisper.timing
from torch import Tensor
from whisper.model import ModelDimensions

from focusasr.model.checkpoint import Checkpoint, load_checkpoint
from focusasr.model.decoding_state import DecodingState
from focusasr.model.engine import Engine
from focusasr.model.transformer import Decoder, EncoderOutput

for loop in ("dtw_cpu", "backtrace"):  # compiling these takes longer than running them as they stand
    compiled = getattr(whisper.timing, loop)
    setattr(whisper.timing, loop, getattr(compiled, "py_func", compiled))

WIDTH, HEADS, LAYERS = 64, 2, 2
MULTILINGUAL, ENGLISH = 51865, 51864


def peer_model(seed: int = 0, vocabulary: int = MULTILINGUAL, mel_bands: int = 80) -> whisper.model.Whisper:
    """Return openai/whisper's model with random weights, scaled so that text, timestamps and ends all come.

    Plain random weights repeat one token for ever: here the logits are peaked, attention to the audio is sharp, and
    with every position later timestamps and the end token become likelier.
    """
    torch.manual_seed(seed)
    dims = ModelDimensions(mel_bands, 1500, WIDTH, HEADS, LAYERS, vocabulary, 448, WIDTH, HEADS, LAYERS)
    model = whisper.model.Whisper(dims).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.7 * weight[0].numel() ** -0.5)
            if "cross_attn.query.weight" in name or "cross_attn.key.weight" in name:
                weight.mul_(4.0)
            if "decoder" in name and ("mlp.2.weight" in name or "out.weight" in name):
                weight.mul_(2.0)
        _teach_order(model.decoder, 50257 if vocabulary >= MULTILINGUAL else 50256)
    return model


def _teach_order(decoder: torch.nn.Module, end: int) -> None:
    """Let positions point to the end token and, by waves of four lengths, to timestamps 0.18 s apart."""
    directions = torch.linalg.qr(torch.randn(WIDTH, 9)).Q.T
    rates = torch.tensor([1.0, 2.0, 4.0, 8.0]) * 2 * torch.pi / 1500

    def waves(count: int, step: int) -> Tensor:
        phases = step * torch.arange(count)[:, None] * rates
        return torch.cat((phases.cos(), phases.sin()), dim=1) @ directions[1:]

    places = torch.arange(448)[:, None]
    decoder.positional_embedding.normal_(std=0.8).add_(0.2 * places * directions[0] + 3.0 * waves(448, 9))
    decoder.token_embedding.weight.normal_(std=0.11)
    decoder.token_embedding.weight[end] = 0.9 * directions[0]
    decoder.token_embedding.weight[-1501:] = 0.1 * torch.randn(1501, WIDTH) + 0.45 * waves(1501, 1)
    decoder.ln.weight.fill_(3.4)


def ours(peer: whisper.model.Whisper) -> Checkpoint:
    """Return our model with the peer's weights, through a .pt file as OpenAI's are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peer.pt"
        torch.save({"dims": dataclasses.asdict(peer.dims), "model_state_dict": peer.state_dict()}, path)
        return load_checkpoint(path)


HUGGING_FACE_NAMES = {  # openai/whisper's → transformers'
    "cross_attn_ln": "encoder_attn_layer_norm",
    "attn_ln": "self_attn_layer_norm",
    "mlp_ln": "final_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "token_embedding": "embed_tokens",
    "positional_embedding": "embed_positions.weight",
    "encoder.ln_post": "encoder.layer_norm",
    "decoder.ln.": "decoder.layer_norm.",
    **{f".cross_attn.{part}": f".encoder_attn.{part[0]}_proj" for part in ("query", "key", "value")},
    **{f".attn.{part}": f".self_attn.{part[0]}_proj" for part in ("query", "key", "value")},
    ".cross_attn.out": ".encoder_attn.out_proj",
    ".attn.out": ".self_attn.out_proj",
}


def hugging_face_model(peer: whisper.model.Whisper) -> transformers.WhisperForConditionalGeneration:
    """Return transformers' model with the peer's weights."""
    dims = peer.dims
    config = transformers.WhisperConfig(
        vocab_size=dims.n_vocab,
        num_mel_bins=dims.n_mels,
        d_model=WIDTH,
        **{f"{side}_layers": LAYERS for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": HEADS for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": 4 * WIDTH for side in ("encoder", "decoder")},
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    weights = {}
    for name, weight in peer.state_dict().items():
        if name not in ("alignment_heads", "decoder.mask"):
            part = next((part for part in HUGGING_FACE_NAMES if part in name), "blocks")
            renamed = name.replace(part, HUGGING_FACE_NAMES.get(part, part)).replace("blocks", "layers")
            weights[f"model.{renamed}"] = weight
    model.load_state_dict({**weights, "proj_out.weight": peer.decoder.token_embedding.weight})
    return model


class PlainState(DecodingState):
    """The audio and all tokens of each text so far."""

    def __init__(self, audio: EncoderOutput) -> None:
        self.audio, self.tokens = audio, torch.empty(len(audio.states), 0, dtype=torch.long)

    def select(self, rows: Sequence[int]) -> None:
        self.audio, self.tokens = self.audio.select(list(rows)), self.tokens[list(rows)]


class PlainEngine(Engine):
    """The model's own decoder, which reads whole texts: the slow twin of the engine's."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def start(self, memory: EncoderOutput, group: int = 1) -> PlainState:
        return PlainState(memory)

    def advance(self, tokens: Tensor, state: DecodingState, last: bool = False) -> Tensor:
        assert isinstance(state, PlainState)
        before = state.tokens.shape[1]
        state.tokens = torch.cat((state.tokens, tokens), dim=1)
        return self._decoder(state.tokens, state.audio)[:, before:]


def chirps(seconds: float, seed: int = 0) -> Tensor:
    """Return made sound (N,) at 16 kHz: tones that glide, stop and start, over faint noise."""
    chance = torch.Generator().manual_seed(seed)
    times = torch.arange(round(seconds * 16_000)) / 16_000
    rates = torch.rand(5, generator=chance) * 0.7 + 0.1
    wave = 0.003 * torch.randn(len(times), generator=chance)
    for index, rate in enumerate(rates.tolist()):
        phase = 2 * torch.pi * (150 * 1.7**index * times + 60 * torch.sin(2 * torch.pi * rate * times) / rate)
        wave += 0.1 * torch.sin(phase) * (torch.sin(2 * torch.pi * rate * 1.3 * times + index) > 0.2)
    return wave
