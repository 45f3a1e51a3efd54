"""MP3 and AAC streams: how they are told by their bytes, and what stands in them beside sound."""

from __future__ import annotations

import os
from typing import BinaryIO


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
