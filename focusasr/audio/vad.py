"""Voice activity detection: which frames of a recording are speech."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from focusasr.config import SAMPLE_RATE_HZ
from focusasr.runtime.libraries import library

if TYPE_CHECKING:
    import torch


FRAME_SAMPLES = 512  # 32 ms, what silero-vad judges at once
FRAMES_PER_SECOND = SAMPLE_RATE_HZ / FRAME_SAMPLES
HYSTERESIS = 0.15  # speech goes on until its probability falls this far below the threshold

LOUD_ENOUGH, MOST_GAIN = 0.02, 32.0  # peak from which silero-vad hears all speech, and 30 dB at most towards it
CONTEXT_SAMPLES = 64  # silero-vad sees these before each frame
CHANNELS = 128  # width of its memory

QUIETEST_DB = -60.0  # the energy detector's floor in silence; full scale is 0
RISE_DB = 1.0 / FRAMES_PER_SECOND  # its floor rises by 1 dB a second
ABOVE_FLOOR_DB = 6.0  # speech stands out by so much

Detector = Callable[[np.ndarray], np.ndarray]  # samples (n * 512,) → which frames are speech (n,), in the order of time


def speech_frames(waveform: np.ndarray, vad_threshold: float = 0.5) -> np.ndarray:
    """Return which frames of 512 samples of a whole recording (N,) at 16 kHz are speech (n,), the last one padded."""
    return detector(vad_threshold)(whole_frames(waveform))


def whole_frames(waveform: np.ndarray) -> np.ndarray:
    """Pad the end of a recording with zeros to a whole number of frames."""
    return np.pad(waveform, (0, -len(waveform) % FRAME_SAMPLES))


def detector(threshold: float) -> Detector:
    """Return silero-vad, ready for a new recording, or the energy detector where it is not installed."""
    if importlib.util.find_spec("silero_vad") is None:
        return EnergyDetector()
    return SileroDetector(threshold)


class SileroDetector:
    """Speech by silero-vad, version 6, with its own weights but many frames in one call.

    The probabilities are those that its packaged model gives frame by frame, several times faster (a test compares
    the two): only the recurrent layer has to go through the frames one after the other.
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

        A recording whose peak so far is low is heard louder: of very soft speech the model makes nothing.
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
    """Return the weights of silero-vad's model for 16 kHz by their names."""
    from focusasr.runtime.devices import one_thread

    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is silero-vad's choice
        with library("silero_vad"):
            import silero_vad

        return dict(silero_vad.load_silero_vad()._model.state_dict())


class EnergyDetector:
    """Speech by loudness, where silero-vad is not installed: what stands out from a floor that is tracked.

    The floor falls to every quieter frame at once and rises slowly, so that a voice does not become its own floor.
    """

    def __init__(self) -> None:
        self._floor_db = QUIETEST_DB

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return which frames are speech (n,) for the next samples (n * 512,) of the recording."""
        power = waveform.reshape(-1, FRAME_SAMPLES).var(axis=1)  # a constant offset is no sound
        levels_db = 10 * np.log10(power + 1e-12)
        speech = np.zeros(len(levels_db), bool)
        for index, level_db in enumerate(levels_db):
            self._floor_db = max(QUIETEST_DB, min(level_db, self._floor_db + RISE_DB))
            speech[index] = level_db > self._floor_db + ABOVE_FLOOR_DB
        return speech
