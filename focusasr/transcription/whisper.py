"""Sequential long-form transcription with Whisper models.

As in openai/whisper, each window starts where the previous one found an end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from focusasr.audio.integrity import CutOff
from focusasr.audio.load import stream
from focusasr.audio.mel_stream import FRAMES_PER_SECOND, HOP_SAMPLES, WINDOW_SAMPLES, MelStream
from focusasr.audio.segmentation import AudioSegment, merge_segments, split_at_pauses
from focusasr.audio.silence import Silence, find_silence, first_speech
from focusasr.audio.source import Source
from focusasr.config import SAMPLE_RATE_HZ, DecodingConfig
from focusasr.decoding.whisper_prompts import has_failed, is_silence
from focusasr.runtime.devices import is_out_of_memory
from focusasr.runtime.errors import InputError
from focusasr.runtime.libraries import LibraryError
from focusasr.runtime.turns import Turns
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.transcription.result import Outcome, Segment, SegmentsFound, Transcript, ignore, within
from focusasr.transcription.resume import SegmentCache, SegmentCacheOf
from focusasr.transcription.whisper_window import (
    FRAMES_PER_TIMESTAMP,
    MelWindow,
    PromptHistory,
    Step,
    Stretch,
    behind_end,
    clips,
    shrunk,
    split,
)
from focusasr.transcription.word_edges import with_edges
from focusasr.transcription.word_timestamps import (
    Kept,
    drop_hallucinations,
    last_word_end,
    seek_after_words,
    with_words,
)
from focusasr.whisper_config import LongformConfig, SearchConfig

if TYPE_CHECKING:
    import torch

    from focusasr.decoding.onnx_decoder import OnnxWhisperDecoder
    from focusasr.decoding.whisper_decoder import WhisperDecoder
    from focusasr.model.checkpoint import Checkpoint
    from focusasr.model.engine import Engine
    from focusasr.model.onnx_engine import OnnxEngine

    AnyDecoder = WhisperDecoder | OnnxWhisperDecoder

Memory = Any  # encoded audio, of the engine
RESET_TEMPERATURE = 0.5  # a text with a higher temperature is not a prompt for the next window
MOST_TOKENS_AT_LEAST, TOKENS_PER_SECOND = 12, 12  # more than the fastest speech has, timestamps included


class WhisperRecognizer:
    """A Whisper model that transcribes recordings one after the other, as openai/whisper does."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        config: DecodingConfig,
        search: SearchConfig,
        longform: LongformConfig,
        engine: Engine | None = None,
    ) -> None:
        from focusasr.model.engine import prepare

        assert isinstance(checkpoint.tokenizer, WhisperTokenizer)
        self.aligner = checkpoint.model.decoder if config.word_timestamps else None
        self.device = device
        self._set(engine or prepare(checkpoint.model, device, config), checkpoint.tokenizer, config, search, longform)

    def _set(
        self,
        engine: Engine | OnnxEngine,
        tokenizer: WhisperTokenizer,
        config: DecodingConfig,
        search: SearchConfig,
        longform: LongformConfig,
    ) -> None:
        search.fit(engine.config.vocabulary)
        self.engine: Any = engine
        self.window_frames = (engine.config.window_samples or WINDOW_SAMPLES) // HOP_SAMPLES
        self.tokenizer = tokenizer.speaking(longform.language, longform.task)
        self.config, self.search, self.longform = config, search, longform
        self.batch_size = config.batch_size  # smaller after a batch did not fit into memory
        self.turns: Turns | None = None  # of several threads that use the engine
        self.draft: Sequence[int] = ()  # probable first tokens of the next text

    @property
    def detects_language(self) -> bool:
        """Return whether the language of each recording is detected."""
        return self.tokenizer.policy.language is None

    def remarks(self) -> list[str]:
        """Return warnings about prompts that are too long."""
        return self._decoder().remarks()

    def _decoder(self) -> AnyDecoder:
        from focusasr.decoding.whisper_decoder import WhisperDecoder

        return WhisperDecoder(self.engine, self.tokenizer, self.search, self.longform)

    def _mel_stream(self, source: Source, cut_off: Callable[[CutOff], object]) -> MelStream:
        from focusasr.audio.features import LogMelStream

        pause = self.turns.pass_on if self.turns else lambda: None
        return LogMelStream(source, self.engine.config, self.device, cut_off, pause)

    def _encoded(self, mel: np.ndarray) -> Memory:
        import torch

        return self.engine.encode([torch.from_numpy(mel).to(self.device)])

    def transcribe(
        self,
        sources: Iterable[Source],
        progress: Callable[[float], object] = lambda seconds: None,
        notes: SegmentCacheOf | None = None,
        found: SegmentsFound = ignore,
    ) -> Iterator[Outcome]:
        """Yield one outcome per source, in order; `progress` gets the seconds of audio that were read.

        `found` gets the segments of each source in order, as they are decoded.

        An unreadable source yields an outcome with an error, and the other sources continue. Windows in the source's
        `notes` are not decoded again.
        """
        for source in sources:
            outcome, cuts = Outcome(source, None, None, 0.0), list[CutOff]()
            try:
                heard = notes(source) if notes else SegmentCache()
                ready = functools.partial(found, source)
                transcript, seconds = self._recognized(source, progress, heard, cuts.append, ready)
                outcome = replace(outcome, transcript=transcript, audio_seconds=seconds)
                yield outcome.but(cuts[0]) if cuts else outcome
            except (InputError, LibraryError) as error:
                yield outcome.but(error)
            except (MemoryError, RuntimeError) as error:
                if self.device.type != "cpu" or not is_out_of_memory(error):
                    raise
                yield outcome.but(MemoryError(f"{source.name}: the memory is full. Lower --beam-size or --best-of."))

    def _recognized(
        self,
        source: Source,
        progress: Callable[[float], object],
        heard: SegmentCache,
        cut_off: Callable[[CutOff], object],
        ready: Callable[[str | None, Sequence[Segment]], object],
    ) -> tuple[Transcript, float]:
        """Return the transcript of a recording, and its length in seconds; `ready` gets decoded segments."""
        sound = self._mel_stream(source, cut_off)
        blocks = lambda: stream(source, cut_off=cut_off)  # noqa: E731
        silence = find_silence(sound.levels, blocks)
        stretches = self._clips(blocks(), sound.frames)
        if any(self.longform.clips or ()) and not any(start < end for start, end in stretches):
            raise behind_end(source, self.longform, sound.samples / SAMPLE_RATE_HZ)
        reader = self._reader(lambda: self._opening(sound, silence, stretches, blocks()))
        script = PromptHistory(self._initial(reader), self.engine.config.text_context // 2 - 1)
        for clip, (start, end) in enumerate(stretches):
            seek = start
            while seek < end:
                before, seek = seek, silence.begin(seek, end)
                if seek < end:
                    stop = silence.stop(seek, min(seek + self.window_frames, end))
                    window = MelWindow(seek, stop - seek, self.window_frames, sound.frames)
                    place = f"{clip}:{seek}"
                    if known := heard.get(place):
                        step = Step.known(known)
                    else:
                        step = self._read(reader, sound, window, script)
                        heard.note(place, step.noted())
                    added = self._go_on(script, step, window, (sound.levels, silence))
                    ready(reader.tokenizer.policy.language, added)
                    seek = script.seek_after(window, step.next_seek)
                progress((min(seek, end) - before) / FRAMES_PER_SECOND)
        text = reader.text(script.tokens)
        transcript = Transcript(text, script.segments, reader.tokenizer.policy.language)
        return transcript, sound.samples / SAMPLE_RATE_HZ

    def _opening(
        self, sound: MelStream, silence: Silence, stretches: Sequence[tuple[int, int]], blocks: Iterator[np.ndarray]
    ) -> Memory | None:
        """Return the window in which the language is detected: the first one, or a later one with the first speech.

        None if the recording is silent.
        """
        begins = ((silence.begin(start, end), end) for start, end in stretches)
        read = next(((begin, end) for begin, end in begins if begin < end), None)
        if read is None:
            return None
        begin, end = read
        if len(stretches) == 1 and begin + self.window_frames < end:  # more than one window
            speech = first_speech(blocks, self.config.vad_threshold)
            if speech is not None and begin + self.window_frames <= speech < end:
                begin = speech
        return self._encoded(sound.window(begin, min(self.window_frames, end - begin)))

    def _clips(self, blocks: Iterator[np.ndarray], frames: int) -> list[tuple[int, int]]:
        """Return the spans to transcribe, as frames (from, to): the given clips, or detected speech."""
        asked = self.longform.clips or []
        if any(asked) or not self.longform.vad_filter:  # clips take precedence over detected speech
            return clips(asked, frames)
        pieces = self._speech(blocks)
        spans = [(piece.start_seconds, piece.start_seconds + len(piece.waveform) / SAMPLE_RATE_HZ) for piece in pieces]
        return clips([second for span in spans for second in span], frames) if spans else []

    def _speech(self, blocks: Iterator[np.ndarray]) -> Iterator[AudioSegment]:
        """Yield the speech of a recording, in segments as long as they may be."""
        window = self.window_frames / FRAMES_PER_SECOND
        longest = min(window, self.config.max_segment_seconds or window)
        return merge_segments(split_at_pauses(blocks, longest, self.config, whole=False), longest)

    def _initial(self, reader: AnyDecoder) -> list[int]:
        prompt = self.longform.initial_prompt
        return reader.tokenizer.encode_exactly(" " + prompt.strip()) if prompt is not None else []

    def _reader(self, first: Callable[[], Memory | None]) -> AnyDecoder:
        """Return a decoder for the given language, or else for the language detected in the first window, if any."""
        tokenizer, reader = self.tokenizer, self._decoder()
        reader.turns, reader.draft = self.turns, self.draft
        if tokenizer.policy.language is None and (opening := first()) is not None:
            (language,) = reader.languages(opening)
            reader.tokenizer = tokenizer.speaking(language)
        return reader

    def _go_on(
        self, script: PromptHistory, step: Step, window: MelWindow, sound: tuple[np.ndarray, Silence]
    ) -> list[Segment]:
        """Append a window's segments to the history and return them, limited to the window and aligned with its sound.

        `sound` are the levels and the silence of the recording.
        """
        segments, (levels, silence) = step.segments, sound
        if self.config.word_timestamps:
            script.last_speech = last_word_end(segments) or script.last_speech
            segments = with_edges(segments, levels)
        else:
            segments = [shrunk(segment, silence) for segment in segments]
        segments = [within(segment, window.start + window.seconds) for segment in segments]
        added = script.add(segments)
        if step.forget:
            script.forget()
        return added

    def _read(self, reader: AnyDecoder, sound: MelStream, window: MelWindow, script: PromptHistory) -> Step:
        """Return a window's text and the frame at which the next one begins."""
        memory = self._encoded(sound.window(window.seek, window.frames))
        if self.longform.multilingual:
            (language,) = reader.languages(memory)
            reader = reader.speaking(language)
        timed = not self.longform.without_timestamps
        opening = [] if script.segments else reader.opening(timed)
        previous = script.before(self.longform.carry_initial_prompt)
        prompt = reader.prompt(previous, timed, opening)
        if self.engine.config.tail_frames is not None:  # a short clip has room for few words, and a loop for many
            most = MOST_TOKENS_AT_LEAST + TOKENS_PER_SECOND * window.seconds
            reader.most_tokens = min(reader.context // 2, int(most))
        (answer,) = reader.answers(memory, [prompt], timed, opening)
        if self.engine.config.tail_frames is not None and previous and is_silence(answer, self.search):
            # Adapted models have not learned to continue a text, which makes "no speech" likelier.
            (answer,) = reader.answers(memory, [reader.prompt((), timed, opening)], timed, opening)
        if is_silence(answer, self.search):
            return Step([], window.seek + window.frames)
        stretch = split(window, answer, reader.tokenizer)
        segments, next_seek = self._kept(reader, memory, window, stretch, script)
        if segments is None:
            return Step([], next_seek)
        warmth = self.search.temperatures[-1] if has_failed(answer, self.search) else answer.temperature
        forget = not self.longform.uses_previous_text or warmth > RESET_TEMPERATURE
        return Step(segments, next_seek, forget)

    def _kept(
        self, reader: AnyDecoder, memory: Memory, window: MelWindow, stretch: Stretch, script: PromptHistory
    ) -> Kept:
        """Return a window's segments: with word times and without hallucinations, if these are requested."""
        if not self.config.word_timestamps:
            return stretch.segments, stretch.next_seek
        segments = self._timed(reader, memory, window.frames, stretch.segments, script.last_speech)
        threshold = self.longform.hallucination_silence_threshold
        seek = stretch.next_seek
        if not stretch.closed:
            seek = seek_after_words(segments, window, seek, threshold)
        if threshold is None:
            return segments, seek
        return drop_hallucinations(segments, window, (segments, seek), script.last_speech, threshold)

    def _timed(
        self, reader: AnyDecoder, memory: Memory, frames: int, segments: list[Segment], last_speech: float
    ) -> list[Segment]:
        """Return the segments of one window with word times."""
        from focusasr.decoding.dtw_alignment import align_words

        tokenizer = reader.tokenizer
        texts = [[token for token in segment.tokens if token < tokenizer.end] for segment in segments]
        steps = max(1, frames // FRAMES_PER_TIMESTAMP)
        attend = functools.partial(self._attention, memory)
        words = align_words(attend, [token for text in texts for token in text], steps, tokenizer)
        return with_words(segments, texts, words, last_speech, self.longform) if segments else []

    def _attention(self, memory: Memory, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (L, V) after tokens of a window, and the scores of the alignment heads (H, L, S)."""
        assert self.aligner is not None
        return self.aligner.attention(memory, tokens, self.tokenizer.whisper.alignment_heads)
