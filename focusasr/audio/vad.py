"""Voice activity detection with silero-vad."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from focusasr.config import SAMPLE_RATE_HZ
from focusasr.runtime.libraries import library

if TYPE_CHECKING:
    import torch


FRAME_SAMPLES = 512  # 32 ms, one frame of silero-vad
FRAMES_PER_SECOND = SAMPLE_RATE_HZ / FRAME_SAMPLES
HYSTERESIS = 0.15  # speech ends when its probability is this far below the threshold

LOUD_ENOUGH, MOST_GAIN = (
    0.02,
    32.0,
)  # peak at which silero-vad detects all speech, and the largest gain towards it, 30 dB
CONTEXT_SAMPLES = 64  # silero-vad's context before each frame
CHANNELS = 128  # width of its LSTM

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
    """silero-vad version 6 with its own weights, many frames per call.

    The probabilities equal those of its packaged model (a test compares them), several times faster: only the
    recurrent layer processes the frames in sequence.
    """

    def __init__(self, threshold: float) -> None:
        import torch

        self._threshold, self._speaking, self._peak = threshold, False, 0.0
        self._weights = _silero_weights()
        self._recurrent = torch.nn.LSTM(CHANNELS, CHANNELS)
        self._recurrent.load_state_dict(
            {
                f"{kind}_l0": self._weights[f"decoder.rnn.{kind}"]
                for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            }
        )
        self._state = (torch.zeros(1, CHANNELS), torch.zeros(1, CHANNELS))
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
        import torch
        from torch.nn.functional import conv1d, pad

        from focusasr.runtime.devices import one_thread

        weights = self._weights
        self._peak = max(self._peak, float(np.abs(waveform).max(initial=0.0)))
        gain = np.float32(np.clip(LOUD_ENOUGH / max(self._peak, 1e-9), 1.0, MOST_GAIN))
        extended = np.concatenate([self._context, waveform * gain])
        self._context = extended[-CONTEXT_SAMPLES:]
        with one_thread(), torch.inference_mode():
            frames = torch.from_numpy(extended).unfold(0, CONTEXT_SAMPLES + FRAME_SAMPLES, FRAME_SAMPLES)  # (n, 576)
            waves = conv1d(pad(frames[:, None], (0, 64), "reflect"), weights["stft.forward_basis_buffer"], stride=128)
            hidden = torch.hypot(*waves.chunk(2, dim=1))  # (n, 129, 4)
            for layer, stride in enumerate((1, 2, 2, 1)):
                name = f"encoder.{layer}.reparam_conv"
                hidden = conv1d(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding=1).relu()
            remembered, self._state = self._recurrent(hidden[..., 0], self._state)  # (n, 128)
            last = "decoder.decoder.2"
            scores = conv1d(remembered.relu()[..., None], weights[f"{last}.weight"], weights[f"{last}.bias"])
        return scores.sigmoid().flatten().numpy()


@functools.cache
def _silero_weights() -> dict[str, torch.Tensor]:
    """Return the weights of silero-vad's 16 kHz model by name."""
    from focusasr.runtime.devices import one_thread

    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about TorchScript, which silero-vad uses
        with library("silero_vad"):
            import silero_vad

        return dict(silero_vad.load_silero_vad()._model.state_dict())
