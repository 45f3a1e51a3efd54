"""Transcription with a Whisper model in ONNX Runtime, without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from focusasr.audio.integrity import CutOff
from focusasr.audio.mel_stream import MelStream, log_power
from focusasr.audio.source import Source
from focusasr.config import DecodingConfig
from focusasr.decoding.onnx_decoder import OnnxWhisperDecoder
from focusasr.model.onnx_engine import Memory, OnnxEngine
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.transcription.result import Segment
from focusasr.transcription.whisper import WhisperRecognizer
from focusasr.whisper_config import LongformConfig, SearchConfig

if TYPE_CHECKING:
    from focusasr.model.transformer import Decoder
    from focusasr.transcription.whisper import AnyDecoder


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
        aligner: Decoder | None = None,
    ) -> None:
        self.device: Any = Device()
        self.aligner = aligner  # in PyTorch, for word times
        self._set(engine, tokenizer, config, search, longform)

    def _decoder(self) -> OnnxWhisperDecoder:
        return OnnxWhisperDecoder(self.engine, self.tokenizer, self.search, self.longform)

    def _mel_stream(self, source: Source, cut_off: Callable[[CutOff], object]) -> MelStream:
        pause = self.turns.pass_on if self.turns else lambda: None
        bands = self.engine.config.mel_bands
        return MelStream(source, self.engine.config, lambda samples: log_power(samples, bands), cut_off, pause)

    def _encoded(self, mel: np.ndarray) -> Memory:
        return self.engine.encode(mel)

    def _timed(
        self, reader: AnyDecoder, memory: Memory, frames: int, segments: list[Segment], last_speech: float
    ) -> list[Segment]:
        import torch

        from focusasr.model.transformer import EncoderOutput

        states = EncoderOutput(torch.from_numpy(memory.states), None, [])
        return super()._timed(reader, states, frames, segments, last_speech)
