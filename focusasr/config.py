"""Every setting and its default, once: the model, its text, preprocessing, decoding, evaluation, the server."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from focusasr.runtime.settings import require, require_choices, require_use, setting

SAMPLE_RATE_HZ = 16_000
LARGEST = 1_000_000  # any size of a model: whatever is multiplied stays a number that PyTorch can count to
LARGEST_TEXT = 4096  # tokens of one text: a decoder makes room for all of them at its start
DEFAULT_CHECKPOINT = "focusasr-en"
BUNDLED_CHECKPOINTS = {"default": DEFAULT_CHECKPOINT, "alnum": "focusasr-alnum-en"}  # folders by the names for --model
SHORTEST_SAMPLES = 4 * SAMPLE_RATE_HZ // 10  # a word cut closely lasts 0.15 s: too few steps for CTC to spell it


@dataclass(frozen=True)
class TextConfig:
    """How transcripts are written before they become tokens; saved in the checkpoint."""

    case: Literal["lower", "upper", "keep"] = setting("lower", "case of transcripts")
    punctuation: Literal["remove", "keep"] = setting("remove", "whether transcripts keep punctuation")
    tokens: Literal["characters", "bpe"] = setting("characters", "what a token is")
    language: str | None = setting(None, "what the checkpoint says it speaks, such as en; written into JSON")
    vocabulary_size: int = setting(1000, "bpe only: the largest vocabulary, special tokens included")

    def __post_init__(self) -> None:
        require_choices(self)
        require(8 <= self.vocabulary_size <= 10**6, "vocabulary_size", self.vocabulary_size, "8 to 1000000")


@dataclass(frozen=True)
class ModelConfig:
    """The architecture; it travels inside the checkpoint.

    Distances (`max_dist`, `max_span`, `ramp`, `win_size`) are encoder steps: 160 samples times both strides,
    40 ms with strides (2, 2). In a decoder they are tokens.
    """

    vocabulary: int = 0  # tokens, special ones included; follows from the tokenizer, so it is no option
    mel_bands: int = setting(80, "80, or 128 as in Whisper large-v3")
    width: int = setting(224, "width of the residual stream")
    heads: int = setting(4, "attention heads")
    encoder_layers: int = setting(8, "encoder blocks")
    decoder_layers: int = setting(2, "decoder blocks")
    strides: tuple[int, int] = setting((2, 2), "strides of the stem: 2 2 makes 40 ms steps, 1 2 makes 20 ms")
    attention: Literal["hybrid", "global"] = setting("hybrid", "self-attention of the encoder")
    decoder_attention: Literal["hybrid", "global"] = setting("global", "self-attention of the decoder")
    conv_kernel: int = setting(0, "encoder steps that a convolution between attention and perceptron sees; 0: none")
    positions: Literal["rotary", "absolute"] = setting("rotary", "rotary, or Whisper's absolute embedding")
    base: float = setting(10_000.0, "rotary base")
    max_dist: int | None = setting(None, "furthest distance the global branch may look; None: everywhere")
    max_span: int = setting(32, "largest radius of the local branch")
    initial_span: float = setting(
        0.1, "share of the largest radius before training: short windows learn sounds sooner, then widen"
    )
    ramp: int = setting(4, "width of the soft edge of the local branch")
    win_size: int = setting(32, "block in which windows are computed; never changes a result")
    temperature: Literal["formula", "learned"] = setting(
        "learned", "sharpness of the local branch: the formula's, or learned per head from there"
    )
    sharpen_longer: bool = setting(True, "longer spans are sharper; else shorter ones are")
    temp_scale: float = setting(0.5, "how much the span changes the temperature")
    ctc: bool = setting(True, "CTC head on the encoder: auxiliary loss, draft and guard")
    audio_context: int = setting(1500, "encoder steps, absolute positions only: audio is padded or cut to it")
    tail_frames: int | None = setting(
        None, "absolute positions: audio keeps its own length, plus this many 10 ms frames of silence; none: padded"
    )
    text_context: int = setting(448, "most tokens of one text, special tokens included")
    dropout: float = setting(0.1, "dropout on the residual stream")

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("mel_bands", "width", "heads", "encoder_layers", "decoder_layers", "win_size", "ramp"):
            require(1 <= getattr(self, name) <= LARGEST, name, getattr(self, name), f"at least 1, at most {LARGEST}")
        pairs = 2 * self.heads  # rotations turn pairs of numbers
        require(
            self.width % pairs == 0, "width", self.width, f"a multiple of {pairs}, twice {{heads}}", heads=self.heads
        )
        fits = len(self.strides) == 2 and min(self.strides) >= 1 and max(self.strides) <= 8
        require(fits, "strides", self.strides, "two numbers, 1 to 8")
        fits = self.ramp <= self.max_span <= LARGEST
        require(fits, "max_span", self.max_span, f"at least {{ramp}}, at most {LARGEST}", ramp=self.ramp)
        require(0 < self.initial_span < 1, "initial_span", self.initial_span, "above 0 and below 1")
        fits = self.max_dist is None or 0 <= self.max_dist <= LARGEST
        require(fits, "max_dist", self.max_dist, f"0 to {LARGEST}, or none")
        require(self.temp_scale >= 0, "temp_scale", self.temp_scale, "at least 0")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "at least 0 and below 1")
        fits = self.conv_kernel == 0 or (self.conv_kernel % 2 == 1 and 0 < self.conv_kernel < LARGEST)
        require(fits, "conv_kernel", self.conv_kernel, f"0 or an odd number below {LARGEST}")
        require(self.base > 0, "base", self.base, "above 0")
        require(1 <= self.audio_context <= LARGEST, "audio_context", self.audio_context, f"1 to {LARGEST}")
        fits = self.tail_frames is None or 0 <= self.tail_frames <= LARGEST
        require(fits, "tail_frames", self.tail_frames, f"0 to {LARGEST}, or none")
        absolute = self.tail_frames is None or self.positions == "absolute"
        require(absolute, "tail_frames", self.tail_frames, "none, since {positions} keep lengths", positions="rotary")
        fits = 4 <= self.text_context <= LARGEST_TEXT
        require(fits, "text_context", self.text_context, f"at least 4, at most {LARGEST_TEXT}")
        require(0 <= self.vocabulary <= LARGEST, "vocabulary", self.vocabulary, f"0 to {LARGEST}")

    @property
    def step_seconds(self) -> float:
        """Seconds of sound between two encoder steps."""
        return 0.01 * self.strides[0] * self.strides[1]

    @property
    def longest_samples(self) -> int | None:
        """Samples that absolute positions have room for, 30 s in Whisper; None: any length."""
        if self.positions == "rotary":
            return None
        return self.audio_context * self.strides[0] * self.strides[1] * SAMPLE_RATE_HZ // 100

    @property
    def window_samples(self) -> int | None:
        """Samples to which all audio is padded, as Whisper does; None: audio keeps its own length."""
        return self.longest_samples if self.tail_frames is None else None

    def input_frames(self, frames: int) -> int:
        """Return how many frames the encoder gets for `frames` frames of audio: with the tail, or the whole window."""
        if self.positions == "rotary":
            return frames
        stride = self.strides[0] * self.strides[1]
        longest = self.audio_context * stride
        if self.tail_frames is None:
            return longest
        return min(longest, -(-(frames + self.tail_frames) // stride) * stride)


@dataclass(frozen=True)
class WhisperConfig:
    """What a Whisper checkpoint says about its tokens and heads, in the words of its generation_config.json.

    Heads are (decoder layer, head) pairs, forced ids (place, token) pairs.
    """

    task: Literal["transcribe", "translate"] = "transcribe"  # unless asked for the other
    multilingual: bool = True  # has language and task tokens in its prompt
    suppress_tokens: list[int] = dataclasses.field(default_factory=list)  # never written
    begin_suppress_tokens: list[int] = dataclasses.field(default_factory=list)  # never written first
    forced_decoder_ids: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    alignment_heads: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # follow the audio; for word times
    max_initial_timestamp_index: int = 50  # of 20 ms: a first segment begins within the first second

    def __post_init__(self) -> None:
        require_choices(self)
        index = self.max_initial_timestamp_index
        require(0 <= index <= 1500, "max_initial_timestamp_index", index, "0 to 1500")


# About 2, 8 and 25 million weights.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 128, "heads": 4, "encoder_layers": 5, "decoder_layers": 1},
    "small": {"width": 224, "heads": 4, "encoder_layers": 8, "decoder_layers": 2},
    "base": {"width": 336, "heads": 8, "encoder_layers": 10, "decoder_layers": 3},
}


@dataclass(frozen=True)
class PreprocessConfig:
    """How a corpus is read and what is kept of it."""

    layout: Literal[
        "auto", "sidecar", "table", "librispeech", "ljspeech", "commonvoice", "manifest", "kaldi", "lhotse", "subtitles"
    ] = setting("auto", "how the corpus is laid out; auto recognizes it")
    audio_column: str | None = setting(None, "column of a table or JSON Lines that names the audio; none: a usual name")
    text_column: str | None = setting(None, "column of a table or JSON Lines that holds the text; none: a usual name")
    speaker_column: str | None = setting(
        None, "column of a table or JSON Lines that names the speaker; none: a usual name"
    )
    channel: int | None = setting(
        None, "which channel of several is kept, counted from 0; none: what a line's channel says, or else their mean"
    )
    trim_silence: bool = setting(False, "silence before and after speech is cut off, by voice activity, 0.2 s stay")
    loudness: Literal["keep", "ebu", "peak"] = setting(
        "keep", "level: as it is, EBU R128 loudness, or one peak for all"
    )
    lufs: float = setting(-23.0, "loudness ebu: the target; what would clip stays quieter")
    peak_db: float = setting(-1.0, "loudness ebu and peak: the highest peak, in dB of full scale")
    split_seconds: float | None = setting(None, "longer recordings are cut at pauses, the text aligned; none: never")
    align_with: str | None = setting(None, "native or Whisper model that aligns the text of what is cut, or default")
    min_confidence: float = setting(
        0.1,
        "pieces whose text fits worse are rejected: mean probability of its tokens, or Whisper's agreement",
    )
    case: Literal["keep", "lower", "upper"] = setting("keep", "case of the texts")
    punctuation: Literal["keep", "remove"] = setting("keep", "whether the texts keep punctuation")
    format: Literal["flac", "wav"] = setting("flac", "container of the 16 bit output; FLAC takes half the space")
    min_seconds: float = setting(0.1, "shorter recordings are rejected")
    max_seconds: float | None = setting(None, "longer recordings are rejected; none: no limit")
    min_rate: float | None = setting(None, "texts of fewer characters per second are rejected; none: only reported")
    max_rate: float | None = setting(None, "texts of more characters per second are rejected; none: only reported")
    split: str | None = setting(None, "divide into train/dev/test by seconds, such as 90/5/5; none: as the corpus does")
    by: list[str] | None = setting(  # noqa: RUF009
        None, "with split: what may not be in two of them, speaker, text ...; repeatable"
    )
    drop: list[str] | None = setting(  # noqa: RUF009
        None, "leave out what checks find: a kind as the report names it; repeatable"
    )
    allow_rejects: int = setting(0, "unreadable utterances that still count as success, in the exit status")
    workers: int = setting(0, "files converted at once; 0: one per CPU core")

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.allow_rejects >= 0, "allow_rejects", self.allow_rejects, "at least 0")
        require(self.min_seconds >= 0, "min_seconds", self.min_seconds, "at least 0")
        fits = self.max_seconds is None or (self.max_seconds > 0 and self.max_seconds >= self.min_seconds)
        require(fits, "max_seconds", self.max_seconds, "at least {min_seconds}", min_seconds=self.min_seconds)
        require(self.workers >= 0, "workers", self.workers, "at least 0, where 0 means one per CPU core")
        require(self.channel is None or self.channel >= 0, "channel", self.channel, "at least 0, or none for the mean")
        require(-60 <= self.lufs <= 0, "lufs", self.lufs, "-60 to 0")
        require(-60 <= self.peak_db <= 0, "peak_db", self.peak_db, "-60 to 0")
        require_use(self, "lufs", "loudness", "ebu")
        require_use(self, "peak_db", "loudness", "ebu", "peak")
        cuts = self.split_seconds is None or self.split_seconds >= 1
        require(cuts, "split_seconds", self.split_seconds, "at least 1, or none")
        aligned = self.split_seconds is None or self.align_with is not None
        wanted = "{align_with} beside it, with a checkpoint folder or default"
        require(aligned, "split_seconds", self.split_seconds, wanted, align_with=None)
        require(0 <= self.min_confidence <= 1, "min_confidence", self.min_confidence, "0 to 1")
        of_use = self.split_seconds is not None or self.min_confidence == type(self).min_confidence
        wanted = "{split_seconds} beside it, such as 20"
        require(of_use, "min_confidence", self.min_confidence, wanted, split_seconds=None)
        ordered = self.min_rate is None or self.max_rate is None or self.min_rate <= self.max_rate
        require(ordered, "max_rate", self.max_rate, "at least {min_rate}", min_rate=self.min_rate)
        idle = self.split_seconds is None and self.align_with is not None
        require(not idle, "align_with", self.align_with, "{split_seconds} beside it, such as 20", split_seconds=None)
        require(self.split is not None or not self.by, "by", self.by, "{split} beside it, such as 90/5/5", split=None)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, how it is drawn for intervals, and what is shown of it."""

    normalizer: Literal["none", "basic", "english"] = setting(
        "basic",
        "what both texts lose first: nothing; case, punctuation, what is in brackets; Whisper's English rules",
    )
    bootstrap: Literal["auto", "utterance", "speaker"] = setting(
        "auto", "what is drawn for intervals; auto: speakers, where all are named and there are twenty or more"
    )
    slice: list[str] | None = setting(  # noqa: RUF009
        None, "a rate for each value of speaker, duration, language, source or any key of the manifest; repeatable"
    )
    worst: int = setting(5, "how many of the worst utterances to show")
    fail_above: float | None = setting(None, "leave with status 1 where WER is above this, such as 0.10 for 10 %")

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.worst >= 0, "worst", self.worst, "at least 0")
        fits = self.fail_above is None or 0 <= self.fail_above <= 1
        require(fits, "fail_above", self.fail_above, "a ratio from 0 to 1, such as 0.10 for 10 %")


