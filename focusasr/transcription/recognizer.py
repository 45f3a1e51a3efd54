"""Loading of the recognizer for a checkpoint, with warnings about ineffective settings."""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from focusasr.audio.source import Source
from focusasr.config import NATIVE_SEGMENT_SECONDS, DecodingConfig, VadConfig
from focusasr.runtime.console import warn
from focusasr.runtime.devices import Processes, join_processes
from focusasr.runtime.errors import InputError, SettingError
from focusasr.runtime.process import loading
from focusasr.runtime.turns import Turns
from focusasr.transcription.options import Given, Options
from focusasr.transcription.result import Outcome, SegmentsFound, ignore
from focusasr.whisper_config import LongformConfig, SearchConfig

if TYPE_CHECKING:
    import torch

    from focusasr.model.checkpoint import Checkpoint
    from focusasr.model.engine import Engine
    from focusasr.transcription.result import Segment
    from focusasr.transcription.resume import SegmentCacheOf


HARMLESS = {"language", "vad_filter", "condition_on_previous_text", "carry_initial_prompt", "beam_size", "task"}
HEAD_SECONDS = 60.0  # searched for speech by `has_speech`
LEAST_SPEECH_SECONDS = 0.5


class AnyRecognizer(Protocol):
    """A recognizer of native checkpoints or Whisper models.

    `draft` may be set to probable first tokens of the next text, which save time if they are right.
    """

    device: torch.device
    draft: Sequence[int]

    def transcribe(
        self,
        sources: Iterable[Source],
        progress: Callable[[float], object] = ...,
        notes: SegmentCacheOf | None = ...,
        found: SegmentsFound = ...,
    ) -> Iterator[Outcome]:
        """Yield one outcome per source, in order; `found` gets the segments of each, in order, as they are decoded."""


@dataclass(frozen=True)
class ModelChoice:
    """The model, its location and the device."""

    model: str | None = None
    device: str = "auto"
    threads: int = 0
    local_files_only: bool = False
    model_dir: Path | None = None


@dataclass(frozen=True)
class LoadedRecognizer:
    """A recognizer, its model, checkpoint folder and kind, and warnings about the settings."""

    recognizer: AnyRecognizer
    model: LoadedModel
    path: Path
    is_whisper: bool
    as_whisper: bool  # output files and printed times as in openai/whisper
    remarks: list[str]
    processes: Processes
    on_cpu: Callable[[], AnyRecognizer]
    separate: bool = False  # channels are transcribed separately

    @property
    def detects_language(self) -> bool:
        """Return whether the model detects the spoken language."""
        return bool(getattr(self.recognizer, "detects_language", False))

    def shared(
        self,
        sources: Iterable[Source],
        tell: Callable[[int, float], object],
        notes: SegmentCacheOf | None = None,
        found: SegmentsFound = ignore,
    ) -> Iterator[Outcome]:
        """Yield every source's outcome, in order and in every process; the processes share the work.

        `found` gets the segments of each source in order, as they are decoded. With separate channels or several
        processes it gets them once the transcript is complete.
        """
        from focusasr.transcription.channels import by_channel

        if not self.separate:
            if self.processes.count == 1:
                return self._shared(sources, lambda seconds: tell(0, seconds), notes, found)
            return _found_whole(self._shared(sources, lambda seconds: tell(0, seconds), notes), found)

        whole = list(sources)

        def work(parts: list[Source]) -> Iterator[Outcome]:
            return self._shared(parts, lambda seconds: tell(0, seconds * len(whole) / len(parts)), notes)

        return _found_whole(by_channel(whole, work), found)

    def _shared(
        self,
        sources: Iterable[Source],
        progress: Callable[[float], object],
        notes: SegmentCacheOf | None,
        found: SegmentsFound = ignore,
    ) -> Iterator[Outcome]:
        def work(mine: Iterable[Source]) -> Iterator[Outcome]:
            return with_cpu_fallback(self.recognizer, self.on_cpu, mine, progress, notes, found)

        return work(sources) if self.processes.count == 1 else self.processes.in_order(list(sources), work)


def _found_whole(outcomes: Iterable[Outcome], found: SegmentsFound) -> Iterator[Outcome]:
    """Yield outcomes; before each one `found` gets all its segments."""
    for outcome in outcomes:
        if outcome.transcript:
            found(outcome.source, outcome.transcript.language, outcome.transcript.segments)
        yield outcome


