"""Several channels made one: their mean, or one of them where they cancel each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from focusasr.audio.integrity import AudioError
from focusasr.runtime.console import warn_once

CANCELLED = 0.01  # of the channels' power: a mean with less, 20 dB below them, has lost what they say
AUDIBLE = 1e-8  # power, 80 dB below full scale, from which that matters
AS_LOUD = 0.25  # of the loudest channel's power: the first channel that has so much stands for all


def check_channel(channel: int | None, channels: int, name: str) -> None:
    """Refuse a channel that a recording does not have: AudioError."""
    if channel is not None and channel >= channels:
        seen = f"channel {channel} is wanted and it has {channels}, counted from 0"
        raise AudioError(f"{name}: {seen}; correct --channel, or the line's channel")


def mix(block: np.ndarray, name: str) -> np.ndarray:
    """Return one channel (n,) for a block (n, channels) of the recording `name`.

    Microphones with wires the wrong way round cancel each other in the mean; a warning says so once.
    """
    mean = _mean(block)
    if block.shape[1] == 1 or not len(block):
        return mean
    powers = np.array([np.vdot(block[:, channel], block[:, channel]) for channel in range(block.shape[1])]) / len(block)
    whole = float(powers.mean())
    if whole < AUDIBLE or float(np.vdot(mean, mean)) / len(block) > CANCELLED * whole:
        return mean
    channel = int(np.argmax(powers >= AS_LOUD * powers.max()))
    remedy = f"channel {channel} is read there, and --channel chooses another"
    warn_once(f"focusasr: {name}: its channels cancel each other; {remedy}")
    return block[:, channel]


def _mean(block: np.ndarray) -> np.ndarray:
    """Return the mean of the channels of a block (n, channels); column by column, which NumPy does much faster."""
    if block.shape[1] > 8:
        return block.mean(axis=1)
    total = block[:, 0].copy()
    for column in range(1, block.shape[1]):
        total += block[:, column]
    return total / np.float32(block.shape[1])


def frame_values(frame: Any) -> np.ndarray:
    """Return an FFmpeg frame as (n, channels) float32, integers scaled to -1 ... 1."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(frame.samples, -1)
    if values.dtype.kind in "iu":
        half = 2.0 ** (8 * values.itemsize - 1)
        values = values / half - (1.0 if values.dtype.kind == "u" else 0.0)
    return values.astype(np.float32)


def choose_track(tracks: Sequence[Any], track: int | None, name: str) -> Any:
    """Return the audio track that was asked for, counted from 0, or else the default one.

    Where there are several, a warning names the default one. AudioError where there is no such track.
    """
    if track is not None:
        if track >= len(tracks):
            seen = f"has no audio track {track}, only {len(tracks)}, counted from 0"
            raise AudioError(f"{name}: {seen}; correct --audio-track")
        return tracks[track]
    place = next((place for place, one in enumerate(tracks) if "default" in _marks(one)), 0)
    if len(tracks) > 1:
        language = tracks[place].metadata.get("language")
        which = f"{place} of 0 to {len(tracks) - 1}" + (f" ({language})" if language else "")
        warn_once(f"focusasr: {name}: several audio tracks; {which} is read, and --audio-track chooses another")
    return tracks[place]


def _marks(track: Any) -> set[str]:
    return {mark.name for mark in type(track.disposition) if mark in track.disposition}
