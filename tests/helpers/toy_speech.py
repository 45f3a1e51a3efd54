"""Made speech for tests: every letter is a tone of its own, a space is silence; and models small enough for seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from focusasr.audio.features import log_mel
from focusasr.config import SAMPLE_RATE_HZ, ModelConfig, TextConfig
from focusasr.data.manifest import Utterance, write_manifest
from focusasr.model.transformer import Model
from focusasr.text.tokenizer import Tokenizer, train_tokenizer

LETTER_SECONDS = 0.16
TINY = {
    "width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "max_span": 8, "ramp": 2, "win_size": 8,
    "text_context": 40, "dropout": 0.0, "mel_bands": 20,
}  # fmt: skip


def sung(text: str) -> np.ndarray:
    """Return the waveform (N,) of a text in the letters a to z: 160 ms each, of which the last 20 are silent."""
    samples = round(LETTER_SECONDS * SAMPLE_RATE_HZ)
    times = np.arange(samples) / SAMPLE_RATE_HZ
    loud = 0.3 * (times < LETTER_SECONDS - 0.02)
    tones = [loud * np.sin(2 * np.pi * 200 * 1.15 ** (ord(char) - ord("a")) * times) * (char != " ") for char in text]
    return np.concatenate([np.zeros(0), *tones]).astype(np.float32)


def write_song_book(folder: Path, texts: Sequence[str], name: str = "songs") -> Path:
    """Write one wav per text and the manifest of all, without durations; return the manifest's path."""
    utterances = []
    for number, text in enumerate(texts):
        path = folder.absolute() / name / f"{number:02}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, sung(text), SAMPLE_RATE_HZ, "FLOAT")
        utterances.append(Utterance(path, text))
    write_manifest(folder / f"{name}.jsonl", utterances)
    return folder / f"{name}.jsonl"


def letters_tokenizer(letters: str = "abcdefgh ") -> Tokenizer:
    """Return a character tokenizer that knows the letters."""
    return train_tokenizer([letters], TextConfig())


def tiny_model(tokenizer: Tokenizer, seed: int = 0, **settings: object) -> Model:
    """Return an untrained tiny model in evaluation mode; `settings` change its configuration."""
    torch.manual_seed(seed)
    return Model(ModelConfig(**{**TINY, "vocabulary": tokenizer.size, **settings})).eval()  # type: ignore[arg-type]


def mels(texts: Sequence[str], mel_bands: int = 20) -> list[Tensor]:
    """Return the spectrogram (F, M) of each text."""
    return [log_mel(torch.from_numpy(sung(text)), mel_bands) for text in texts]
