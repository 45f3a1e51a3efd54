"""Transcription with a Whisper model in ONNX Runtime, without PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from focusasr.audio.integrity import CutOff
from focusasr.audio.mel_stream import MelStream, log_mel, log_power
from focusasr.audio.segmentation import AudioSegment
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ, DecodingConfig
from focusasr.decoding.onnx_decoder import OnnxWhisperDecoder
from focusasr.model.onnx_engine import OnnxEngine
from focusasr.model.onnx_memory import Memory
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.transcription.whisper import WhisperRecognizer
from focusasr.transcription.whisper_batched import BatchedWhisperRecognizer
from focusasr.whisper_config import LongformConfig, SearchConfig

SHORTEST_REST_SECONDS = 1.0  # after the last time of a chunk's text, which would be decoded again
MOST_TOGETHER = 4  # windows of a batch: more take memory, and no less time


class Device(NamedTuple):
    """The device of this recognizer, with the name that PyTorch's has."""

    type: str = "cpu"


class OnnxRecognizer(WhisperRecognizer):
    """A Whisper model that transcribes recordings window by window, in 8 bit integers."""

    engine: OnnxEngine

    def __init__(
        self,
        engine: OnnxEngine,
        tokenizer: WhisperTokenizer,
        config: DecodingConfig,
        search: SearchConfig,
        longform: LongformConfig,
    ) -> None:
        self.device: Any = Device()
        self._set(engine, tokenizer, config, search, longform)

    def _decoder(self) -> OnnxWhisperDecoder:
        return OnnxWhisperDecoder(self.engine, self.tokenizer, self.search, self.longform)

    def _mel_stream(self, source: Source, cut_off: Callable[[CutOff], object]) -> MelStream:
        pause = self.turns.pass_on if self.turns else lambda: None
        bands = self.engine.config.mel_bands
        return MelStream(source, self.engine.config, lambda samples: log_power(samples, bands), cut_off, pause)

    def _encoded(self, mel: np.ndarray) -> Memory:
        return self.engine.encode([mel])

    def _attention(self, memory: Memory, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        logits, scores = self.engine.attention(tokens, memory)
        return logits, np.stack([scores[layer][head] for layer, head in self.tokenizer.whisper.alignment_heads])


class OnnxBatchedRecognizer(OnnxRecognizer, BatchedWhisperRecognizer):
    """A Whisper model that decodes many chunks at once, in 8 bit integers."""

    def _set(self, *settings: Any) -> None:
        super()._set(*settings)
        self.batch_size = min(self.batch_size, MOST_TOGETHER)

    def _ends(self, pieces: Sequence[AudioSegment]) -> tuple[list[float], ...]:
        timed = not self.longform.without_timestamps
        ends = [len(piece.waveform) / SAMPLE_RATE_HZ - SHORTEST_REST_SECONDS for piece in pieces]
        return (ends,) if timed else ()

    def _window(self, memory: Memory, row: int) -> Memory:
        return memory.window(row)

    def _mel(self, piece: AudioSegment) -> np.ndarray:
        mel = log_mel(self._samples(piece), self.engine.config.mel_bands)
        return np.pad(mel, ((0, self.engine.config.input_frames(len(mel)) - len(mel)), (0, 0)))
