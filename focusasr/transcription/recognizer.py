"""Choice of a model, fallback to the CPU, and warnings about ineffective settings."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from focusasr.audio.source import Source
from focusasr.config import NATIVE_SEGMENT_SECONDS, DecodingConfig, VadConfig, WhisperConfig
from focusasr.runtime.console import warn
from focusasr.runtime.errors import InputError, SettingError, as_option
from focusasr.transcription.result import Outcome, SegmentsFound, ignore
from focusasr.whisper_config import LongformConfig, SearchConfig

if TYPE_CHECKING:
    import torch

    from focusasr.model.checkpoint import Checkpoint
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


def native_remarks(
    checkpoint: Checkpoint, config: DecodingConfig, search: SearchConfig, longform: LongformConfig
) -> list[str]:
    """Return warnings about ineffective settings; SettingError if the text would not be the requested one."""
    for name, value in (("task", "translate"), ("multilingual", True)):
        if getattr(longform, name) == value:
            raise SettingError(name, value, "a multilingual Whisper model by --model: others cannot")
    idle = [
        as_option(field.name)
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
        f"{as_option(name)}: has no effect without {needed}"
        for name, needed in wanted.items()
        if needed and given[name] != usual[name]
    ]


def heard_as(whisper: WhisperConfig, longform: LongformConfig) -> tuple[LongformConfig, list[str]]:
    """Return the settings with the language code that the model supports, and warnings."""
    from focusasr.text.whisper_tokenizer import language_code

    code = None if longform.language is None else language_code(longform.language)
    if whisper.multilingual:
        return replace(longform, language=code), []
    options = {
        f"--language {longform.language}": code not in (None, "en"),
        "--task translate": longform.task == "translate",
        "--multilingual": longform.multilingual,
    }
    remarks = [f"{option}: ignored, because this model knows only English" for option, used in options.items() if used]
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