def with_cpu_fallback(
    recognizer: AnyRecognizer,
    on_cpu: Callable[[], AnyRecognizer],
    sources: Iterable[Source],
    progress: Callable[[float], object],
    notes: SegmentCacheOf | None = None,
    found: SegmentsFound = ignore,
) -> Iterator[Outcome]:
    """Yield every source's outcome, in order; if the device fails, the CPU continues from the first unfinished one."""
    from focusasr.runtime.devices import device_fails

    left: deque[Source] = deque()
    coming = iter(sources)
    reached: dict[Source, float] = {}  # end of the segments found so far, in seconds

    def taken() -> Iterator[Source]:
        for source in coming:
            left.append(source)
            yield source

    def first(source: Source, language: str | None, segments: Sequence[Segment]) -> None:
        found(source, language, segments)
        reached[source] = max([reached.get(source, 0.0), *(segment.end for segment in segments)])

    def again(source: Source, language: str | None, segments: Sequence[Segment]) -> None:
        found(source, language, [segment for segment in segments if segment.start >= reached.get(source, 0.0)])

    once = (ignore, ignore) if found is ignore else (first, again)
    try:
        for outcome in recognizer.transcribe(taken(), progress, notes, once[0]):
            left.popleft()
            yield outcome
    except (MemoryError, RuntimeError) as error:
        if not device_fails(recognizer.device, error):
            raise
        warn(f"focusasr: {recognizer.device} fails ({str(error).splitlines()[0]}); continuing on the CPU")
        yield from on_cpu().transcribe(itertools.chain(left, coming), progress, notes, once[1])


def load_recognizer(choice: ModelChoice, given: Given, subtitles: bool = False) -> LoadedRecognizer:
    """Load a recognizer for this process of a command, with word times for `subtitles`; torch is imported here.

    InputError if the settings are invalid, the checkpoint is not found, or the model does not support the settings.
    """
    options = Options.read(given)
    with loading():
        model = LoadedModel(choice, *join_processes(_device(choice)))
        return model.recognizer(options, subtitles)


def _device(choice: ModelChoice) -> torch.device:
    import torch

    from focusasr.runtime.devices import choose_device

    if choice.threads:
        torch.set_num_threads(choice.threads)
    return choose_device(choice.device)[0]


class LoadedModel:
    """A checkpoint on a device; recognizers with the same numerical settings share its prepared weights.

    Only the prepared weights stay in memory. The checkpoint is read again for another compute type, and once for the
    word times of Whisper models, which need the decoder's original weights. InputError if the checkpoint or the device
    is not found.
    """

    def __init__(
        self, choice: ModelChoice, processes: Processes | None = None, device: torch.device | None = None
    ) -> None:
        from focusasr.model.checkpoint import find_checkpoint, open_checkpoint

        self.processes = processes or Processes()
        self.device = device or _device(choice)
        self.path = find_checkpoint(choice.model, choice.local_files_only, choice.model_dir)
        self._checkpoint = open_checkpoint(self.path, self.device)
        self._aligns = False  # whether its decoder has its weights, for word times, which may be requested again
        self.is_whisper = self._checkpoint.whisper is not None
        # Models for audio of variable length are ours: they print texts, and decode greedily without --beam-size.
        self.as_whisper = self.is_whisper and self._checkpoint.model.config.tail_frames is None
        self._engine: tuple[object, Engine] | None = None  # the last engine, and its settings
        self.turns: Turns | None = None  # of several threads that transcribe
        self._on_cpu = functools.cache(lambda: LoadedModel(replace(choice, device="cpu"), processes))

    def recognizer(self, options: Options, subtitles: bool = False) -> LoadedRecognizer:
        """Return a recognizer with these options; InputError if the model does not support them."""
        engine = self._prepared(options.decoding, self.is_whisper and options.decoding.word_timestamps)
        recognizer, remarks = (
            self._whisper(options, engine) if self.is_whisper else self._native(options, subtitles, engine)
        )
        elsewhere = self._on_cpu  # so that the closure holds no weights of this device

        def on_cpu() -> AnyRecognizer:
            return elsewhere().recognizer(options, subtitles).recognizer

        separate = options.recording.channels == "separate"
        kinds = self.is_whisper, self.as_whisper
        return LoadedRecognizer(recognizer, self, self.path, *kinds, remarks, self.processes, on_cpu, separate)

    def _native(self, options: Options, subtitles: bool, engine: Engine) -> tuple[AnyRecognizer, list[str]]:
        from focusasr.transcription.native import Recognizer

        config = options.decoding
        remarks = native_remarks(self._checkpoint, config, options.search, options.longform)
        return Recognizer(self._checkpoint, self.device, config, subtitles, engine), remarks

    def _whisper(self, options: Options, engine: Engine) -> tuple[AnyRecognizer, list[str]]:
        from focusasr.transcription.whisper import WhisperRecognizer
        from focusasr.transcription.whisper_batched import BatchedWhisperRecognizer

        idle = without_effect(options.decoding, options.longform)
        longform, remarks = heard_as(self._checkpoint, options.longform)
        kind = BatchedWhisperRecognizer if longform.batched else WhisperRecognizer
        search = options.search
        if not self.as_whisper and "beam_size" not in options.names:
            search = replace(search, beam_size=None)
        recognizer = kind(self._checkpoint, self.device, options.decoding, search, longform, engine)
        recognizer.turns = self.turns
        return recognizer, remarks + idle + recognizer.remarks()

    def _prepared(self, config: DecodingConfig, words: bool) -> Engine:
        """Return the engine of a configuration; if `words`, the checkpoint's decoder has its weights."""
        from focusasr.model.checkpoint import open_checkpoint
        from focusasr.model.engine import prepare

        key = (config.compute_type, config.span_scale, config.temperature_scale)
        known = self._engine is not None and self._engine[0] == key
        opened = self._checkpoint
        if opened.unread is None and not (known and (self._aligns or not words)):
            opened = open_checkpoint(self.path, self.device)
        if self._engine is None or not known:
            self._engine = None  # so that memory never holds two
            self._engine = key, prepare(opened.model, self.device, config, opened.unread)
        if words and not self._aligns:
            assert opened.unread is not None
            opened.unread.fill(self._checkpoint.model.decoder, "decoder")
            self._aligns = True
        if opened.unread is not None:
            opened.unread.close()
        self._checkpoint = replace(self._checkpoint, unread=None)
        return self._engine[1]


