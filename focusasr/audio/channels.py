"""Downmix to one channel: the mean, or one channel if the channels cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from focusasr.audio.integrity import NoSuchPart
from focusasr.runtime.console import warn_once

CANCELLED = 0.01  # lowest power of the mean, relative to the channels' (-20 dB), before they count as cancelled
AUDIBLE = 1e-8  # lowest power that is checked, -80 dBFS
AS_LOUD = 0.25  # of the loudest channel's power: the first channel above it replaces the mean


def check_channel(channel: int | None, channels: int, name: str) -> None:
    """Raise NoSuchPart if a recording does not have the channel."""
    if channel is not None and channel >= channels:
        seen = f"has no channel {channel}, only {channels}, counted from 0"
        raise NoSuchPart(f"{name}: {seen}; correct --channel, or the line's channel")


def mix(block: np.ndarray, name: str) -> np.ndarray:
    """Return one channel (n,) for a block (n, channels) of the recording `name`.

    Channels of opposite polarity cancel in the mean: then one of them is returned, with one warning per recording.
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
    """Return the mean (n,) of a block (n, channels), summed by column, which is much faster in NumPy."""
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
    """Return audio track `track`, counted from 0, or the default track, with a warning if there are several.

    NoSuchPart if there is no such track.
    """
    if track is not None:
        if track >= len(tracks):
            seen = f"has no audio track {track}, only {len(tracks)}, counted from 0"
            raise NoSuchPart(f"{name}: {seen}; correct --audio-track")
        return tracks[track]
    place = next((place for place, one in enumerate(tracks) if "default" in _marks(one)), 0)
    if len(tracks) > 1:
        language = tracks[place].metadata.get("language")
        which = f"{place} of 0 to {len(tracks) - 1}" + (f" ({language})" if language else "")
        warn_once(f"focusasr: {name}: several audio tracks; {which} is read, and --audio-track chooses another")
    return tracks[place]


def _marks(track: Any) -> set[str]:
    return {mark.name for mark in type(track.disposition) if mark in track.disposition}