@dataclass(frozen=True)
class AttentionScaling:
    """The knobs of focused attention, turned when a checkpoint is used: 1 is as it was learned."""

    span_scale: float = setting(1.0, "hybrid models: multiplies the learned spans, up to the largest; 1: as learned")
    temperature_scale: float = setting(1.0, "hybrid models: multiplies the local temperatures; 1: as learned")

    def __post_init__(self) -> None:
        for name in ("span_scale", "temperature_scale"):
            require(1e-9 <= getattr(self, name) <= 1e9, name, getattr(self, name), "1e-9 to 1e9; 1 is as learned")


@dataclass(frozen=True)
class InspectionConfig(AttentionScaling):
    """Which part of a recording is looked at; attention pictures grow with its square."""

    offset: float = setting(0.0, "where in the recording to begin, in seconds")
    seconds: float = setting(20.0, "how much of the recording to look at")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.offset < math.inf, "offset", self.offset, "seconds, at least 0")
        require(0 < self.seconds <= 120, "seconds", self.seconds, "above 0, at most 120")


@dataclass(frozen=True)
class RecordingConfig:
    """What of a recording is transcribed."""

    title = "Tracks and channels"  # of its options

    audio_track: int | None = setting(None, "which of several audio tracks, counted from 0; none: the file's default")
    channel: int | None = setting(None, "which of several channels, counted from 0; none: as channels says")
    channels: Literal["mix", "separate"] = setting(
        "mix", "mix: their mean; separate: a text for each, by time, for calls with a speaker a channel"
    )

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("audio_track", "channel"):
            given = getattr(self, name)
            require(given is None or 0 <= given <= LARGEST, name, given, f"0 to {LARGEST}, or none")
        fits = self.channel is None or self.channels == "mix"
        require(fits, "channel", self.channel, "none with {channels}", channels=self.channels)


