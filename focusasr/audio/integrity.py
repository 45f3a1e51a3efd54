"""Damaged and truncated recordings: errors, and checks of WAV, AIFF, Ogg and MP3 files."""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any, BinaryIO

from focusasr.runtime.errors import InputError

SLACK_BYTES = 16  # sloppy writers miscount padding by this much
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class AudioError(InputError):
    """A recording that cannot be read, told in one line that names it, what was seen and the remedy.

    The Python interface sets `partial`, for a truncated recording the result of its beginning.
    """

    partial: Any = None


class CutOff(AudioError):
    """A recording that can be heard in part: raised once all is given that comes before the place it is broken at.

    Of an Ogg file whose reader passes over a damaged page, what comes behind it is given too.
    """


def missing_bytes(file: BinaryIO, size: int) -> tuple[int, bool]:
    """Return how many bytes a WAV, AIFF or Ogg file lacks at its end, which libsndfile takes for a shorter one.

    FLAC, MP4 and MP3 with a length are found out while they are decoded; what never knew its length (MP3 without that
    header, WebM from a browser) cannot be. Return too whether only FFmpeg reads all: of a WAV without a length (0), as
    programs write into pipes, libsndfile would read nothing, of several Ogg files in one the first.
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
    """Return the promised length of the chunk that holds the samples, with the file behind its header."""
    while len(header := file.read(8)) == 8:
        name, length = struct.unpack(f"{order}4sI", header)
        if name in (b"data", b"SSND"):
            return length
        file.seek(length + length % 2, os.SEEK_CUR)
    return None


def _is_endless(length: int) -> bool:
    """Tell the lengths near 2 and 4 GiB that stand for "until the pipe ends" (FFmpeg, sox, espeak-ng, arecord)."""
    return length > 2**32 - 2**16 or abs(length - 2**31) < 2**16


def _last_page(file: BinaryIO, size: int) -> tuple[int, bytes]:
    """Return how many bytes of an Ogg file's last page are missing, and its stream's number (RFC 3533, section 6)."""
    file.seek(max(0, size - 2**17))  # longer than any page
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    segments = page[26] if len(page) > 26 else 255
    missing = 27 + segments + sum(page[27 : 27 + segments]) - len(page)
    begun = missing < 0 and b"OggS".startswith(page[missing:])  # one to three bytes of a next page
    return 27 if begun else max(0, missing), page[14:18]


def broken_page(file: BinaryIO) -> int | None:
    """Return where the first page lies that is not as it was written, which its reader would pass over in silence.

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
    """Tell MP3 and AAC streams by their first bytes: libsndfile's MP3 decoder writes warnings to the terminal."""
    file.seek(0)
    head = file.read(3)
    return head == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")


def is_tag(packet: bytes) -> bool:
    """Tell what stands between the frames of joined MP3s, or fills their end, and is no sound."""
    return packet.startswith((b"ID3", b"TAG", b"APETAGEX")) or not any(packet)


def goes_on_behind_its_header(file: BinaryIO) -> bool:
    """Tell an MP3 with far more bytes than its Xing header counts: several joined, whose length can only be guessed.

    The share above which a header is not believed, 1/16, is FFmpeg's.
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
    place = 8 if flags & 1 else 4  # behind the number of frames
    counted = int.from_bytes(header[place : place + 4], "big")
    return file.seek(0, os.SEEK_END) - begin > counted * 17 / 16
