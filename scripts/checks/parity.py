"""Numerical parity of focusasr with transformers and openai-whisper: a table of differences.

Run `.venv/bin/python scripts/checks/parity.py`; it needs the extra `peers` (transformers, openai-whisper). Weights are
random, of the shapes of Whisper's own models, written and read as files. Each comparison is a function that yields
rows; the tests compare every row with its bound.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from focusasr.audio.features import log_mel
from focusasr.config import SAMPLE_RATE_HZ, TextConfig, WhisperConfig
from focusasr.model.checkpoint import Checkpoint, load_checkpoint
from focusasr.model.engine import Engine
from focusasr.model.export import write_vocabulary
from focusasr.text.whisper_tokenizer import WhisperTokenizer, openai_engine

PEERS = ("whisper", "transformers")
WINDOW_SAMPLES = 30 * SAMPLE_RATE_HZ
SHAPES = {  # mel bands, width, heads, encoder layers, decoder layers, vocabulary
    "tiny": (80, 384, 6, 4, 4, 51_865),
    "tiny.en": (80, 384, 6, 4, 4, 51_864),
    "128 bands, shallow decoder": (128, 128, 2, 3, 1, 51_866),
}
TEXTS = [
    " Hello there, how's it going? I'll be 25 on May 3rd.",
    "  two  spaces,\ttabs\nand lines \n\n",
    " Größe, Äpfel, ÇA VA? Où ça, œuvre",
    " Привет, как дела? Ё-моё!",
    "你好，世界。今天天气很好",
    "こんにちは世界 カタカナ",
    "안녕하세요 세계",
    " مرحبا بالعالم، كيف حالك؟",
    " नमस्ते दुनिया कैसे हो",
    " สวัสดีชาวโลก",
    "🎉 👩‍👩‍👧 ♪ la la ♪ <|notimestamps|> <|en|>",
    "e\u0301 \u00e9 \ufb01 \u200b\u2060 \U0001d54f",
    "",
]


class Row(NamedTuple):
    """One comparison: the quantity, the peer, the largest difference, and the largest allowed."""

    what: str
    against: str
    difference: float
    allowed: float


class Sound(NamedTuple):
    """The input of both sides: mel (1, F, M) in our order, and tokens (1, L)."""

    mel: Tensor
    tokens: Tensor


class Answers(NamedTuple):
    """Encoder output, logits of all tokens, and those of the engine, token by token (of peers: of all tokens)."""

    states: Tensor
    logits: Tensor
    engine: Tensor


def largest(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference; infinite if the shapes differ."""
    return float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")


