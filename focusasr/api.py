"""The Python interface: load a model, transcribe audio, and score transcripts.

>>> import focusasr
>>> recognizer = focusasr.load()
>>> result = recognizer.transcribe("tests/data/sample.flac")
>>> result.language
'en'
>>> result.text == result["text"] == result.to_dict()["text"]
True

Options are those of `focusasr transcribe`, with underscores: `recognizer.transcribe(path, word_timestamps=True)`.
Options of `load` apply to every call. An unknown option or an invalid value raises `InputError` with the message of
the command:

>>> recognizer.transcribe("tests/data/sample.flac", beem_size=5)
Traceback (most recent call last):
    ...
focusasr.runtime.errors.UsageError: unknown option 'beem_size'. Did you mean 'beam_size'?

Audio is a path, the bytes of a recording, a binary file, or mono float samples with their sampling rate:

>>> import numpy
>>> silence = numpy.zeros(8_000, numpy.float32)
>>> recognizer.transcribe(silence, sampling_rate=8_000).text
''

Segments of a long recording are available while it is being transcribed:

>>> segments = recognizer.segments("tests/data/sample.flac")
>>> [segment.text for segment in segments] == [segment.text for segment in result.segments]
True
>>> segments.result.text == result.text
True

Audio that comes in real time gives partial texts at once, and final ones after pauses:

>>> live = recognizer.live()
>>> [text.to_dict() for text in [*live.feed(silence), *live.end()]]
[]

Word error rates have a 95 % interval:

>>> score = focusasr.score(["one two three", "four"], ["one two tree", "four"])
>>> score.rates["wer"]
Interval(value=0.25, low=0.0, high=0.3333333333333333)

A recognizer may be used by several threads. Their calls take turns, and decode together what then gives the same text
as alone. Nothing is printed; the command's warnings are in `result.warnings`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from focusasr.audio.integrity import AudioError as AudioError
from focusasr.audio.source import MemoryAudio, Source
from focusasr.config import BUNDLED_CHECKPOINTS
from focusasr.runtime.console import collect_warnings
from focusasr.runtime.errors import InputError, quote
from focusasr.runtime.errors import UsageError as UsageError
from focusasr.runtime.libraries import explain
from focusasr.runtime.turns import Turns
from focusasr.transcription.loaded_model import LoadedModel
from focusasr.transcription.options import Options, sort_options
from focusasr.transcription.recognizer import ModelChoice
from focusasr.transcription.result import Segment, SegmentsFound, Transcript, ignore
from focusasr.transcription.segment_stream import SegmentStream

if TYPE_CHECKING:
    import numpy as np
    import torch

    from focusasr.evaluation.wer import Score
    from focusasr.transcription.live import LiveTranscriber
    from focusasr.whisper_config import OutputConfig

    Audio = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | torch.Tensor

NAME_IN_MEMORY = "audio"  # name of audio without a file name, in messages and of its outputs


def load(
    model: str | None = None,
    device: str = "auto",
    *,
    threads: int = 0,
    local_files_only: bool = False,
    model_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Recognizer:
    """Load a model: a checkpoint folder, an OpenAI .pt file, a name such as tiny.en, or the bundled one.

    `device`, `threads`, `local_files_only` and `model_dir` are those of the command. `options` apply to every call.
    InputError if there is no such model or device, or if an option is invalid.
    """
    folder = None if model_dir is None else Path(model_dir)
    with _plain_errors():
        return Recognizer(ModelChoice(model, device, threads, local_files_only, folder), options)


def load_model(
    name: str | None = None, device: str | None = None, download_root: str | None = None, **options: Any
) -> Recognizer:
    """Load a model, with the argument names of openai/whisper."""
    return load(name, device or "auto", model_dir=download_root, **options)


def available_models() -> list[str]:
    """Return the names that `load` accepts: those of bundled models, and OpenAI's, which are downloaded once."""
    from focusasr.model.checkpoint_folder import WHISPER_NAMES

    return [*BUNDLED_CHECKPOINTS, *WHISPER_NAMES]


def score(references: Sequence[str], hypotheses: Sequence[str], normalizer: str = "basic", seed: int = 0) -> Score:
    """Compare transcripts with reference texts: error rates, each with its 95 % bootstrap interval.

    `normalizer` is none, basic or english. InputError if the two differ in number or are empty.
    """
    from focusasr.evaluation import wer

    truths, texts = ([one] if isinstance(one, str) else list(one) for one in (references, hypotheses))
    if len(truths) != len(texts) or not truths:
        counts = f"{len(truths)} references and {len(texts)} hypotheses"
        raise InputError(f"score: got {counts}. Give one hypothesis for each reference, and at least one.")
    if others := [text for text in (*truths, *texts) if not isinstance(text, str)]:
        raise InputError(f"score: got {quote(others[0])}; expected: text. Give an empty string for no text.")
    with _plain_errors():
        return wer.score(truths, texts, normalizer, seed)


