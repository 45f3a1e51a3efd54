"""Which recognizer a checkpoint needs, and what of the settings it cannot honor."""

from __future__ import annotations

import itertools
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from focusasr.audio.source import Source
from focusasr.config import DecodingConfig
from focusasr.runtime.console import warn
from focusasr.runtime.devices import Processes, join_processes
from focusasr.runtime.errors import InputError, SettingError
from focusasr.runtime.process import loading
from focusasr.runtime.settings import read_options
from focusasr.whisper_config import LongformConfig, SearchConfig

if TYPE_CHECKING:
    import torch

    from focusasr.model.checkpoint import Checkpoint
    from focusasr.transcription.result import Listen, Outcome
    from focusasr.transcription.resume import SegmentCacheOf


Given = dict[type, dict[str, Any]]
HARMLESS = {"language", "vad_filter", "condition_on_previous_text", "carry_initial_prompt", "beam_size", "task"}
HEAD_SECONDS = 60.0  # where speech is looked for, if only whether there is any
LEAST_SPEECH_SECONDS = 0.5


class AnyRecognizer(Protocol):
    """What transcribes: a native checkpoint or a Whisper model."""

    device: torch.device
    listen: Listen | None

    def transcribe(
        self, sources: Iterable[Source], progress: Callable[[float], None] = ..., notes: SegmentCacheOf | None = ...
    ) -> Iterator[Outcome]:
        """Yield one outcome per source, in order."""


@dataclass(frozen=True)
class ModelChoice:
    """Which model computes where."""

    model: str | None = None
    device: str = "auto"
    threads: int = 0
    local_files_only: bool = False
    model_dir: Path | None = None


@dataclass(frozen=True)
class LoadedRecognizer:
    """A recognizer, where it lies, whether it is a Whisper model, and what a user should be told of the settings."""

    recognizer: AnyRecognizer
    path: Path
    is_whisper: bool
    remarks: list[str]
    processes: Processes
    on_cpu: Callable[[], AnyRecognizer]
    separate: bool = False  # channels are transcribed one by one
    listen: Listen | None = None  # is given segments as soon as they are known, by Whisper models

    @property
    def detects_language(self) -> bool:
        """Return whether the model finds out what is spoken."""
        return bool(getattr(self.recognizer, "detects_language", False))

    def shared(
        self, sources: Iterable[Source], tell: Callable[[int, float], None], notes: SegmentCacheOf | None = None
    ) -> Iterator[Outcome]:
        """Yield every source's outcome, in order and in every process; the processes share the work."""
        from focusasr.transcription.channels import by_channel

        if not self.separate:
            return self._shared(sources, lambda seconds: tell(0, seconds), notes)

        whole = list(sources)

        def work(parts: list[Source]) -> Iterator[Outcome]:
            return self._shared(parts, lambda seconds: tell(0, seconds * len(whole) / len(parts)), notes)

        return by_channel(whole, work)

    def _shared(
        self, sources: Iterable[Source], progress: Callable[[float], None], notes: SegmentCacheOf | None
    ) -> Iterator[Outcome]:
        def work(mine: Iterable[Source]) -> Iterator[Outcome]:
            on_cpu = lambda: self._heard(self.on_cpu())  # noqa: E731
            return with_cpu_fallback(self._heard(self.recognizer), on_cpu, mine, progress, notes)

        return work(sources) if self.processes.count == 1 else self.processes.in_order(list(sources), work)

    def _heard(self, recognizer: AnyRecognizer) -> AnyRecognizer:
        if self.listen is not None:
            recognizer.listen = self.listen
        return recognizer


def with_cpu_fallback(
    recognizer: AnyRecognizer,
    on_cpu: Callable[[], AnyRecognizer],
    sources: Iterable[Source],
    progress: Callable[[float], None],
    notes: SegmentCacheOf | None = None,
) -> Iterator[Outcome]:
    """Yield every source's outcome, in order; where the device fails the CPU goes on from the first one missing."""
    from focusasr.runtime.devices import device_fails

    left: deque[Source] = deque()
    coming = iter(sources)

    def taken() -> Iterator[Source]:
        for source in coming:
            left.append(source)
            yield source

    try:
        for outcome in recognizer.transcribe(taken(), progress, notes):
            left.popleft()
            yield outcome
    except (MemoryError, RuntimeError) as error:
        if not device_fails(recognizer.device, error):
            raise
        warn(f"focusasr: {recognizer.device} fails ({str(error).splitlines()[0]}); going on with the CPU")
        yield from on_cpu().transcribe(itertools.chain(left, coming), progress, notes)


def load_recognizer(choice: ModelChoice, given: Given, subtitles: bool = False) -> LoadedRecognizer:
    """Load what transcribes, with what `subtitles` need if they are wanted; torch is imported here.

    InputError where the settings are wrong, where there is no such checkpoint, or where it cannot do what is asked.
    """
    config = read_options(DecodingConfig, given.get(DecodingConfig, {}))
    search = read_options(SearchConfig, given.get(SearchConfig, {}))
    longform = read_options(LongformConfig, given.get(LongformConfig, {}))
    with loading():
        return _load(choice, config, search, longform, subtitles)


