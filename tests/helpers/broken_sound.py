"""Broken sound, made anew each time: every header field bent, cut everywhere, dressed up as something else.

Everything is made of one short tone and one seed, so that two runs read the same bytes.
"""

from __future__ import annotations

import io
import itertools
import random
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from focusasr.audio.load import stream, total_seconds
from focusasr.audio.source import find_sources

RATE_HZ = 16_000
WAV = (
    "RIFF:32 size:32 WAVE:32 fmt:32 fmt_size:32 format:16 channels:16 rate:32 byte_rate:32 align:16 bits:16 "
    "data:32 data_size:32"
)
WAVEX = WAV.replace(" data:", " extension:16 valid_bits:16 mask:32 guid:128 fact:32 fact_size:32 frames:32 data:")
FLAC_STREAM = (
    "fLaC:32 last:1 type:7 length:24 smallest_block:16 largest_block:16 smallest_frame:24 largest_frame:24 rate:20 "
    "channels:3 bits:5 samples:36 md5:128 next_last:1 next_type:7 next_length:24"
)
FLAC_FRAME = "sync:14 reserved:1 strategy:1 block:4 rate:4 channels:4 bits:3 zero:1 number:8 crc:8"
OGG_PAGE = "OggS:32 version:8 flags:8 granule:64 serial:32 number:32 crc:32 segments:8 lacing:8"
VORBIS = "type:8 vorbis:48 version:32 channels:8 rate:32 most:32 usual:32 least:32 long:4 short:4 framing:8"
OPUS = "OpusHead:64 version:8 channels:8 skip:16 rate:32 gain:16 family:8"
MP3_FRAME = (
    "sync:11 version:2 layer:2 protection:1 bit_rate:4 rate:2 padding:1 private:1 mode:2 extension:2 copyright:1 "
    "original:1 emphasis:2"
)
MP3_XING = "Xing:32 flags:32 frames:32 bytes:32"
ID3 = "ID3:24 version:8 revision:8 flags:8 size:32 frame:32 frame_size:32 frame_flags:16"
ID3_TAG = b"ID3\x04\x00\x00\x00\x00\x00\x1aTIT2\x00\x00\x00\x10\x00\x00\x03a tone, no more"
MP4_CONTAINERS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl"))
MP4_WORDS = 12  # of a box: what follows repeats


class Case(NamedTuple):
    """One input: the kind of damage, what exactly was done, and the file."""

    kind: str
    what: str
    suffix: str
    data: bytes


class Field(NamedTuple):
    """A field of a header, in bits from the beginning of the file; `little` endian or big."""

    name: str
    begin: int
    bits: int
    little: bool = False


def hear(path: str) -> float:
    """Read a recording as `transcribe` does; return its seconds. What it gives is checked here, block by block."""
    samples, sources = 0, find_sources([path])
    total_seconds(sources)
    for source in sources:
        for block in stream(source):
            assert block.dtype == np.float32 and block.ndim == 1 and len(block) <= 30 * RATE_HZ
            assert np.isfinite(block).all()
            samples += len(block)
    return samples / RATE_HZ


# Whole files


