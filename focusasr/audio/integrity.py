"""Errors and checks for damaged and truncated recordings: WAV, AIFF, Ogg and MP3."""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any, BinaryIO

from focusasr.runtime.errors import InputError

FIRST_BYTES = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3"}
SLACK_BYTES = 16  # tolerance for writers that miscount padding
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class AudioError(InputError):
    """A recording that cannot be read: one line with its name, the problem and the remedy.

    For a truncated recording the Python interface sets `partial`, the result of the readable part.
    """

    partial: Any = None


class NoSuchPart(AudioError):
    """A recording without the requested track or channel."""


class CutOff(AudioError):
    """A truncated or damaged recording, raised after all samples before the damage.

    For an Ogg file whose decoder skips a damaged page, the samples after it come too.
    """


def missing_bytes(file: BinaryIO, size: int) -> tuple[int, bool]:
    """Return the number of bytes missing at the end of a WAV, AIFF or Ogg file, and whether only FFmpeg reads it whole.

    libsndfile reads a truncated file without an error. FLAC, MP4 and MP3 with a length are checked in decoding; files
    without a length (MP3 without that header, WebM from a browser) cannot be checked. FFmpeg is needed for a WAV of
    length 0, as programs write into pipes, and for concatenated Ogg files, of which libsndfile reads only the first.
    """
    file.seek(0)
    head = file.read(12)
    missing, for_ffmpeg = 0, False
    order = {b"RIFF": "<", b"RIFX": ">", b"FORM": ">"}.get(head[:4])
    if order and head[8:] in (b"WAVE", b"AIFF", b"AIFC"):
        promised = _sound_chunk_bytes(file, order)
        if promised is None:
            missing = 1 if head[8:] == b"WAVE" else 0  # AIFF may leave out an empty chunk
        elif not _is_endless(promised):
            missing = max(0, promised - (size - file.tell()) - SLACK_BYTES)
        for_ffmpeg = promised == 0 and struct.unpack(order + "I", head[4:8])[0] + 8 != size
    elif head[:4] == b"OggS":
        missing, last_stream = _last_page(file, size)
        file.seek(14)
        for_ffmpeg = not missing and file.read(4) != last_stream
    return missing, for_ffmpeg


def _sound_chunk_bytes(file: BinaryIO, order: str) -> int | None:
    """Return the stated length of the chunk of samples and leave the file after its header."""
    while len(header := file.read(8)) == 8:
        name, length = struct.unpack(f"{order}4sI", header)
        if name in (b"data", b"SSND"):
            return length
        file.seek(length + length % 2, os.SEEK_CUR)
    return None


def _is_endless(length: int) -> bool:
    """Return whether a length near 2 or 4 GiB means "until the pipe ends" (FFmpeg, sox, espeak-ng, arecord)."""
    return length > 2**32 - 2**16 or abs(length - 2**31) < 2**16


def _last_page(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Return the missing bytes of an Ogg file's last page, and its stream's serial number (RFC 3533, section 6)."""
    file.seek(max(0, size - 2**17))  # longer than any page
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    segments = page[26] if len(page) > 26 else 255
    missing = 27 + segments + sum(page[27 : 27 + segments]) - len(page)
    begun = missing < 0 and b"OggS".startswith(page[missing:])  # one to three bytes of a next page
    return 27 if begun else max(0, missing), page[14:18]


def broken_page(file: BinaryIO) -> int | None:
    """Return the position of the first corrupt Ogg page, which a decoder would skip silently; None without one.

    The checksum (RFC 3533, section 6) is zlib's with the bits of every byte, and of the result, in reverse.
    """
    at = file.seek(0)
    while len(head := file.read(27)) == 27 and head[:4] == b"OggS":
        lacing = file.read(head[26])
        page = head[:22] + bytes(4) + head[26:] + lacing + file.read(sum(lacing))
        checksum = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
        if int(f"{checksum:032b}"[::-1], 2) != int.from_bytes(head[22:26], "little"):
            return at
        at = file.tell()
    return None


def is_mpeg(file: BinaryIO) -> bool:
    """Return whether a file starts as an MP3 or AAC stream, where libsndfile's MP3 decoder prints warnings."""
    file.seek(0)
    head = file.read(3)
    return head == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")


def is_tag(packet: bytes) -> bool:
    """Return whether an MP3 packet is a tag or padding, without audio."""
    return packet.startswith((b"ID3", b"TAG", b"APETAGEX")) or not any(packet)


def goes_on_behind_its_header(file: BinaryIO) -> bool:
    """Return whether an MP3 has far more bytes than its Xing header states: concatenated files of unknown length.

    The tolerance of 1/16 is FFmpeg's.
    """
    file.seek(0)
    head = file.read(10)
    begin = 0
    if head[:3] == b"ID3":  # its size has 7 bits a byte
        begin = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=False))
    file.seek(begin)
    frame = file.read(4096)
    _, found, header = min((frame.partition(word) for word in (b"Xing", b"Info")), key=lambda parts: len(parts[0]))
    flags = int.from_bytes(header[:4], "big")
    if not found or not flags & 2:
        return False
    place = 8 if flags & 1 else 4  # after the number of frames
    counted = int.from_bytes(header[place : place + 4], "big")
    return file.seek(0, os.SEEK_END) - begin > counted * 17 / 16