def sounds() -> dict[str, Tensor]:
    """Return synthetic audio (N,): noise, a chord over noise, a few clicks, silence."""
    torch.manual_seed(0)
    times = torch.arange(5 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    chord = sum(torch.sin(2 * torch.pi * hz * times) for hz in (220.0, 554.37, 1318.5, 3520.0))
    clicks = torch.zeros(len(times))
    clicks[::4001] = 1.0
    noise = torch.randn(len(times))
    chord = 0.1 * chord + 0.001 * noise
    return {"noise": 0.1 * noise, "chord": chord, "clicks": clicks, "silence": torch.zeros(len(times))}


def openai_model(shape: str) -> Any:
    """Return openai-whisper's model with random weights."""
    from whisper.model import ModelDimensions, Whisper

    bands, width, heads, encoder_layers, decoder_layers, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    dims = ModelDimensions(bands, 1500, width, heads, encoder_layers, vocabulary, 448, width, heads, decoder_layers)
    model = Whisper(dims).eval()
    torch.nn.init.normal_(model.decoder.positional_embedding, std=0.02)  # the package leaves it uninitialized
    torch.nn.init.normal_(model.decoder.token_embedding.weight, std=width**-0.5)  # logits of a trained model's size
    return model


def write_openai(model: Any, path: Path) -> Path:
    """Write the model in the format of OpenAI's own files."""
    torch.save({"dims": dataclasses.asdict(model.dims), "model_state_dict": model.state_dict()}, path)
    return path


def hugging_face_model(shape: str) -> Any:
    """Return transformers' model with random weights of ten times its default deviation, so that layers matter."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    bands, width, heads, encoder_layers, decoder_layers, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=vocabulary, num_mel_bins=bands, d_model=width, encoder_layers=encoder_layers,
        decoder_layers=decoder_layers, encoder_attention_heads=heads, decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width, init_std=0.05,
    )  # fmt: skip
    return WhisperForConditionalGeneration(config).eval()


def something_heard(shape: str) -> Sound:
    """Return half a minute of noise as features, and tokens."""
    torch.manual_seed(1)
    bands, vocabulary = SHAPES[shape][0], SHAPES[shape][-1]
    mel = log_mel(0.1 * torch.randn(WINDOW_SAMPLES), bands)[None]
    return Sound(mel, torch.randint(vocabulary, (1, 8)))


@torch.inference_mode()
def our_answers(checkpoint: Checkpoint, sound: Sound) -> Answers:
    """Return the model's results, and the engine's logits token by token, which users get."""
    model = checkpoint.model
    memory = model.encode(sound.mel, torch.tensor([sound.mel.shape[1]]))
    engine = Engine(model)
    under_way = engine.start(memory)
    fused = [engine.advance(token[:, None], under_way) for token in sound.tokens.T]
    return Answers(memory.states, model.decoder(sound.tokens, memory), torch.cat(fused, dim=1))


@torch.inference_mode()
def openai_answers(model: Any, sound: Sound) -> Answers:
    """Return the results of openai-whisper's model."""
    states = model.encoder(sound.mel.transpose(1, 2))
    whole = model.decoder(sound.tokens, states)
    return Answers(states, whole, whole)


@torch.inference_mode()
def hugging_face_answers(model: Any, sound: Sound) -> Answers:
    """Return the results of transformers' model."""
    whole = model(sound.mel.transpose(1, 2), decoder_input_ids=sound.tokens)
    return Answers(whole.encoder_last_hidden_state, whole.logits, whole.logits)


def compare_shape(shape: str, folder: Path) -> Iterator[Row]:
    """Compare one shape: OpenAI's file with openai-whisper, a folder in shards with transformers."""
    sound, name = something_heard(shape), shape.replace(" ", "-").replace(",", "")
    openai, face = openai_model(shape), hugging_face_model(shape)
    checkpoint = load_checkpoint(write_openai(openai, folder / f"{name}.pt"))
    assert isinstance(checkpoint.tokenizer, WhisperTokenizer)
    face.save_pretrained(folder / name, max_shard_size="60MB")
    write_vocabulary(folder / name, checkpoint.tokenizer)
    for peer, read, theirs in (
        ("openai-whisper", checkpoint, openai_answers(openai, sound)),
        ("transformers", load_checkpoint(folder / name), hugging_face_answers(face, sound)),
    ):
        names = ("encoder output", "decoder logits", "the engine's logits")
        for what, a, b in zip(names, our_answers(read, sound), theirs, strict=True):
            yield Row(f"{what}, {shape}", peer, largest(a, b), 1e-4)


def compare_features(_folder: Path) -> Iterator[Row]:
    """Compare log-mel spectrograms of half a minute in 80 and 128 bands."""
    from transformers import WhisperFeatureExtractor
    from whisper.audio import log_mel_spectrogram, pad_or_trim

    for bands in (80, 128):
        extractor = WhisperFeatureExtractor(feature_size=bands)
        for name, wave in sounds().items():
            ours = log_mel(wave, bands, WINDOW_SAMPLES)
            openai = log_mel_spectrogram(pad_or_trim(wave), bands).T
            yield Row(f"log-mel, {bands} bands, {name}", "openai-whisper", largest(ours, openai), 1e-4)
            face = extractor(wave.numpy(), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features[0].T
            yield Row(f"log-mel, {bands} bands, {name}", "transformers", largest(ours, face), 1e-4)


def compare_tokenizers(folder: Path) -> Iterator[Row]:
    """Compare ids and texts of many scripts, special ids and suppressed ids; differences are counted."""
    from transformers import WhisperTokenizer as Theirs
    from whisper.tokenizer import get_tokenizer

    policy = TextConfig("keep", "keep", "bpe")
    for vocabulary in (51_864, 51_865, 51_866):
        ours = WhisperTokenizer(openai_engine(vocabulary), policy, WhisperConfig(multilingual=vocabulary > 51_864))
        languages = 100 if vocabulary > 51_865 else 99
        openai = get_tokenizer(ours.whisper.multilingual, num_languages=languages)
        ids = sum(ours.encode_exactly(text) != openai.encoding.encode_ordinary(text) for text in TEXTS)
        texts = sum(ours.decode_exactly(ours.encode_exactly(text)) != text for text in TEXTS)
        yield Row(f"token ids of {len(TEXTS)} texts, {vocabulary} tokens", "openai-whisper", ids, 0)
        yield Row(f"the same texts back, {vocabulary} tokens", "the texts", texts, 0)
        specials = sum(ours.token(name) != id for name, id in openai.special_tokens.items())
        yield Row(f"{len(openai.special_tokens)} special ids, {vocabulary} tokens", "openai-whisper", specials, 0)
        suppressed = len(set(ours.non_speech_tokens()) ^ set(openai.non_speech_tokens))
        yield Row(f"non-speech tokens, {vocabulary} tokens", "openai-whisper", suppressed, 0)
        (folder / str(vocabulary)).mkdir()
        write_vocabulary(folder / str(vocabulary), ours)
        face = Theirs.from_pretrained(folder / str(vocabulary))
        plain = [text for text in TEXTS if "<|" not in text]
        ids = sum(ours.encode_exactly(text) != face.encode(text, add_special_tokens=False) for text in plain)
        yield Row(f"token ids of {len(plain)} texts, {vocabulary} tokens", "transformers", ids, 0)
        specials = sum(face.convert_tokens_to_ids(name) != id for name, id in openai.special_tokens.items())
        yield Row(f"{len(openai.special_tokens)} special ids, {vocabulary} tokens", "transformers", specials, 0)


COMPARISONS: list[Callable[[Path], Iterator[Row]]] = [
    compare_features,
    compare_tokenizers,
    *(functools.partial(compare_shape, shape) for shape in SHAPES),
]


def main() -> None:
    """Print the table; exit status 1 if a difference is larger than allowed."""
    lacking = [name for name in PEERS if importlib.util.find_spec(name) is None]
    if lacking:
        raise SystemExit(f"{' and '.join(lacking)} not installed; pip install -e '.[peers]'")
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    table = Table("what", "against", "largest difference", "allowed", box=None, pad_edge=False)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        for compare in COMPARISONS:
            for row in compare(Path(folder)):
                table.add_row(row.what, row.against, f"{row.difference:.2g}", f"{row.allowed:g}")
                wrong += row.difference > row.allowed
    Console(width=120).print(table)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
