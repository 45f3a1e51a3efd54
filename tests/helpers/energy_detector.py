"""A detector of speech by its level, for tests with noise and tones, in which silero-vad finds no speech."""

from __future__ import annotations

import numpy as np

from focusasr.audio.vad import FRAME_SAMPLES, FRAMES_PER_SECOND

QUIETEST_DB = -60.0  # lowest noise floor of the energy detector, in dBFS
RISE_DB = 1.0 / FRAMES_PER_SECOND  # rise of its floor per frame, 1 dB per second
ABOVE_FLOOR_DB = 6.0  # lowest level of speech above the floor


class EnergyDetector:
    """Speech by energy above a tracked noise floor.

    The floor falls immediately to every quieter frame and rises slowly, so that speech does not raise it.
    """

    def __init__(self) -> None:
        self._floor_db = QUIETEST_DB

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """Return which frames are speech (n,) for the next samples (n * 512,) of the recording."""
        power = waveform.reshape(-1, FRAME_SAMPLES).var(axis=1)  # variance, without the DC offset
        levels_db = 10 * np.log10(power + 1e-12)
        speech = np.zeros(len(levels_db), bool)
        for index, level_db in enumerate(levels_db):
            self._floor_db = max(QUIETEST_DB, min(level_db, self._floor_db + RISE_DB))
            speech[index] = level_db > self._floor_db + ABOVE_FLOOR_DB
        return speech