def native_remarks(
    checkpoint: Checkpoint, config: DecodingConfig, search: SearchConfig, longform: LongformConfig
) -> list[str]:
    """Return warnings about ineffective settings; SettingError if the text would not be the requested one."""
    for name, value in (("task", "translate"), ("multilingual", True)):
        if getattr(longform, name) == value:
            raise SettingError(name, value, "a multilingual Whisper model by {model}: others cannot", model=None)
    idle = [
        f"--{field.name.replace('_', '-')}"
        for settings in (search, longform)
        for field in fields(settings)
        if field.name not in HARMLESS and getattr(settings, field.name) != field.default
    ]
    remarks = []
    if idle:
        remarks.append(f"{', '.join(idle)}: ignored, because only Whisper models have them")
    asked = config.max_segment_seconds
    if asked and asked > NATIVE_SEGMENT_SECONDS and asked > (longest := _trained_seconds(checkpoint)):
        told = f"this model was trained on at most {longest:g} s, and may lose words in longer segments"
        remarks.append(f"--max-segment-seconds {asked:g}: {told}")
    own = checkpoint.tokenizer.policy.language
    if longform.language is not None:
        from focusasr.text.whisper_tokenizer import language_code

        if own is not None and language_code(longform.language) != own:
            remarks.append(f"--language {longform.language}: ignored, because this model knows only {own}")
        elif own is None:
            remarks.append(f"--language {longform.language}: ignored, because this model knows only one language")
    return remarks


def _trained_seconds(checkpoint: Checkpoint) -> float:
    """Return the longest training utterance of a model in seconds, inf if its folder does not record it."""
    from focusasr.runtime.files import read_json

    with suppress(InputError, KeyError, TypeError):  # a checkpoint made elsewhere has no record of a run
        return float(read_json(cast(Path, checkpoint.folder) / "config.json")["run"]["train"]["max_seconds"])
    return math.inf


def without_effect(config: DecodingConfig, longform: LongformConfig) -> list[str]:
    """Return warnings about settings without effect in a Whisper model, or without another option."""
    finds_speech = longform.batched or longform.vad_filter
    wanted = {
        **dict.fromkeys(("ctc_weight", "joint_beam_size"), "a native model"),
        **dict.fromkeys(asdict(VadConfig()), None if finds_speech else "--vad-filter or --batched"),
        "hallucination_silence_threshold": None if config.word_timestamps else "--word-timestamps",
    }
    given = {**asdict(config), **asdict(longform)}
    usual = {**asdict(DecodingConfig()), **asdict(LongformConfig())}
    return [
        f"--{name.replace('_', '-')}: has no effect without {needed}"
        for name, needed in wanted.items()
        if needed and given[name] != usual[name]
    ]


def heard_as(checkpoint: Checkpoint, longform: LongformConfig) -> tuple[LongformConfig, list[str]]:
    """Return the settings with the language code that the model supports, and warnings."""
    from focusasr.text.whisper_tokenizer import language_code

    code = None if longform.language is None else language_code(longform.language)
    assert checkpoint.whisper is not None
    if checkpoint.whisper.multilingual:
        return replace(longform, language=code), []
    remarks = []
    if code not in (None, "en"):
        remarks.append(f"--language {longform.language}: ignored, because this model knows only English")
    if longform.task == "translate":
        remarks.append("--task translate: ignored, because this model knows only English")
    if longform.multilingual:
        remarks.append("--multilingual: ignored, because this model knows only English")
    return replace(longform, language="en", task="transcribe", multilingual=False), remarks


def has_speech(source: Source) -> bool:
    """Return whether the first 60 s contain 0.5 s of speech; False for sources that can be read only once."""
    from focusasr.audio.load import load
    from focusasr.audio.vad import FRAMES_PER_SECOND, speech_frames

    if not source.is_repeatable:
        return False
    head = replace(source, duration=min(source.duration or HEAD_SECONDS, HEAD_SECONDS))
    waveform = load(head)
    return len(waveform) > 0 and int(speech_frames(waveform).sum()) >= LEAST_SPEECH_SECONDS * FRAMES_PER_SECOND
