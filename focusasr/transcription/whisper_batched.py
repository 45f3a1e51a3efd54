"""Batched long-form transcription with Whisper models.

As in faster-whisper, chunks of speech of up to 30 s are decoded in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from focusasr.audio.integrity import CutOff
from focusasr.audio.load import stream, to_samples
from focusasr.audio.mel_stream import FRAMES_PER_SECOND, HOP_SAMPLES, levels_db
from focusasr.audio.segmentation import AudioSegment
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.decoding.whisper_prompts import DecodingResult, is_silence
from focusasr.runtime.ahead import read_ahead
from focusasr.runtime.devices import run_in_halves
from focusasr.transcription.result import Segment, Transcript
from focusasr.transcription.resume import SegmentCache
from focusasr.transcription.whisper import Memory, WhisperRecognizer
from focusasr.transcription.whisper_window import MelWindow, behind_end, split
from focusasr.transcription.word_edges import with_edges
from focusasr.whisper_config import SECONDS_PER_TIMESTAMP

if TYPE_CHECKING:
    from focusasr.transcription.whisper import AnyDecoder


def _between(blocks: Iterator[np.ndarray], start: int, end: int | None, read: list[int]) -> Iterator[np.ndarray]:
    """Yield the samples from `start` to `end`, or to the last; `read` becomes the largest number of samples read."""
    position = 0
    for block in blocks:
        yield block[max(0, start - position) : None if end is None else max(0, end - position)]
        position += len(block)
        read[0] = max(read[0], position)
        if end is not None and position >= end:
            return


class BatchedWhisperRecognizer(WhisperRecognizer):
    """A Whisper model that decodes many chunks at once; no chunk has the previous text as its prompt.

    Unlike faster-whisper, chunks keep their timestamps, a failed text is decoded again at a higher temperature, and the
    text of a chunk does not depend on its batch.
    """

    def _recognized(
        self,
        source: Source,
        progress: Callable[[float], object],
        heard: SegmentCache,
        cut_off: Callable[[CutOff], object],
        ready: Callable[[str | None, Sequence[Segment]], object],
    ) -> tuple[Transcript, float]:
        read = [0]
        pieces = read_ahead(self._pieces(source, cut_off, read), self.batch_size)
        batch = head = list(islice(pieces, 1 if self.longform.prefix else self.batch_size))
        reader = self._reader(lambda: self.engine.encode([self._mel(head[0])])) if head else None
        segments: list[Segment] = []
        while reader and batch:
            opening = [] if segments else reader.opening(not self.longform.without_timestamps)
            found = self._found(reader, batch, heard, opening)
            fresh = [replace(segment, id=len(segments) + index) for index, segment in enumerate(found)]
            segments += fresh
            ready(reader.tokenizer.policy.language, fresh)
            progress(sum(len(piece.waveform) for piece in batch) / SAMPLE_RATE_HZ)
            batch = list(islice(pieces, self.batch_size if segments or not self.longform.prefix else 1))
        text = "".join(segment.text for segment in segments)
        language = (reader or self).tokenizer.policy.language
        return Transcript(text, segments, language), read[0] / SAMPLE_RATE_HZ

    def _pieces(self, source: Source, cut_off: Callable[[CutOff], object], read: list[int]) -> Iterator[AudioSegment]:
        """Yield the speech chunks of the clips, or of the whole recording; `read` becomes the number of samples read.

        InputError if all clips are after the end of the recording.
        """
        asked = [to_samples(second, SAMPLE_RATE_HZ) for second in self.longform.clips or []] or [0]
        found = False
        for start, end in zip_longest(asked[::2], asked[1::2]):
            blocks = _between(stream(source, cut_off=cut_off), start, end, read)
            for piece in self._speech(blocks):
                yield replace(piece, start_seconds=piece.start_seconds + start / SAMPLE_RATE_HZ)
            found = found or read[0] > start
        if not found and any(asked):
            raise behind_end(source, self.longform, read[0] / SAMPLE_RATE_HZ)

    def _found(
        self, reader: AnyDecoder, batch: list[AudioSegment], heard: SegmentCache, opening: Sequence[int]
    ) -> list[Segment]:
        """Return the segments of a batch, by chunk, of which each text starts with the opening.

        Cached chunks are not decoded again.
        """
        known = [heard.piece(piece) for piece in batch]
        fresh = [piece for piece, segments in zip(batch, known, strict=True) if segments is None]
        parts = run_in_halves(lambda some: self._decoded(reader, some, opening), fresh, self.device, self._halve)
        for piece, segments in zip(fresh, parts, strict=True):
            if segments is None:
                raise MemoryError
            heard.note_piece(piece, segments)
        decoded = iter(parts)
        return [one for segments in known for one in (next(decoded) if segments is None else segments) or []]

    def _halve(self, size: int) -> None:
        self.batch_size = min(self.batch_size, size)

    def _decoded(
        self, reader: AnyDecoder, pieces: Sequence[AudioSegment], opening: Sequence[int] = ()
    ) -> list[list[Segment]]:
        """Return the segments of each chunk of one batch; each text starts with the opening."""
        memory = self.engine.encode([self._mel(piece) for piece in pieces])
        timed, readers = not self.longform.without_timestamps, [reader] * len(pieces)
        if self.longform.multilingual:
            readers = [reader.speaking(language) for language in reader.languages(memory)]
        prompts = [one.prompt(self._initial(one), timed, opening) for one in readers]
        answers = reader.answers(memory, prompts, timed, opening, *self._ends(pieces))
        result: list[list[Segment]] = []
        left: dict[int, AudioSegment] = {}
        for row, (piece, answer) in enumerate(zip(pieces, answers, strict=True)):
            if is_silence(answer, self.search):
                result.append([])
                continue
            segments, again = self._segments(readers[row], piece, answer)
            if again:
                left[row] = again
            if self.config.word_timestamps:
                frames = len(piece.waveform) // HOP_SAMPLES
                segments = self._timed(readers[row], self._window(memory, row), frames, segments, piece.start_seconds)
                segments = with_edges(segments, levels_db(piece.waveform), piece.start_seconds)
            result.append(segments)
        for row, segments in zip(left, self._decoded(reader, list(left.values())) if left else (), strict=True):
            result[row] += segments
        return result

    def _ends(self, pieces: Sequence[AudioSegment]) -> tuple[list[float], ...]:
        """Return the times in seconds before which the texts of chunks do not stop, if the decoder can heed them."""
        return ()

    def _window(self, memory: Memory, row: int) -> Memory:
        """Return one window of a batch."""
        import torch

        return memory.select(torch.tensor([row], device=self.device))

    def _samples(self, piece: AudioSegment) -> np.ndarray:
        """Return the samples of a chunk; a short one continues as silence, if the model wants that."""
        return np.pad(piece.waveform, (0, max(0, self.engine.config.shortest_samples - len(piece.waveform))))

    def _mel(self, piece: AudioSegment) -> Any:
        import torch

        from focusasr.audio.features import log_mel

        mel = log_mel(torch.from_numpy(self._samples(piece)).to(self.device), self.engine.config.mel_bands)
        return torch.nn.functional.pad(mel, (0, 0, 0, self.engine.config.input_frames(len(mel)) - len(mel)))

    def _segments(
        self, reader: AnyDecoder, piece: AudioSegment, answer: DecodingResult
    ) -> tuple[list[Segment], AudioSegment | None]:
        """Return a chunk's segments, and the rest after its last pair of timestamps, which is to be decoded again.

        A rest of less than a second becomes a segment with its text so far.
        """
        tokenizer = reader.tokenizer
        frames = max(1, len(piece.waveform) // HOP_SAMPLES)
        window = MelWindow(to_samples(piece.start_seconds, SAMPLE_RATE_HZ) // HOP_SAMPLES, frames)
        stretch = split(window, answer, tokenizer)
        segments, end, again = stretch.segments, window.start + window.seconds, None
        rest = answer.tokens[sum(len(segment.tokens) for segment in segments) :]
        done, left = stretch.next_seek - window.seek, window.seek + frames - stretch.next_seek
        if min(done, left) >= FRAMES_PER_SECOND:
            again = AudioSegment(piece.start_seconds + done / FRAMES_PER_SECOND, piece.waveform[done * HOP_SAMPLES :])
        elif rest:  # begins with a timestamp
            (last,) = split(window, answer._replace(tokens=rest), tokenizer).segments
            begin = window.start + (rest[0] - tokenizer.timestamp_begin) * SECONDS_PER_TIMESTAMP
            segments = [*segments, replace(last, start=begin, end=end)]
        inside = [replace(segment, end=min(segment.end, end)) for segment in segments]
        return [segment for segment in inside if segment.text.strip() and segment.start < segment.end], again
