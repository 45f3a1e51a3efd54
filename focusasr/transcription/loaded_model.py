"""Loading of models, by the engine that computes them, and of their recognizers."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from focusasr.audio.source import Source
from focusasr.config import DecodingConfig
from focusasr.runtime.devices import Processes, in_a_job, join_processes, may_have_gpu
from focusasr.runtime.libraries import LibraryError
from focusasr.runtime.process import loading
from focusasr.runtime.turns import Turns
from focusasr.transcription.options import Given, Options
from focusasr.transcription.recognizer import (
    AnyRecognizer,
    ModelChoice,
    has_speech,
    heard_as,
    native_remarks,
    with_cpu_fallback,
    without_effect,
)
from focusasr.transcription.result import Outcome, SegmentsFound, ignore
from focusasr.whisper_config import SearchConfig

if TYPE_CHECKING:
    import torch

    from focusasr.model.checkpoint import Checkpoint
    from focusasr.model.engine import Engine
    from focusasr.model.onnx_engine import OnnxEngine
    from focusasr.model.torch_weights import UnreadWeights
    from focusasr.model.weights import ImportedCheckpoint
    from focusasr.text.whisper_tokenizer import WhisperTokenizer
    from focusasr.transcription.resume import SegmentCacheOf

BEAMS = 3  # of our Whisper models by default: 6 % fewer errors than greedy (dev sets) in a fifth more time
LEAST_LOGPROB = -0.5  # above it: all 384 dev recordings in the default model's domain, 3 of 177 outside it


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

    def is_doubtful(self, outcome: Outcome) -> bool:
        """Return whether a text is unreliable, if the model is a native one."""
        return not self.is_whisper and outcome.transcript is not None and outcome.transcript.avg_logprob < LEAST_LOGPROB

    def empty_although(self, outcome: Outcome) -> str:
        """Return a line on an empty text of a recording with speech, or on the library that cannot find speech."""
        if outcome.transcript is None or outcome.transcript.text.strip() or outcome.error is not None:
            return ""
        try:
            spoken = has_speech(outcome.source)
        except LibraryError as error:
            return str(error)
        problem = "has speech, but the model finds no words in it; try another --model"
        return f"{outcome.source.name}: {problem}" if spoken else ""

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


def load_recognizer(choice: ModelChoice, given: Given, subtitles: bool = False) -> LoadedRecognizer:
    """Load a recognizer for this process of a command, with word times for `subtitles`.

    InputError if the settings are invalid, the checkpoint is not found, or the model does not support the settings.
    """
    options = Options.read(given)
    with loading():
        return LoadedModel(choice, several=True).recognizer(options, subtitles)


def _device(choice: ModelChoice) -> torch.device:
    import torch

    from focusasr.runtime.devices import choose_device

    if choice.threads:
        torch.set_num_threads(choice.threads)
    return choose_device(choice.device)[0]


class LoadedModel:
    """A checkpoint on a device; recognizers with the same numerical settings share its prepared weights.

    On a CPU a Whisper model is computed by ONNX Runtime if the options allow it, without PyTorch, which starts faster
    and needs less memory. Otherwise PyTorch computes. Only prepared weights stay in memory. For PyTorch the checkpoint
    is read again for another compute type, and for the word times of Whisper models, which need the decoder's original
    weights. InputError if the checkpoint or the device is not found. With `several`, the process may be one of a job's.
    """

    def __init__(self, choice: ModelChoice, several: bool = False) -> None:
        from focusasr.model.checkpoint_folder import find_checkpoint
        from focusasr.text.whisper_tokenizer import WhisperTokenizer

        self.choice, self.processes = choice, Processes()
        self._own_device: torch.device | None = None
        if several and in_a_job():
            self.processes, self._own_device = join_processes(_device(choice))
        self.path = find_checkpoint(choice.model, choice.local_files_only, choice.model_dir)
        self._files = ExitStack()  # of the weights that ONNX Runtime has not got yet
        self._onnx_model = self._own_device is None and _onnx_model(self.path, choice, self._files)
        self._opened: Checkpoint | None = None
        read = self._onnx_model or self._checkpoint
        config = self._onnx_model.config if self._onnx_model else self._checkpoint.model.config
        self._aligns = False  # whether its decoder has its weights, for word times, which may be requested again
        self.is_whisper = isinstance(read.tokenizer, WhisperTokenizer)
        # Models for audio of variable length are ours: they print texts, and have fewer beams.
        self.as_whisper = self.is_whisper and config.tail_frames is None
        self._engine: tuple[object, Engine] | None = None  # the last engine, and its settings
        self._onnx_engine: OnnxEngine | None = None
        self.turns: Turns | None = None  # of several threads that transcribe
        self._on_cpu = functools.cache(lambda: LoadedModel(replace(choice, device="cpu")))

    @functools.cached_property
    def device(self) -> torch.device:
        """The device of PyTorch's computations."""
        return self._own_device or _device(self.choice)

    @property
    def _checkpoint(self) -> Checkpoint:
        from focusasr.model.checkpoint import open_checkpoint

        if self._opened is None:
            self._opened = open_checkpoint(self.path, self.device)
        return self._opened

    def recognizer(self, options: Options, subtitles: bool = False) -> LoadedRecognizer:
        """Return a recognizer with these options; InputError if the model does not support them."""
        recognizer: AnyRecognizer
        if self._onnx_model and can_do(options):
            recognizer, remarks = self._onnx(options)
        else:
            engine = self._prepared(options.decoding, self.is_whisper and options.decoding.word_timestamps)
            kind = self._whisper if self.is_whisper else functools.partial(self._native, subtitles)
            recognizer, remarks = kind(options, engine)
        elsewhere = self._on_cpu  # so that the closure holds no weights of this device

        def on_cpu() -> AnyRecognizer:
            return elsewhere().recognizer(options, subtitles).recognizer

        separate = options.recording.channels == "separate"
        kinds = self.is_whisper, self.as_whisper
        return LoadedRecognizer(recognizer, self, self.path, *kinds, remarks, self.processes, on_cpu, separate)

    def _native(self, subtitles: bool, options: Options, engine: Engine) -> tuple[AnyRecognizer, list[str]]:
        from focusasr.transcription.native import Recognizer

        config = options.decoding
        remarks = native_remarks(self._checkpoint, config, options.search, options.longform)
        return Recognizer(self._checkpoint, self.device, config, subtitles, engine), remarks

    def _whisper(self, options: Options, engine: Engine) -> tuple[AnyRecognizer, list[str]]:
        from focusasr.transcription.whisper import WhisperRecognizer
        from focusasr.transcription.whisper_batched import BatchedWhisperRecognizer

        assert self._checkpoint.whisper is not None
        idle = without_effect(options.decoding, options.longform)
        longform, remarks = heard_as(self._checkpoint.whisper, options.longform)
        kind = BatchedWhisperRecognizer if longform.batched else WhisperRecognizer
        search = self._search(options)
        recognizer = kind(self._checkpoint, self.device, options.decoding, search, longform, engine)
        recognizer.turns = self.turns
        return recognizer, remarks + idle + recognizer.remarks()

    def _onnx(self, options: Options) -> tuple[AnyRecognizer, list[str]]:
        from focusasr.transcription.onnx import OnnxBatchedRecognizer, OnnxRecognizer

        assert self._onnx_model
        idle = without_effect(options.decoding, options.longform)
        tokenizer = cast("WhisperTokenizer", self._onnx_model.tokenizer)
        longform, remarks = heard_as(tokenizer.whisper, options.longform)
        self._onnx_engine = self._onnx_engine or self._new_onnx_engine(self._onnx_model)
        kind = OnnxBatchedRecognizer if longform.batched else OnnxRecognizer
        recognizer = kind(self._onnx_engine, tokenizer, options.decoding, self._search(options), longform)
        recognizer.turns = self.turns
        return recognizer, remarks + idle + recognizer.remarks()

    def _new_onnx_engine(self, model: ImportedCheckpoint) -> OnnxEngine:
        from focusasr.model.onnx_engine import OnnxEngine
        from focusasr.model.onnx_weights import WeightReader

        engine = OnnxEngine(WeightReader(model.tensors, model.place), model.config, self.choice.threads)
        self._onnx_model = model._replace(tensors={})  # whose arrays may hold memory
        self._files.close()
        return engine

    def _with_weights(self) -> Checkpoint:
        """Return the checkpoint with its weights unread; its files are open until `_close`."""
        from focusasr.model.checkpoint import open_checkpoint

        if self._checkpoint.unread is None:
            model = self._checkpoint.model  # may have the decoder's weights
            self._opened = replace(open_checkpoint(self.path, self.device), model=model)
        return self._checkpoint

    def _close(self) -> None:
        if self._checkpoint.unread is not None:
            self._checkpoint.unread.close()
        self._opened = replace(self._checkpoint, unread=None)

    def _search(self, options: Options) -> SearchConfig:
        own = not self.as_whisper and "beam_size" not in options.names
        return replace(options.search, beam_size=BEAMS) if own else options.search

    def _prepared(self, config: DecodingConfig, words: bool) -> Engine:
        """Return the engine of a configuration; if `words`, the checkpoint's decoder has its weights."""
        from focusasr.model.engine import prepare

        key = (config.compute_type, config.span_scale, config.temperature_scale)
        if self._engine is None or self._engine[0] != key:
            self._engine = None  # so that memory never holds two
            opened = self._with_weights()
            self._engine = key, prepare(opened.model, self.device, config, opened.unread)
            self._close()
        if words and not self._aligns:
            opened = self._with_weights()
            cast("UnreadWeights", opened.unread).fill(opened.model.decoder, "decoder")
            self._aligns = True
            self._close()
        return self._engine[1]


def _onnx_model(path: Path, choice: ModelChoice, files: ExitStack) -> ImportedCheckpoint | None:
    """Return a Whisper model that ONNX Runtime can compute, with weights that are read as long as `files` are open."""
    from focusasr.model.imported import read_checkpoint
    from focusasr.model.onnx_engine import supports
    from focusasr.text.whisper_tokenizer import WhisperTokenizer

    cpu = choice.device == "cpu" or (choice.device == "auto" and not may_have_gpu())
    if not cpu or not has_onnx():
        return None
    model = read_checkpoint(path, files)
    if isinstance(model.tokenizer, WhisperTokenizer) and supports(model.config):
        return model
    files.close()
    return None


def has_onnx() -> bool:
    """Return whether ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def can_do(options: Options) -> bool:
    """Return whether ONNX Runtime can compute a Whisper with these options."""
    from focusasr.decoding.onnx_decoder import OnnxWhisperDecoder

    config = options.decoding
    usual = config.span_scale == config.temperature_scale == 1.0 and config.compute_type in ("auto", "int8")
    return usual and OnnxWhisperDecoder.supports(options.search)