@dataclass(frozen=True)
class DecodingConfig(AttentionScaling):
    """How text is found for sound. The result does not depend on `batch_size`."""

    batch_size: int = setting(16, "segments decoded together")
    compute_type: Literal["auto", "float32", "bfloat16", "float16", "int8"] = setting(
        "auto", "numbers to compute in; auto: float16 on CUDA, on a CPU int8 for wide models and float32 for others"
    )
    ctc_weight: float = setting(0.3, "native models: share of CTC in the choice between hypotheses; chosen on dev")
    joint_beam_size: int = setting(
        2, "native models: hypotheses of the joint search where CTC and decoder differ; 1: greedy; chosen on dev"
    )
    max_segment_seconds: float = setting(
        20.0, "native models: longer recordings are split at pauses into segments up to this"
    )
    vad_threshold: float = setting(0.5, "speech probability of the pause finder")
    word_timestamps: bool = setting(False, "find out when each word was said, for json and subtitles")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choices(self)
        require(1 <= self.batch_size <= LARGEST, "batch_size", self.batch_size, f"1 to {LARGEST}")
        require(1 <= self.joint_beam_size <= 1000, "joint_beam_size", self.joint_beam_size, "1 to 1000")
        require(0 <= self.ctc_weight <= 1, "ctc_weight", self.ctc_weight, "0 to 1")
        require(self.max_segment_seconds >= 1, "max_segment_seconds", self.max_segment_seconds, "at least 1")
        require(0 < self.vad_threshold < 1, "vad_threshold", self.vad_threshold, "above 0 and below 1")


