"""Batched transcription with native checkpoints: streaming, segmentation at pauses, outcomes in input order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from focusasr.audio.features import log_mel
from focusasr.audio.integrity import CutOff
from focusasr.audio.load import stream
from focusasr.audio.mel_stream import FRAMES_PER_SECOND
from focusasr.audio.segmentation import AudioSegment, split_at_pauses
from focusasr.audio.source import Source
from focusasr.config import NATIVE_SEGMENT_SECONDS, SAMPLE_RATE_HZ, DecodingConfig
from focusasr.decoding.ctc_alignment import Word, load_aligner
from focusasr.decoding.ctc_attention import Hypothesis, decode
from focusasr.decoding.whisper_prompts import compression_ratio
from focusasr.model.checkpoint import Checkpoint
from focusasr.model.engine import Engine, prepare
from focusasr.runtime.devices import run_in_halves
from focusasr.runtime.errors import InputError, UsageError
from focusasr.runtime.libraries import LibraryError
from focusasr.transcription.result import Outcome, Segment, SegmentsFound, Transcript, ignore, numbered
from focusasr.transcription.resume import SegmentCache, SegmentCacheOf

BATCHES_AHEAD = 4  # batches of segments that are held, so that segments of similar length share a batch
HELD_SECONDS = 240.0  # of audio that is held at most, which bounds memory
CPU_BATCH_SECONDS = 80.0  # of padded audio in a batch: larger batches are no faster on a CPU and take more memory


@dataclass
class _Job:
    """One unfinished source: its segments so far, and whether its audio has been read completely."""

    source: Source
    heard: SegmentCache
    samples: int = 0
    error: InputError | LibraryError | None = None
    waiting: int = 0  # segments not decoded yet
    complete: bool = False
    segments: list[Segment] = field(default_factory=list)
    delivered: int = 0  # segments
    tokens: int = 0
    passes: int = 0

    def fresh(self) -> list[Segment]:
        """Return the segments since the last call, numbered as in the transcript; earlier segments must be decoded."""
        first, self.delivered = self.delivered, len(self.segments)
        return numbered(self.segments[first:], first)


class Recognizer:
    """A native checkpoint; the text of a file depends neither on other files nor on batch_size.

    With `subtitles` it computes word times if it can, because its segments are too long for one subtitle each.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        config: DecodingConfig,
        subtitles: bool = False,
        engine: Engine | None = None,
    ) -> None:
        if config.word_timestamps and checkpoint.model.ctc_head is None:
            raise UsageError(
                "word_timestamps is True: this model has no CTC head to find word times. Leave the option out, "
                "or train with --ctc."
            )
        self.engine = engine or prepare(checkpoint.model, device, config)
        self.tokenizer = checkpoint.tokenizer
        self.device = device
        self.config = config
        self._timing = config.word_timestamps or (subtitles and checkpoint.model.ctc_head is not None)
        self._timing_error: LibraryError | None = None
        if self._timing:
            try:
                load_aligner()
            except LibraryError as error:  # transcripts without word times, each with this error
                self._timing, self._timing_error = False, error
        window = checkpoint.model.config.longest_samples
        self.draft: Sequence[int] = ()  # unused: the CTC head drafts each text
        self.batch_size = config.batch_size  # smaller after a batch did not fit into memory
        longest = config.max_segment_seconds or NATIVE_SEGMENT_SECONDS
        self.segment_seconds = min(longest, window / SAMPLE_RATE_HZ if window else math.inf)

    def transcribe(
        self,
        sources: Iterable[Source],
        progress: Callable[[float], object] = lambda seconds: None,
        notes: SegmentCacheOf | None = None,
        found: SegmentsFound = ignore,
    ) -> Iterator[Outcome]:
        """Yield one outcome per source, in order; `progress` gets the seconds of audio of each decoded batch.

        `found` gets the segments of each source in order, as soon as they are decoded; batches are then smaller.

        An unreadable source yields an outcome with an error, and the other sources continue. Segments in the source's
        `notes` are not decoded again.
        """
        jobs: list[_Job] = []
        pieces = self._pieces(
            (_Job(source, notes(source) if notes else SegmentCache()) for source in sources), jobs, progress
        )
        while True:
            held = self._hold(pieces, soon=found is not ignore)
            last = not held
            while held:
                batch = self._batch(held)
                self._decode(batch)
                progress(sum(len(piece.waveform) for _, piece in batch) / SAMPLE_RATE_HZ)
            for job in jobs:
                if fresh := job.fresh():
                    found(job.source, self.tokenizer.policy.language, fresh)
            while jobs and jobs[0].complete and not jobs[0].waiting:
                yield self._outcome(jobs.pop(0))
            if last:
                return

    def _hold(self, pieces: Iterator[tuple[_Job, AudioSegment]], soon: bool = False) -> list[tuple[_Job, AudioSegment]]:
        """Take the next segments, up to the limits of memory, and return them, the longest first.

        If the texts are needed `soon`, take no more than one batch.
        """
        held, samples = [], 0
        ahead, seconds = (1, CPU_BATCH_SECONDS) if soon else (BATCHES_AHEAD, HELD_SECONDS)
        for job, piece in islice(pieces, self.batch_size * ahead):
            held.append((job, piece))
            samples += len(piece.waveform)
            if samples >= seconds * SAMPLE_RATE_HZ:
                break
        return sorted(held, key=lambda pair: -len(pair[1].waveform))

    def _batch(self, held: list[tuple[_Job, AudioSegment]]) -> list[tuple[_Job, AudioSegment]]:
        """Remove one batch of the shortest segments from `held` and return it."""
        limit = CPU_BATCH_SECONDS * SAMPLE_RATE_HZ if self.device.type == "cpu" else math.inf
        batch = [held.pop()]
        while held and len(batch) < self.batch_size and (len(batch) + 1) * len(held[-1][1].waveform) <= limit:
            batch.append(held.pop())
        return batch

    def _pieces(
        self, coming: Iterable[_Job], jobs: list[_Job], progress: Callable[[float], object]
    ) -> Iterator[tuple[_Job, AudioSegment]]:
        """Yield each segment to decode with its job; every job is first appended to `jobs`."""
        for job in coming:
            jobs.append(job)
            try:
                for piece in split_at_pauses(_counted(job), self.segment_seconds, self.config):
                    known = job.heard.piece(piece)
                    if known is None:
                        job.waiting += 1
                        yield job, piece
                    else:
                        job.segments += known
                        progress(len(piece.waveform) / SAMPLE_RATE_HZ)
            except (InputError, LibraryError) as error:
                job.error = error
            job.complete = True

    def _decode(self, held: list[tuple[_Job, AudioSegment]]) -> None:
        for job, _ in held:
            job.waiting -= 1
        answers = run_in_halves(self._answers, [piece for _, piece in held], self.device, self._halve)
        for (job, piece), answer in zip(held, answers, strict=True):
            if answer is None:
                seen = "a segment does not fit into memory. Lower --max-segment-seconds or --joint-beam-size."
                job.error = InputError(f"{job.source.name}: {seen}")
                continue
            job.passes += answer.passes
            job.tokens += len(answer.tokens) + 1 if answer.passes else 0
            segment = self._segment(piece, answer)
            segments = [segment] if segment.text else []
            job.segments += segments
            job.heard.note_piece(piece, segments)

    def _answers(self, pieces: Sequence[AudioSegment]) -> list[Hypothesis]:
        bands, window = self.engine.config.mel_bands, self.engine.config.window_samples
        mels = [log_mel(torch.from_numpy(piece.waveform).to(self.device), bands, window) for piece in pieces]
        return decode(self.engine, mels, self.tokenizer, replace(self.config, word_timestamps=self._timing))

    def _halve(self, size: int) -> None:
        self.batch_size = min(self.batch_size, size)

    def _segment(self, piece: AudioSegment, answer: Hypothesis) -> Segment:
        text = self.tokenizer.decode(answer.tokens)
        words = _words(answer.words, piece) if self._timing else None
        return Segment(
            id=0,
            seek=round(piece.start_seconds * FRAMES_PER_SECOND),
            start=round(piece.start_seconds, 3),
            end=round(piece.start_seconds + len(piece.waveform) / SAMPLE_RATE_HZ, 3),
            text=text,
            tokens=answer.tokens,
            temperature=0.0,
            avg_logprob=answer.avg_logprob,
            compression_ratio=compression_ratio(text),
            no_speech_prob=answer.no_speech_prob,
            words=words if self.config.word_timestamps else None,
            subtitle_words=words,
        )

    def _outcome(self, job: _Job) -> Outcome:
        segments = numbered(job.segments)
        text = " ".join(segment.text for segment in segments)
        transcript = Transcript(text, segments, self.tokenizer.policy.language)
        seconds = job.samples / SAMPLE_RATE_HZ
        outcome = Outcome(job.source, transcript, None, seconds, job.tokens, job.passes)
        error = job.error or self._timing_error
        return outcome.but(error) if error else outcome


def _words(words: list[Word] | None, piece: AudioSegment) -> list[dict[str, Any]]:
    """Return words in Whisper's format: times from the start of the recording, and a space before each word.

    Times are limited to the segment, without the silence that pads a short one.
    """
    seconds = len(piece.waveform) / SAMPLE_RATE_HZ
    return [
        {
            "word": f" {word.text}",
            "start": round(piece.start_seconds + min(word.start, seconds), 3),
            "end": round(piece.start_seconds + min(word.end, seconds), 3),
            "probability": word.probability,
        }
        for word in words or []
    ]


def _counted(job: _Job) -> Iterator[np.ndarray]:
    """Yield the source's blocks and count their samples; if it is truncated, set the job's error."""

    def note(error: CutOff) -> None:
        job.error = job.error or error

    for block in stream(job.source, cut_off=note):
        job.samples += len(block)
        yield block