def tone(seconds: float = 1.2, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Return a tone (N,) under a little noise, so that no codec makes nothing of it."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = np.random.default_rng(0).uniform(-0.01, 0.01, len(times))
    return (0.3 * np.sin(2 * np.pi * 440 * times) + noise).astype(np.float32)


def packed(waveform: np.ndarray, kind: str = "WAV", subtype: str | None = None, rate_hz: int = RATE_HZ) -> bytes:
    """Return a file that libsndfile writes."""
    file = io.BytesIO()
    soundfile.write(file, waveform, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def add_sound(container: Any, codec: str, waveform: np.ndarray, rate_hz: int) -> Any:
    """Encode mono sound into a new track of a PyAV container; return the track, which may hold the last packets."""
    import av

    track = container.add_stream(codec, rate=rate_hz)
    track.layout = "mono"
    for start in range(0, len(waveform), 1024):
        frame = av.AudioFrame.from_ndarray(waveform[None, start : start + 1024].copy(), "fltp", "mono")
        frame.sample_rate, frame.pts = rate_hz, start
        container.mux(track.encode(frame))
    return track


def packed_mp4(waveform: np.ndarray | None, rate_hz: int = RATE_HZ) -> bytes:
    """Return an MP4 file with AAC in it, or with a moving picture only."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        if waveform is None:
            track = container.add_stream("mpeg4", rate=10)
            track.width = track.height = 16
            container.mux(track.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")))
        else:
            track = add_sound(container, "aac", waveform, rate_hz)
        container.mux(track.encode(None))
    return file.getvalue()


@cache
def whole(seconds: float = 1.2) -> dict[str, bytes]:
    """Return one sound file per suffix."""
    return {
        ".wav": packed(tone(seconds)),
        ".flac": packed(tone(seconds), "FLAC"),
        ".ogg": with_serial(packed(tone(seconds), "OGG")),
        ".opus": with_serial(packed(tone(seconds), "OGG", "OPUS")),
        ".mp3": ID3_TAG + packed(tone(seconds), "MP3"),
        ".m4a": packed_mp4(tone(seconds)),
    }


# Headers


def fields(layout: str, at: int = 0, little: bool = False) -> list[Field]:
    """Return the fields of a header, "name:bits" each, that begins at byte `at`."""
    found, begin = [], 8 * at
    for part in layout.split():
        name, bits = part.split(":")
        found.append(Field(name, begin, int(bits), little))
        begin += int(bits)
    return found


def headers() -> Iterator[tuple[str, str, bytes, list[Field]]]:
    """Yield every header: its name, the suffix, a whole file and where in it its fields lie."""
    files = whole()
    yield "WAV", ".wav", files[".wav"], fields(WAV, little=True)
    yield "WAVEX", ".wav", packed(tone(), "WAVEX"), fields(WAVEX, little=True)
    flac = files[".flac"]
    yield "FLAC stream", ".flac", flac, fields(FLAC_STREAM)
    yield "FLAC frame", ".flac", flac, fields(FLAC_FRAME, flac.index(b"\xff\xf8"))
    for suffix, name, head in ((".ogg", "Vorbis", VORBIS), (".opus", "Opus", OPUS)):
        yield f"{name} head", suffix, files[suffix], fields(head, 28, little=True)
        for page, at in (("first", 0), ("last", files[suffix].rindex(b"OggS"))):
            yield f"{name} {page} page", suffix, files[suffix], fields(OGG_PAGE, at, little=True)
    mp3 = files[".mp3"]
    yield "ID3", ".mp3", mp3, fields(ID3)
    for name, at in (("first", len(ID3_TAG)), ("last", mp3.rindex(b"\xff\xf3"))):
        yield f"MP3 {name} frame", ".mp3", mp3, fields(MP3_FRAME, at)
    yield "MP3 Xing", ".mp3", mp3, fields(MP3_XING, mp3.index(b"Xing"))
    m4a = files[".m4a"]
    for name, at, size in _boxes(m4a, 0, len(m4a)):
        width = 16 if name == "stsd" else 32
        words = " ".join(
            f"{name}[{number}]:{width}" for number in range(min(size * 8 // width, MP4_WORDS * 32 // width))
        )
        yield "MP4 boxes", ".m4a", m4a, fields(words, at)


def _boxes(data: bytes, at: int, stop: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, place and size of each box of an MP4; of one that holds others, the head only."""
    while at + 8 <= stop:
        size, name = struct.unpack_from(">I4s", data, at)
        holds = name in MP4_CONTAINERS
        yield name.decode(), at, 8 if holds or name == b"mdat" else size
        if holds:
            yield from _boxes(data, at + 8, at + size)
        at += size


def bent(data: bytes, field: Field, value: int) -> bytes:
    """Return the file with another value in one field; an Ogg page is sealed anew, else its reader would drop it."""
    if field.little:
        value = int.from_bytes(value.to_bytes(field.bits // 8, "little"), "big") if field.bits % 8 == 0 else value
    shift = 8 * len(data) - field.begin - field.bits
    number = int.from_bytes(data, "big")
    number = number & ~(((1 << field.bits) - 1) << shift) | value << shift
    result = number.to_bytes(len(data), "big")
    return _sealed(result, data.rindex(b"OggS", 0, field.begin // 8 + 4)) if _in_page(data, field) else result


def _in_page(data: bytes, field: Field) -> bool:
    return data.startswith(b"OggS") and field.name not in ("OggS", "crc", "segments", "lacing")


def bent_headers(chance: random.Random) -> Iterator[Case]:
    """Yield every field of every header with 0, 1, the largest value, the one below it, and any."""
    for name, suffix, data, parts in headers():
        for field in parts:
            largest = (1 << field.bits) - 1
            for value in dict.fromkeys((0, 1, largest, largest - 1, chance.randint(0, largest))):
                yield Case(f"header: {name}", f"{field.name} = {value}", suffix, bent(data, field, value))


def _pages(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        yield at
        at += 27 + data[at + 26] + sum(data[at + 27 : at + 27 + data[at + 26]])


def _sealed(data: bytes, at: int) -> bytes:
    """Return an Ogg file whose page at `at` has the checksum that belongs to it (RFC 3533, section 6)."""
    stop = next((page for page in _pages(data) if page > at), len(data))
    page = bytearray(data[at:stop])
    page[22:26] = bytes(4)
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1) ^ (0x104C11DB7 if checksum & 0x80000000 else 0)
    page[22:26] = struct.pack("<I", checksum)
    return data[:at] + bytes(page) + data[stop:]


def with_serial(data: bytes) -> bytes:
    """Return an Ogg file with the serial number 7, where libsndfile draws one."""
    for at in [*_pages(data)]:
        data = _sealed(data[: at + 14] + struct.pack("<I", 7) + data[at + 18 :], at)
    return data


# Other damage


def cuts() -> Iterator[Case]:
    """Yield files cut off at the end of every header field, and at places in their sound."""
    for name, suffix, data, parts in headers():
        for field in parts:
            yield Case("cut", f"{name} before {field.name}", suffix, data[: field.begin // 8])
    for suffix, data in whole().items():
        for share in (0.3, 0.5, 0.7, 0.9):
            yield Case("cut", f"{suffix} at {share}", suffix, data[: round(share * len(data))])
        for missing in (1, 2, 3, 17, 100):
            yield Case("cut", f"{suffix} without {missing} bytes", suffix, data[:-missing])


def disguised() -> Iterator[Case]:
    """Yield whole files with the suffix of another format; they are sound."""
    for (suffix, data), other in itertools.product(whole().items(), (*whole(), ".txt", "")):
        if other != suffix:
            yield Case("wrong extension", f"{suffix} as {other}", other, data)


def junk(chance: random.Random) -> Iterator[Case]:
    """Yield files with something foreign before, in or after the sound, and ones that only begin like sound."""
    noise = chance.randbytes(3000)
    endless = b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f"
    picture = b"ID3\x03\x00\x00\x00\x00\x17\x70APIC\x00\x00\x0b\xae\x00\x00\x00image/png\x00\x03\x00" + noise
    tags = {"noise": noise, "zeros": bytes(3000), "two tags": 2 * ID3_TAG, "endless tag": endless, "picture": picture}
    for suffix, data in whole().items():
        for what, tag in tags.items():
            yield Case("junk", f"{what} before {suffix}", suffix, tag + data)
        middle = len(data) // 2
        yield Case("junk", f"noise in {suffix}", suffix, data[:middle] + noise[:400] + data[middle + 400 :])
        yield Case("junk", f"zeros in {suffix}", suffix, data[:middle] + bytes(400) + data[middle + 400 :])
        yield Case("junk", f"noise after {suffix}", suffix, data + noise)
        yield Case("junk", f"twice {suffix}", suffix, data + data)
        yield Case("junk", f"head of {suffix}, then noise", suffix, data[:12] + noise)
        yield Case("junk", f"backwards {suffix}", suffix, data[::-1])
    for what in (
        "{}",
        "RIFF",
        "ID3",
        "\x00",
        "\ufeff",
        "<?xml version='1.0'?>",
        "#!/bin/sh\n",
        "PK\x03\x04",
        "%PDF-1.7\n",
    ):
        yield Case("junk", f"only {what!r}", ".wav", what.encode())
    yield Case("no sound track", "a moving picture", ".mp4", packed_mp4(None))


def corpus() -> list[Case]:
    """Return all cases whose bytes or suffixes differ from those of the whole files and of one another."""
    chance = random.Random(0)
    known = {(suffix, data) for suffix, data in whole().items()}
    cases = []
    for case in itertools.chain(bent_headers(chance), cuts(), disguised(), junk(chance)):
        if (case.suffix, case.data) not in known:
            known.add((case.suffix, case.data))
            cases.append(case)
    return cases


def write_corpus(folder: Path, cases: list[Case]) -> list[Path]:
    """Write the cases as files, and return their paths in the same order."""
    paths = [folder / f"{number:04}{case.suffix}" for number, case in enumerate(cases)]
    for path, case in zip(paths, cases, strict=True):
        path.write_bytes(case.data)
    return paths