@dataclass(frozen=True)
class Result(Mapping[str, Any]):
    """A transcript, the length of its audio, and the warnings of the command.

    It is a mapping as well: `result["text"]`, `result["segments"]` and `result["language"]` are openai/whisper's.
    """

    transcript: Transcript
    duration: float  # seconds
    warnings: list[str]
    _source: Source
    _output: OutputConfig

    @property
    def text(self) -> str:
        """The whole text."""
        return self.transcript.text

    @property
    def segments(self) -> list[Segment]:
        """Segments with their times in seconds, in order."""
        return self.transcript.segments

    @property
    def words(self) -> list[dict[str, Any]]:
        """All words as {word, start, end, probability}; empty without the option `word_timestamps`."""
        return [word for segment in self.segments for word in segment.words or ()]

    @property
    def language(self) -> str | None:
        """Language code, such as en; None if the model does not state one."""
        return self.transcript.language

    def to_dict(self) -> dict[str, Any]:
        """Return openai/whisper's {text, segments, language}, ready for JSON."""
        from focusasr.transcription.writers import to_json_dict

        return to_json_dict(self.transcript)

    def __getitem__(self, name: str) -> Any:
        """Return one entry of `to_dict`; KeyError if it has none of that name."""
        return self.to_dict()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())

    def __len__(self) -> int:
        return len(self.to_dict())

    def render(self, suffix: str) -> str:
        """Return the content of an output file: suffix txt, vtt, srt, tsv or json; InputError for another one."""
        from focusasr.transcription.writers import render

        return render(self.transcript, suffix, self._output)

    def write(self, folder: str | os.PathLike[str], formats: str | Iterable[str] = "all") -> list[Path]:
        """Write one file per format, named after the recording, each whole or not at all; return their paths.

        Audio without a file name gives `audio.txt` and so on. InputError for an unknown format or a folder that cannot
        be written.
        """
        from focusasr.transcription.writers import FORMATS, output_stems, parse_formats, write

        with _plain_errors():
            named = parse_formats(formats)
            (stem,) = output_stems([self._source], Path(folder))
            return write(self.transcript, stem, FORMATS if "all" in named else named, self._output)


class Recognizer:
    """A loaded model that transcribes; safe to share among threads, whose calls take turns and are batched."""

    def __init__(self, choice: ModelChoice, options: dict[str, Any]) -> None:
        self._defaults = dict(options)
        usual = self._options({})
        self._turns = Turns()  # for the weights and the settings of PyTorch
        self._model = LoadedModel(choice)
        self._model.turns = self._turns
        self._model.recognizer(usual)  # rejects options that this model does not support, and prepares its weights

    @property
    def path(self) -> Path:
        """The path of the model on disk."""
        return self._model.path

    @property
    def is_whisper(self) -> bool:
        """Whether it is a Whisper model."""
        return self._model.is_whisper

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self._model.device

    def transcribe(
        self,
        audio: Audio | Source,
        *,
        sampling_rate: int | None = None,
        progress: Callable[[float], object] = lambda seconds: None,
        **options: Any,
    ) -> Result:
        """Transcribe a recording: a path, bytes, a binary file, or mono float samples (N,) at `sampling_rate` Hz.

        `sampling_rate` is for samples only (default 16,000). `progress` gets the seconds of audio transcribed since its
        last call; an exception that it raises ends the work. InputError if the audio or an option cannot be used. For a
        truncated recording, the attribute `partial` of the error is the Result of its beginning.
        """
        source, read = _source(audio, sampling_rate), self._options(options)
        if source.is_samples:
            _check_samples(read)
        with _plain_errors():
            return self._transcribe(source, read, progress, ignore)

    def segments(self, audio: Audio | Source, *, sampling_rate: int | None = None, **options: Any) -> SegmentStream:
        """Return an iterator over the segments of `transcribe`, each available when it is decoded.

        A separate thread decodes ahead. With a smaller `batch_size` the first segments come sooner.
        """
        source, read = _source(audio, sampling_rate), self._options(options)
        if source.is_samples:
            _check_samples(read)

        def work(found: Callable[[Sequence[Segment]], object], progress: Callable[[float], object]) -> Result:
            with _plain_errors():
                return self._transcribe(source, read, progress, lambda _source, _language, segments: found(segments))

        return SegmentStream(work)

    def live(self, **options: Any) -> LiveTranscriber:
        """Return a transcriber of samples that come in real time: its `feed` and `end` yield partial and final texts.

        Samples are mono float32 at 16 kHz. A final text is that of `transcribe` for its part of the recording.
        """
        from focusasr.transcription.live import live_transcriber

        read = self._options(options)
        _check_samples(read)
        with _plain_errors():
            return live_transcriber(self._model, read, self._turns.turn)

    def _options(self, options: dict[str, Any]) -> Options:
        with _plain_errors():
            return Options.read(sort_options({**self._defaults, **options}))

    def _transcribe(
        self,
        source: Source,
        options: Options,
        progress: Callable[[float], object],
        found: SegmentsFound,
    ) -> Result:
        def told(files: int, seconds: float) -> None:
            progress(seconds)
            self._turns.pass_on()

        with self._turns.turn(), collect_warnings() as warnings:
            loaded = self._model.recognizer(options, subtitles=True)
            (outcome,) = loaded.shared([options.chosen(source)], told, found=found)
        result = None
        if outcome.transcript is not None:
            lines = [*loaded.remarks, *warnings]
            result = Result(outcome.transcript, outcome.audio_seconds, lines, source, options.output)
        if result is None or outcome.error is not None:
            raise outcome.exception(result)
        return result


def _check_samples(options: Options) -> None:
    """Reject a selection of tracks or channels for samples, which have neither."""
    for name, value in asdict(options.recording).items():
        if value not in (None, "mix"):
            raise UsageError(f"{name} is {value!r}: samples have one track and one channel. Leave it out.")


def _source(audio: Any, rate_hz: int | None) -> Source:
    """Return the source to read; a file object keeps its name for messages and outputs."""
    if isinstance(audio, Source):
        return audio
    if isinstance(audio, (str, os.PathLike)):
        if rate_hz is not None:
            raise InputError(f"sampling_rate is {rate_hz!r}: only arrays of samples need it. Leave it out.")
        return Source(os.fsdecode(audio))
    name = getattr(audio, "name", None)
    return Source(name if isinstance(name, str) else NAME_IN_MEMORY, memory=MemoryAudio.of(audio, rate_hz))


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise an error of a missing library as one with the remedy."""
    try:
        yield
    except ImportError as error:
        raise explain(error) or error from error
