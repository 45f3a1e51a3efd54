"""Voice activity detection with silero-vad."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from focusasr.config import SAMPLE_RATE_HZ
from focusasr.runtime.libraries import library
from focusasr.runtime.onnx import run, session

FRAME_SAMPLES = 512  # 32 ms, one frame of silero-vad
FRAMES_PER_SECOND = SAMPLE_RATE_HZ / FRAME_SAMPLES
HYSTERESIS = 0.15  # speech ends when its probability is this far below the threshold

LOUD_ENOUGH = 0.02  # peak at which silero-vad detects all speech
MOST_GAIN = 32.0  # the largest gain towards it, 30 dB
CONTEXT_SAMPLES = 64  # silero-vad's context before each frame
CHANNELS = 128  # width of its LSTM
MOST_FRAMES = 512  # in one call, 16 s

Detector = Callable[[np.ndarray], np.ndarray]  # samples (n * 512,) → which frames are speech (n,), in order of time


def speech_frames(waveform: np.ndarray, vad_threshold: float = 0.5) -> np.ndarray:
    """Return which frames of 512 samples of a whole recording (N,) at 16 kHz are speech (n,), the last one padded."""
    return detector(vad_threshold)(whole_frames(waveform))


def whole_frames(waveform: np.ndarray) -> np.ndarray:
    """Pad the end of a recording with zeros to a whole number of frames."""
    return np.pad(waveform, (0, -len(waveform) % FRAME_SAMPLES))


def detector(threshold: float) -> Detector:
    """Return a detector for a new recording."""
    return SileroDetector(threshold)


class SileroDetector:
    """silero-vad version 6, many frames per call."""

    def __init__(self, threshold: float) -> None:
        self._threshold, self._speaking, self._peak = threshold, False, 0.0
        self._session = _silero()
        self._state = [np.zeros((1, 1, CHANNELS), np.float32)] * 2
        self._context = np.zeros(CONTEXT_SAMPLES, np.float32)

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return which frames are speech (n,) for the next samples (n * 512,) of the recording."""
        speech = np.zeros(len(waveform) // FRAME_SAMPLES, bool)
        eased = max(0.01, self._threshold - HYSTERESIS)
        for index, probability in enumerate(self.probabilities(waveform)):
            self._speaking = probability >= (eased if self._speaking else self._threshold)
            speech[index] = self._speaking
        return speech

    def probabilities(self, waveform: np.ndarray) -> np.ndarray:
        """Return the probability of speech in each frame (n,) for the next samples (n * 512,) of the recording.

        A recording with a low peak so far is amplified, since the model does not detect very soft speech.
        """
        self._peak = max(self._peak, float(np.abs(waveform).max(initial=0.0)))
        gain = np.float32(np.clip(LOUD_ENOUGH / max(self._peak, 1e-9), 1.0, MOST_GAIN))
        extended = np.concatenate([self._context, waveform * gain])
        self._context = extended[-CONTEXT_SAMPLES:]
        parts = [np.zeros(0, np.float32)]
        for start in range(0, len(waveform), FRAME_SAMPLES * MOST_FRAMES):
            piece = extended[start : start + CONTEXT_SAMPLES + FRAME_SAMPLES * MOST_FRAMES]
            frames = np.lib.stride_tricks.sliding_window_view(piece, CONTEXT_SAMPLES + FRAME_SAMPLES)[::FRAME_SAMPLES]
            part, *self._state = run(self._session, {"input": frames, "h": self._state[0], "c": self._state[1]})
            parts.append(part)
        return np.concatenate(parts)


@functools.cache
def _silero() -> Any:
    """Return a session of silero-vad's 16 kHz model for many frames: (n, 576), h, c → (n,), h, c."""
    with library("silero_vad"):
        package = find_spec("silero_vad")  # not imported: that would load PyTorch
        if package is None or package.origin is None:
            raise ModuleNotFoundError("No module named 'silero_vad'", name="silero_vad")
        return session(Path(package.origin).parent / "data" / "silero_vad_16k_sequence.onnx", threads=1)
