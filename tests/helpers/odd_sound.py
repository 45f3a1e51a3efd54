"""Odd sound, none of it damaged: any width, rate and number of channels, hardly any samples, silence, clipping, NaN."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from tests.helpers.broken_sound import Case, packed, tone

RATES_HZ = (1, 7, 100, 999, 1000, 1001, 4000, 7350, 11_025, 22_050, 44_100, 96_000, 192_000, 384_000, 655_350, 768_000)
WIDTHS = {
    "WAV": "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW IMA_ADPCM MS_ADPCM GSM610",
    "WAVEX": "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE", "RF64": "PCM_24 DOUBLE", "W64": "PCM_24 DOUBLE",
    "AIFF": "PCM_S8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE", "CAF": "PCM_S8 PCM_24 DOUBLE ALAC_16 ALAC_24",
    "AU": "PCM_S8 PCM_24 DOUBLE ULAW", "FLAC": "PCM_S8 PCM_16 PCM_24", "OGG": "VORBIS OPUS", "MP3": "MPEG_LAYER_III",
}  # fmt: skip
NUMBERS = {
    "NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf, "1e30": 1e30, "beyond float32": 1e300,
}  # fmt: skip
SUFFIXES = {"WAVEX": ".wav", "RF64": ".wav"}


def formats() -> Iterator[tuple[str, str, str]]:
    """Yield each container with each of its widths, and the suffix."""
    for container, subtypes in WIDTHS.items():
        for subtype in subtypes.split():
            yield container, subtype, SUFFIXES.get(container, f".{container.lower()}")


def fine_sound() -> Iterator[Case]:
    """Yield what must be heard: any width, rate from 1000 Hz on, number of channels, level and length."""
    loud = {
        "constant": np.full(8000, 0.9), "full scale": np.full(8000, -1.0), "zeros": np.zeros(8000),
        "clipped": np.clip(20 * tone(), -1, 1), "square": np.sign(tone()), "denormal": np.full(8000, 1e-42),
        "one click": np.eye(1, 8000, 4000)[0], "far above full scale": 1000 * tone(),
    }  # fmt: skip
    for container, subtype, suffix in formats():
        yield Case("width", f"{container} {subtype}", suffix, packed(tone(), container, subtype))
        for samples in (0, 1, 2):
            if samples or container not in ("FLAC", "OGG", "MP3"):  # libsndfile leaves out their ends, or all
                data = packed(tone()[:samples], container, subtype)
                yield Case("few samples", f"{samples} in {container} {subtype}", suffix, data)
    for what, waveform in loud.items():
        for container in ("WAV", "FLAC", "OGG"):
            yield Case("level", f"{what} in {container}", f".{container.lower()}", packed(waveform, container))
        yield Case("level", f"{what} in float64", ".wav", packed(waveform, "WAV", "DOUBLE"))
    for rate_hz in RATES_HZ:
        if rate_hz >= 1000:
            for container in ("WAV", "AIFF", "FLAC")[: 2 if rate_hz > 655_350 else 3]:
                data = packed(tone(0.3, rate_hz), container, rate_hz=rate_hz)
                yield Case("rate", f"{rate_hz} Hz in {container}", f".{container.lower()}", data)
    for channels in range(2, 65):
        many = np.repeat(tone(0.1)[:, None], channels, axis=1)
        for container in ("WAV", "AIFF", "OGG", "FLAC")[: 4 if channels <= 8 else 2]:
            yield Case("channels", f"{channels} in {container}", f".{container.lower()}", packed(many, container))


def no_sound() -> Iterator[Case]:
    """Yield what must be refused: rates below 1000 Hz, and samples that no number of float32 can be."""
    for rate_hz in RATES_HZ:
        if rate_hz < 1000:
            for container in ("WAV", "AIFF", "FLAC"):
                data = packed(tone(0.1), container, rate_hz=rate_hz)
                yield Case("rate too low", f"{rate_hz} Hz in {container}", f".{container.lower()}", data)
    for what, value in NUMBERS.items():
        for place, at in (("first", 0), ("middle", 7000), ("last", -1)):
            for subtype in ("FLOAT", "DOUBLE"):
                waveform = tone().astype(np.float64)
                waveform[at] = value
                for container in ("WAV", "AIFF", "AU"):
                    data = packed(waveform, container, subtype)
                    yield Case("no number", f"{what}, {place}, {container} {subtype}", f".{container.lower()}", data)


def write_silence(path: Path, hours: float, rate_hz: int) -> None:
    """Write hours of silence, which FLAC packs into a few thousand bytes each."""
    minute = np.zeros(60 * rate_hz, np.int16)
    with soundfile.SoundFile(path, "w", rate_hz, 1, compression_level=0.0) as out:
        for _ in range(round(60 * hours)):
            out.write(minute)