@dataclass(frozen=True)
class ServeConfig:
    """Where the server listens, and what it refuses."""

    title = "Server"  # of its options

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 is every network of this machine")
    port: int = setting(8000, "port to listen on; 0 is any free one")
    cors_origin: str | None = setting(None, "origin whose web pages may use the server, such as https://example.org")
    max_upload_mb: float = setting(100.0, "largest upload, in megabytes (413 above it)")
    max_audio_seconds: float = setting(14_400.0, "longest recording, in seconds (413 above it)")
    max_requests: int = setting(32, "requests uploading, queued and transcribed at a time (503 above it)")
    max_client_requests: int = setting(16, "such requests of one client address (429 above it)")
    upload_seconds: float = setting(120.0, "longest time for one upload, in seconds (408 after it)")
    timeout_seconds: float = setting(1800.0, "longest time from upload to transcript, in seconds (503 after it)")

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65_535, "port", self.port, "0 to 65535")
        for name in ("max_requests", "max_client_requests"):
            require(1 <= getattr(self, name) <= LARGEST, name, getattr(self, name), f"1 to {LARGEST}")
        for name in ("max_upload_mb", "max_audio_seconds", "upload_seconds", "timeout_seconds"):
            require(0 < getattr(self, name) <= 1e9, name, getattr(self, name), "above 0, at most 1e9")
