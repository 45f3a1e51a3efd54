"""Settings and defaults of the model, its text, preprocessing, decoding, evaluation and the server."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from focusasr.runtime.settings import Settings, require, require_use, research, setting

SAMPLE_RATE_HZ = 16_000
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 3_072_000  # of recordings: beyond these, resampling needs unbounded memory
LARGEST = 1_000_000  # of any size of a model: products of sizes stay within PyTorch's integers
SIZE, COUNT = {"ge": 1, "le": LARGEST}, {"ge": 0, "le": LARGEST}  # ranges of settings
FACTOR = {"ge": 1e-9, "le": 1e9}
LEARNED_TEMPERATURE_RANGE = 4.0  # largest ratio of a learned temperature to the formula's value, or its inverse
WIDE_ENOUGH = 320  # width from which 8 bit integers are faster on a CPU
LARGEST_TEXT = 4096  # tokens of one text: a decoder allocates memory for all of them at its start
DEFAULT_CHECKPOINT = "focusasr-en"
BUNDLED_CHECKPOINTS = {"default": DEFAULT_CHECKPOINT, "alnum": "focusasr-alnum-en"}  # folders by the names for --model
LIMIT = {"gt": 0, "le": 1e9}  # range of the server's limits, in seconds or megabytes
NATIVE_SEGMENT_SECONDS = 20.0  # longest segment of native models
SHORTEST_ADAPTED_SAMPLES = 2 * SAMPLE_RATE_HZ  # adapted Whisper models misread shorter audio: 24 of 558 words, not 14
SHORTEST_SAMPLES = 4 * SAMPLE_RATE_HZ // 10  # a tightly trimmed word lasts 0.15 s: too few steps for CTC


@dataclass(frozen=True)
class TextConfig(Settings):
    """Text policy and tokenizer: the form of transcripts before tokenization; saved in the checkpoint."""

    case: Literal["lower", "upper", "keep"] = setting("lower", "case of transcripts")
    punctuation: Literal["remove", "keep"] = setting("remove", "punctuation of transcripts")
    tokens: Literal["characters", "bpe"] = setting("characters", "kind of tokens")
    language: str | None = setting(None, "language code of the checkpoint, such as en, written into JSON results")
    vocabulary_size: int = setting(1000, "largest vocabulary with bpe, special tokens included", ge=8, le=LARGEST)


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Architecture of a model, saved in the checkpoint.

    Distances (`max_dist`, `max_span`, `ramp`, `win_size`) are encoder steps: 160 samples times both strides,
    40 ms with strides (2, 2). In a decoder they are tokens.
    """

    vocabulary: int = 0  # tokens, special ones included; not an option, since it follows from the tokenizer
    mel_bands: int = setting(80, "mel bands: 80, or 128 as in Whisper large-v3", **SIZE)
    width: int = setting(224, "width of the residual stream", **SIZE)
    heads: int = setting(4, "attention heads", **SIZE)
    encoder_layers: int = setting(8, "encoder blocks", **SIZE)
    decoder_layers: int = setting(2, "decoder blocks", **SIZE)
    strides: tuple[int, int] = setting((2, 2), "strides of both stem convolutions: 2 2 for 40 ms steps, 1 2 for 20 ms")
    attention: Literal["hybrid", "global"] = setting("hybrid", "self-attention of the encoder")
    decoder_attention: Literal["hybrid", "global"] = research("global", "self-attention of the decoder")
    conv_kernel: int = research(0, "kernel of a convolution between attention and MLP, in encoder steps (0: none)")
    positions: Literal["rotary", "absolute"] = research("rotary", "position encoding: rotary, or Whisper's absolute")
    base: float = research(10_000.0, "base of the rotary position encoding", gt=0)
    max_dist: int | None = research(None, "attention span of the global branch, in steps (none: unlimited)", **COUNT)
    max_span: int = research(32, "largest radius of the local branch, in steps", le=LARGEST)
    initial_span: float = research(
        0.1,
        "radius of the local branch before training, as a share of the largest: short spans learn sounds sooner",
        gt=0,
        lt=1,
    )
    ramp: int = research(4, "width of the soft edge of the local window, in steps", **SIZE)
    win_size: int = research(32, "block size of the windowed computation, in steps, without effect on results", **SIZE)
    temperature: Literal["formula", "learned"] = research(
        "learned", "softmax temperature of the local branch: by formula, or learned per head starting from it"
    )
    sharpen_longer: bool = research(True, "lower temperature for longer spans, instead of shorter ones")
    temp_scale: float = research(0.5, "influence of the span on the temperature", ge=0)
    ctc: bool = setting(True, "CTC head on the encoder, for an auxiliary loss and joint decoding")
    audio_context: int = research(1500, "encoder steps of absolute positions, to which audio is padded or cut", **SIZE)
    tail_frames: int | None = setting(
        None,
        "silence after audio of any length with absolute positions, in 10 ms frames (none: padded to the window)",
        **COUNT,
    )
    text_context: int = research(448, "longest text, special tokens included, in tokens", ge=4, le=LARGEST_TEXT)
    dropout: float = setting(0.1, "dropout rate on the residual stream", ge=0, lt=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = 2 * self.heads  # a rotation acts on pairs of coordinates
        wanted = f"a multiple of {pairs}, twice heads ({self.heads})"
        require(self.width % pairs == 0, "width", self.width, wanted)
        fits = len(self.strides) == 2 and min(self.strides) >= 1 and max(self.strides) <= 8
        require(fits, "strides", self.strides, "two numbers, 1 to 8")
        require(self.ramp <= self.max_span, "max_span", self.max_span, f"at least ramp ({self.ramp})")
        fits = self.conv_kernel == 0 or (self.conv_kernel % 2 == 1 and 0 < self.conv_kernel < LARGEST)
        require(fits, "conv_kernel", self.conv_kernel, f"0 or an odd number below {LARGEST}")
        absolute = self.tail_frames is None or self.positions == "absolute"
        require(absolute, "tail_frames", self.tail_frames, "none, since rotary positions keep lengths")
        require(0 <= self.vocabulary <= LARGEST, "vocabulary", self.vocabulary, f"0 to {LARGEST}")

    @property
    def step_seconds(self) -> float:
        """Return the duration of one encoder step, in seconds."""
        return 0.01 * self.strides[0] * self.strides[1]

    @property
    def longest_samples(self) -> int | None:
        """Return the longest audio with absolute positions, in samples (30 s in Whisper); None: any length."""
        if self.positions == "rotary":
            return None
        return self.audio_context * self.strides[0] * self.strides[1] * SAMPLE_RATE_HZ // 100

    @property
    def window_samples(self) -> int | None:
        """Return the length to which all audio is padded, in samples, as in Whisper; None: audio keeps its length."""
        return self.longest_samples if self.tail_frames is None else None

    @property
    def shortest_samples(self) -> int:
        """Return the number of samples to which shorter audio continues as silence, before its tail; 0: none does."""
        return 0 if self.tail_frames is None else SHORTEST_ADAPTED_SAMPLES

    def input_frames(self, frames: int) -> int:
        """Return the number of encoder input frames for `frames` frames of audio: with the tail, or the window."""
        if self.positions == "rotary":
            return frames
        stride = self.strides[0] * self.strides[1]
        longest = self.audio_context * stride
        if self.tail_frames is None:
            return longest
        return min(longest, -(-(frames + self.tail_frames) // stride) * stride)


@dataclass(frozen=True)
class WhisperConfig(Settings):
    """Tokens and heads of a Whisper checkpoint, under the names of its generation_config.json.

    Heads are (decoder layer, head) pairs, forced ids (position, token) pairs.
    """

    task: Literal["transcribe", "translate"] = "transcribe"  # default task
    multilingual: bool = True  # has language and task tokens in its prompt
    suppress_tokens: list[int] = dataclasses.field(default_factory=list)  # never sampled
    begin_suppress_tokens: list[int] = dataclasses.field(default_factory=list)  # never sampled first
    forced_decoder_ids: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    alignment_heads: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # follow the audio; for word times
    max_initial_timestamp_index: int = 50  # in 20 ms steps: the first segment starts within 1 s

    def __post_init__(self) -> None:
        super().__post_init__()
        index = self.max_initial_timestamp_index
        require(0 <= index <= 1500, "max_initial_timestamp_index", index, "0 to 1500")


# About 2, 8 and 25 million parameters.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 128, "heads": 4, "encoder_layers": 5, "decoder_layers": 1},
    "small": {"width": 224, "heads": 4, "encoder_layers": 8, "decoder_layers": 2},
    "base": {"width": 336, "heads": 8, "encoder_layers": 10, "decoder_layers": 3},
}


@dataclass(frozen=True)
class PreprocessConfig(Settings):
    """Corpus layout, checks, conversion and splits of `focusasr preprocess`."""

    layout: Literal[
        "auto", "sidecar", "table", "librispeech", "ljspeech", "commonvoice", "manifest", "kaldi", "lhotse", "subtitles"
    ] = setting("auto", "layout of the corpus, or auto to detect it")
    audio_column: str | None = setting(None, "audio column of a table or JSON Lines file (none: detected)")
    text_column: str | None = setting(None, "text column of a table or JSON Lines file (none: detected)")
    speaker_column: str | None = setting(None, "speaker column of a table or JSON Lines file (none: detected)")
    channel: int | None = setting(
        None, "channel of multichannel recordings, counted from 0 (none: the entry's channel, or the mean of all)", ge=0
    )
    trim_silence: bool = setting(False, "removal of silence before and after speech, except for 0.2 s")
    loudness: Literal["keep", "ebu", "peak"] = setting("keep", "level normalization: none, EBU R128 loudness, or peak")
    lufs: float = setting(-23.0, "target loudness for ebu, lower if the peak would clip, in LUFS", ge=-60, le=0)
    peak_db: float = setting(-1.0, "highest peak for ebu and peak, in dBFS", ge=-60, le=0)
    split_seconds: float | None = setting(
        None, "longest utterance before a split at pauses, with its text aligned, in seconds (none: no split)", ge=1
    )
    align_with: str | None = setting(None, "native or Whisper model that aligns texts for split_seconds, or default")
    min_confidence: float = setting(
        0.1,
        "lowest accepted confidence of an aligned segment: mean token probability, or agreement with Whisper's text",
        ge=0,
        le=1,
    )
    case: Literal["keep", "lower", "upper"] = setting("keep", "case of the texts")
    punctuation: Literal["keep", "remove"] = setting("keep", "punctuation of the texts")
    format: Literal["flac", "wav"] = setting("flac", "format of the 16 bit output")
    min_seconds: float = setting(0.1, "shortest accepted recording, in seconds", ge=0)
    max_seconds: float | None = setting(None, "longest accepted recording, in seconds (none: no limit)", gt=0)
    min_rate: float | None = setting(None, "lowest accepted speaking rate, in characters per second (none: reports)")
    max_rate: float | None = setting(None, "highest accepted speaking rate, in characters per second (none: reports)")
    split: str | None = setting(None, "shares of train/dev/test by duration, such as 90/5/5 (none: the corpus's own)")
    by: list[str] | None = setting(None, "key whose values never occur in two splits, such as speaker, repeatable")
    drop: list[str] | None = setting(None, "kind of finding in the report whose utterances are dropped, repeatable")
    allow_rejects: int = setting(0, "number of unreadable utterances that does not fail the command", ge=0)
    workers: int = setting(0, "number of parallel processes (0: one per CPU core)", ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.max_seconds is None or self.max_seconds >= self.min_seconds
        require(fits, "max_seconds", self.max_seconds, f"at least min_seconds ({self.min_seconds:g})")
        require_use(self, "lufs", "loudness", "ebu")
        require_use(self, "peak_db", "loudness", "ebu", "peak")
        aligned = self.split_seconds is None or self.align_with is not None
        require(aligned, "split_seconds", self.split_seconds, "also align_with, a checkpoint folder or default")
        of_use = self.split_seconds is not None or self.min_confidence == type(self).min_confidence
        require(of_use, "min_confidence", self.min_confidence, "also split_seconds, such as 20")
        ordered = self.min_rate is None or self.max_rate is None or self.min_rate <= self.max_rate
        require(ordered, "max_rate", self.max_rate, f"at least min_rate ({self.min_rate})")
        idle = self.split_seconds is None and self.align_with is not None
        require(not idle, "align_with", self.align_with, "also split_seconds, such as 20")
        require(self.split is not None or not self.by, "by", self.by, "also split, such as 90/5/5")


@dataclass(frozen=True)
class EvaluationConfig(Settings):
    """Metrics, confidence intervals and output of `focusasr evaluate`."""

    normalizer: Literal["none", "basic", "english"] = setting(
        "basic",
        "text normalization: none, basic (without case, punctuation and bracketed text), or Whisper's for English",
    )
    bootstrap: Literal["auto", "utterance", "speaker"] = setting(
        "auto", "resampling unit of confidence intervals (auto: speaker if all are known and there are at least 20)"
    )
    slice: list[str] | None = setting(None, "error rate per speaker, duration, language, source or key, repeatable")
    worst: int = setting(5, "number of worst utterances to show", ge=0)
    fail_above: float | None = setting(None, "highest WER for exit status 0, such as 0.10 for 10 %")

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.fail_above is None or 0 <= self.fail_above <= 1
        require(fits, "fail_above", self.fail_above, "a ratio from 0 to 1, such as 0.10 for 10 %")


@dataclass(frozen=True)
class AttentionScaling(Settings):
    """Scaling factors of learned spans and temperatures at inference; 1 leaves them as learned."""

    span_scale: float = research(1.0, "factor of the learned spans of hybrid models (1: as learned)", **FACTOR)
    temperature_scale: float = research(1.0, "factor of local temperatures of hybrid models (1: as learned)", **FACTOR)


@dataclass(frozen=True)
class InspectionConfig(AttentionScaling):
    """Inspected segment of a recording; attention pictures grow with its square."""

    offset: float = setting(0.0, "start of the inspected segment, in seconds", ge=0)
    seconds: float = setting(20.0, "duration of the inspected segment, in seconds", gt=0, le=120)


@dataclass(frozen=True)
class RecordingConfig(Settings):
    """Transcribed track and channels of a recording."""

    title = "Tracks and channels"  # of its options

    audio_track: int | None = setting(None, "audio track, counted from 0 (none: the file's default)", **COUNT)
    channel: int | None = setting(None, "channel, counted from 0 (none: see --channels)", **COUNT)
    channels: Literal["mix", "separate"] = setting(
        "mix", "mean of all channels, or a transcript of each, in order of time, for calls"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.channel is None or self.channels == "mix"
        require(fits, "channel", self.channel, f"none with channels {self.channels}")


@dataclass(frozen=True)
class VadConfig(Settings):
    """Speech and pauses in long recordings, with the names and meaning of faster-whisper's `vad_parameters`.

    Native models split recordings at pauses; Whisper models do so with `vad_filter` or `batched`.
    """

    title = "Voice activity detection"  # of its options

    vad_threshold: float = setting(0.5, "probability of speech above which audio counts as speech", gt=0, lt=1)
    vad_min_speech_duration_ms: int = setting(0, "shortest speech that is kept, in ms", **COUNT)
    vad_min_silence_duration_ms: int = setting(1000, "shortest silence that ends a segment and is cut, in ms", **COUNT)
    vad_speech_pad_ms: int = setting(
        400, "silence kept on each side of speech, up to half of vad_min_silence_duration_ms, in ms", **COUNT
    )
    max_segment_seconds: float | None = setting(
        None,
        "longest segment of recordings that are split at pauses, in seconds (none: 20, in Whisper models 30)",
        ge=1,
    )


@dataclass(frozen=True)
class DecodingConfig(AttentionScaling, VadConfig):
    """Decoding of audio into text. The result does not depend on `batch_size`."""

    title = "Decoding"  # of its options

    word_timestamps: bool = setting(False, "start and end times of each word, for JSON and subtitles")
    batch_size: int = setting(16, "number of segments decoded together", **SIZE)
    compute_type: Literal["auto", "float32", "bfloat16", "float16", "int8"] = setting(
        "auto", "numeric type of the computation (auto: float16 on CUDA; int8 for wide models on a CPU, else float32)"
    )
    ctc_weight: float = research(0.3, "weight of CTC scores in the joint search of native models", ge=0, le=1)
    joint_beam_size: int = research(2, "beam size of native models' CTC/attention search (1: greedy)", ge=1, le=1000)


@dataclass(frozen=True)
class ServeConfig(Settings):
    """Address and limits of the server."""

    title = "Server"  # of its options

    host: str = setting("127.0.0.1", "address to listen on (0.0.0.0: all networks of this machine)")
    port: int = setting(8000, "port to listen on (0: any free port)", ge=0, le=65_535)
    cors_origin: str | None = setting(None, "origin whose web pages may use the server, such as https://example.org")
    max_upload_mb: float = setting(100.0, "largest upload, in megabytes (else status 413)", **LIMIT)
    max_audio_seconds: float = setting(14_400.0, "longest recording, in seconds (else status 413)", **LIMIT)
    max_requests: int = setting(32, "most concurrent requests, queued ones included (else status 503)", **SIZE)
    max_client_requests: int = setting(16, "most concurrent requests of one client address (else status 429)", **SIZE)
    max_batch: int = setting(8, "most recordings transcribed at once, in batches if that changes no text", **SIZE)
    header_seconds: float = setting(10.0, "time limit of the head of a request, in seconds (else status 408)", **LIMIT)
    upload_seconds: float = setting(120.0, "time limit of an upload, in seconds (else status 408)", **LIMIT)
    timeout_seconds: float = setting(1800.0, "time limit from upload to text, in seconds (else status 503)", **LIMIT)