def _load(
    choice: ModelChoice, config: DecodingConfig, search: SearchConfig, longform: LongformConfig, subtitles: bool
) -> LoadedRecognizer:
    import torch

    from focusasr.model.checkpoint import find_checkpoint, load_checkpoint
    from focusasr.runtime.devices import choose_device

    if choice.threads:
        torch.set_num_threads(choice.threads)
    processes, device = join_processes(choose_device(choice.device)[0])
    path = find_checkpoint(choice.model, choice.local_files_only, choice.model_dir)
    checkpoint = load_checkpoint(path, device)

    def on_cpu() -> AnyRecognizer:
        return _load(replace(choice, device="cpu"), config, search, longform, subtitles).recognizer

    if checkpoint.whisper is None:
        from focusasr.transcription.native import Recognizer

        remarks = native_remarks(checkpoint, config, search, longform)
        return LoadedRecognizer(
            Recognizer(checkpoint, device, config, subtitles), path, False, remarks, processes, on_cpu
        )
    from focusasr.transcription.whisper import WhisperRecognizer
    from focusasr.transcription.whisper_batched import BatchedWhisperRecognizer

    idle = without_effect(config, longform)
    longform, remarks = heard_as(checkpoint, longform)
    remarks += idle
    kind = BatchedWhisperRecognizer if longform.batched else WhisperRecognizer
    recognizer = kind(checkpoint, device, config, search, longform)
    remarks += recognizer.remarks()
    return LoadedRecognizer(recognizer, path, True, remarks, processes, on_cpu)


def native_remarks(
    checkpoint: Checkpoint, config: DecodingConfig, search: SearchConfig, longform: LongformConfig
) -> list[str]:
    """Return what a native checkpoint cannot honor; SettingError where it would give another text than asked for."""
    if longform.task == "translate":
        raise SettingError("task", "translate", "a multilingual Whisper model by {model}: others cannot", model=None)
    idle = [
        f"--{field.name.replace('_', '-')}"
        for settings in (search, longform)
        for field in fields(settings)
        if field.name not in HARMLESS and getattr(settings, field.name) != field.default
    ]
    remarks = []
    if idle:
        remarks.append(f"{', '.join(idle)}: of use to Whisper models only; this one does without")
    asked = config.max_segment_seconds
    if asked > DecodingConfig.max_segment_seconds and asked > (longest := _trained_seconds(checkpoint)):
        told = f"this model was trained on up to {longest:g} s at once, and may lose words in more"
        remarks.append(f"--max-segment-seconds {asked:g}: {told}")
    own = checkpoint.tokenizer.policy.language
    if longform.language is not None:
        from focusasr.text.whisper_tokenizer import language_code

        if own is not None and language_code(longform.language) != own:
            remarks.append(f"--language {longform.language}: this model knows only {own}, and writes that")
        elif own is None:
            remarks.append(f"--language {longform.language}: this model knows one language and does not say which")
    return remarks


def _trained_seconds(checkpoint: Checkpoint) -> float:
    """Return the longest sound that a model was trained on, without end where its folder does not say."""
    from focusasr.runtime.files import read_json

    with suppress(InputError, KeyError, TypeError):  # one made elsewhere has no run
        return float(read_json(cast(Path, checkpoint.folder) / "config.json")["run"]["train"]["max_seconds"])
    return math.inf


def without_effect(config: DecodingConfig, longform: LongformConfig) -> list[str]:
    """Return what a Whisper model does without, and what wants another option beside it."""
    finds_speech = longform.batched or longform.vad_filter
    wanted = {
        **dict.fromkeys(("ctc_weight", "joint_beam_size", "max_segment_seconds"), "a native model"),
        "vad_threshold": None if finds_speech else "--vad-filter or --batched beside it",
        "hallucination_silence_threshold": None if config.word_timestamps else "--word-timestamps beside it",
    }
    given = {**asdict(config), **asdict(longform)}
    usual = {**asdict(DecodingConfig()), **asdict(LongformConfig())}
    return [
        f"--{name.replace('_', '-')}: without effect here; it wants {needed}"
        for name, needed in wanted.items()
        if needed and given[name] != usual[name]
    ]


def heard_as(checkpoint: Checkpoint, longform: LongformConfig) -> tuple[LongformConfig, list[str]]:
    """Return the settings with a language that the Whisper model knows, by code."""
    from focusasr.text.whisper_tokenizer import language_code

    code = None if longform.language is None else language_code(longform.language)
    assert checkpoint.whisper is not None
    if checkpoint.whisper.multilingual:
        return replace(longform, language=code), []
    remarks = []
    if code not in (None, "en"):
        remarks.append(f"--language {longform.language}: this model knows only English, and writes that")
    if longform.task == "translate":
        remarks.append("--task translate: this model knows only English, and writes down what is said")
    return replace(longform, language="en", task="transcribe"), remarks


def has_speech(source: Source) -> bool:
    """Return whether the first minute of a recording holds half a second of speech; False of what is read only once."""
    from focusasr.audio.load import load
    from focusasr.audio.vad import FRAMES_PER_SECOND, speech_frames

    if not os.path.isfile(source.path):
        return False
    head = replace(source, duration=min(source.duration or HEAD_SECONDS, HEAD_SECONDS))
    waveform = load(head)
    return len(waveform) > 0 and int(speech_frames(waveform).sum()) >= LEAST_SPEECH_SECONDS * FRAMES_PER_SECOND
