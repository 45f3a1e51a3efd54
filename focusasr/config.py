"""Settings and defaults of the model, its text, preprocessing, decoding, evaluation and the server."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from focusasr.runtime.settings import require, require_choices, require_use, setting

SAMPLE_RATE_HZ = 16_000
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 3_072_000  # of recordings: beyond these, resampling needs unbounded memory
LARGEST = 1_000_000  # of any size of a model: products of sizes stay within PyTorch's integers
LARGEST_TEXT = 4096  # tokens of one text: a decoder allocates memory for all of them at its start
DEFAULT_CHECKPOINT = "focusasr-en"
BUNDLED_CHECKPOINTS = {"default": DEFAULT_CHECKPOINT, "alnum": "focusasr-alnum-en"}  # folders by the names for --model
SHORTEST_SAMPLES = 4 * SAMPLE_RATE_HZ // 10  # a tightly trimmed word lasts 0.15 s: too few steps for CTC


@dataclass(frozen=True)
class TextConfig:
    """Text policy and tokenizer: the form of transcripts before tokenization; saved in the checkpoint."""

    case: Literal["lower", "upper", "keep"] = setting("lower", "case of transcripts")
    punctuation: Literal["remove", "keep"] = setting("remove", "punctuation of transcripts")
    tokens: Literal["characters", "bpe"] = setting("characters", "kind of tokens")
    language: str | None = setting(None, "language code of the checkpoint, such as en, written into JSON results")
    vocabulary_size: int = setting(1000, "largest vocabulary with bpe, special tokens included")

    def __post_init__(self) -> None:
        require_choices(self)
        require(8 <= self.vocabulary_size <= 10**6, "vocabulary_size", self.vocabulary_size, "8 to 1000000")


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a model, saved in the checkpoint.

    Distances (`max_dist`, `max_span`, `ramp`, `win_size`) are encoder steps: 160 samples times both strides,
    40 ms with strides (2, 2). In a decoder they are tokens.
    """

    vocabulary: int = 0  # tokens, special ones included; not an option, since it follows from the tokenizer
    mel_bands: int = setting(80, "mel bands: 80, or 128 as in Whisper large-v3")
    width: int = setting(224, "width of the residual stream")
    heads: int = setting(4, "attention heads")
    encoder_layers: int = setting(8, "encoder blocks")
    decoder_layers: int = setting(2, "decoder blocks")
    strides: tuple[int, int] = setting(
        (2, 2), "strides of the two stem convolutions, 2 2 for 40 ms steps or 1 2 for 20 ms"
    )
    attention: Literal["hybrid", "global"] = setting("hybrid", "self-attention of the encoder")
    decoder_attention: Literal["hybrid", "global"] = setting("global", "self-attention of the decoder")
    conv_kernel: int = setting(
        0, "kernel size of an encoder convolution between attention and MLP, in encoder steps (0: none)"
    )
    positions: Literal["rotary", "absolute"] = setting("rotary", "position encoding: rotary, or absolute as in Whisper")
    base: float = setting(10_000.0, "base of the rotary position encoding")
    max_dist: int | None = setting(None, "attention span of the global branch, in steps (none: unlimited)")
    max_span: int = setting(32, "largest radius of the local branch, in steps")
    initial_span: float = setting(
        0.1, "radius of the local branch before training, as a share of the largest: short spans learn sounds sooner"
    )
    ramp: int = setting(4, "width of the soft edge of the local window, in steps")
    win_size: int = setting(32, "block size of the windowed computation, in steps, without effect on results")
    temperature: Literal["formula", "learned"] = setting(
        "learned", "softmax temperature of the local branch: by formula, or learned per head starting from it"
    )
    sharpen_longer: bool = setting(True, "lower temperature for longer spans, instead of shorter ones")
    temp_scale: float = setting(0.5, "influence of the span on the temperature")
    ctc: bool = setting(True, "CTC head on the encoder, for an auxiliary loss and joint decoding")
    audio_context: int = setting(1500, "encoder steps with absolute positions, to which audio is padded or truncated")
    tail_frames: int | None = setting(
        None, "silence after audio of any length with absolute positions, in 10 ms frames (none: padded to the window)"
    )
    text_context: int = setting(448, "longest text, special tokens included, in tokens")
    dropout: float = setting(0.1, "dropout rate on the residual stream")

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("mel_bands", "width", "heads", "encoder_layers", "decoder_layers", "win_size", "ramp"):
            require(1 <= getattr(self, name) <= LARGEST, name, getattr(self, name), f"at least 1, at most {LARGEST}")
        pairs = 2 * self.heads  # a rotation acts on pairs of coordinates
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
class WhisperConfig:
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
        require_choices(self)
        index = self.max_initial_timestamp_index
        require(0 <= index <= 1500, "max_initial_timestamp_index", index, "0 to 1500")


# About 2, 8 and 25 million parameters.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"width": 128, "heads": 4, "encoder_layers": 5, "decoder_layers": 1},
    "small": {"width": 224, "heads": 4, "encoder_layers": 8, "decoder_layers": 2},
    "base": {"width": 336, "heads": 8, "encoder_layers": 10, "decoder_layers": 3},
}


@dataclass(frozen=True)
class PreprocessConfig:
    """Corpus layout, checks, conversion and splits of `focusasr preprocess`."""

    layout: Literal[
        "auto", "sidecar", "table", "librispeech", "ljspeech", "commonvoice", "manifest", "kaldi", "lhotse", "subtitles"
    ] = setting("auto", "layout of the corpus, or auto to detect it")
    audio_column: str | None = setting(None, "audio column of a table or JSON Lines file (none: detected)")
    text_column: str | None = setting(None, "text column of a table or JSON Lines file (none: detected)")
    speaker_column: str | None = setting(None, "speaker column of a table or JSON Lines file (none: detected)")
    channel: int | None = setting(
        None, "channel of multichannel recordings, counted from 0 (none: the entry's channel, or the mean of all)"
    )
    trim_silence: bool = setting(False, "removal of silence before and after speech, except for 0.2 s")
    loudness: Literal["keep", "ebu", "peak"] = setting(
        "keep", "normalization of the level: none, EBU R128 loudness, or peak"
    )
    lufs: float = setting(-23.0, "target loudness for ebu, lower if the peak would clip, in LUFS")
    peak_db: float = setting(-1.0, "highest peak for ebu and peak, in dBFS")
    split_seconds: float | None = setting(
        None, "longest utterance before a split at pauses, with its text aligned, in seconds (none: no split)"
    )
    align_with: str | None = setting(None, "native or Whisper model that aligns texts for split_seconds, or default")
    min_confidence: float = setting(
        0.1,
        "lowest accepted confidence of an aligned segment: mean token probability, or agreement with Whisper's text",
    )
    case: Literal["keep", "lower", "upper"] = setting("keep", "case of the texts")
    punctuation: Literal["keep", "remove"] = setting("keep", "punctuation of the texts")
    format: Literal["flac", "wav"] = setting("flac", "format of the 16 bit output")
    min_seconds: float = setting(0.1, "shortest accepted recording, in seconds")
    max_seconds: float | None = setting(None, "longest accepted recording, in seconds (none: no limit)")
    min_rate: float | None = setting(None, "lowest accepted speaking rate, in characters per second (none: reports)")
    max_rate: float | None = setting(None, "highest accepted speaking rate, in characters per second (none: reports)")
    split: str | None = setting(
        None, "shares of train/dev/test by duration, such as 90/5/5 (none: the splits of the corpus)"
    )
    by: list[str] | None = setting(  # noqa: RUF009
        None, "key, such as speaker or text, whose values never occur in two splits, repeatable"
    )
    drop: list[str] | None = setting(  # noqa: RUF009
        None, "kind of finding, as named in the report, whose utterances are dropped, repeatable"
    )
    allow_rejects: int = setting(0, "number of unreadable utterances that does not fail the command")
    workers: int = setting(0, "number of parallel processes (0: one per CPU core)")

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
        wanted = "also {align_with}, a checkpoint folder or default"
        require(aligned, "split_seconds", self.split_seconds, wanted, align_with=None)
        require(0 <= self.min_confidence <= 1, "min_confidence", self.min_confidence, "0 to 1")
        of_use = self.split_seconds is not None or self.min_confidence == type(self).min_confidence
        wanted = "also {split_seconds}, such as 20"
        require(of_use, "min_confidence", self.min_confidence, wanted, split_seconds=None)
        ordered = self.min_rate is None or self.max_rate is None or self.min_rate <= self.max_rate
        require(ordered, "max_rate", self.max_rate, "at least {min_rate}", min_rate=self.min_rate)
        idle = self.split_seconds is None and self.align_with is not None
        require(not idle, "align_with", self.align_with, "also {split_seconds}, such as 20", split_seconds=None)
        require(self.split is not None or not self.by, "by", self.by, "also {split}, such as 90/5/5", split=None)


@dataclass(frozen=True)
class EvaluationConfig:
    """Metrics, confidence intervals and output of `focusasr evaluate`."""

    normalizer: Literal["none", "basic", "english"] = setting(
        "basic",
        "text normalization: none, basic (without case, punctuation and bracketed text), or Whisper's for English",
    )
    bootstrap: Literal["auto", "utterance", "speaker"] = setting(
        "auto", "resampling unit of confidence intervals (auto: speaker if all are known and there are at least 20)"
    )
    slice: list[str] | None = setting(  # noqa: RUF009
        None, "error rate per speaker, duration, language, source or other manifest key, repeatable"
    )
    worst: int = setting(5, "number of worst utterances to show")
    fail_above: float | None = setting(None, "highest WER for exit status 0, such as 0.10 for 10 %")

    def __post_init__(self) -> None:
        require_choices(self)
        require(self.worst >= 0, "worst", self.worst, "at least 0")
        fits = self.fail_above is None or 0 <= self.fail_above <= 1
        require(fits, "fail_above", self.fail_above, "a ratio from 0 to 1, such as 0.10 for 10 %")


@dataclass(frozen=True)
class AttentionScaling:
    """Scaling factors of learned spans and temperatures at inference; 1 leaves them as learned."""

    span_scale: float = setting(1.0, "scaling factor of the learned spans of hybrid models (1: as learned)")
    temperature_scale: float = setting(1.0, "scaling factor of the local temperatures of hybrid models (1: as learned)")

    def __post_init__(self) -> None:
        for name in ("span_scale", "temperature_scale"):
            require(1e-9 <= getattr(self, name) <= 1e9, name, getattr(self, name), "1e-9 to 1e9; 1 is as learned")


@dataclass(frozen=True)
class InspectionConfig(AttentionScaling):
    """Inspected segment of a recording; attention pictures grow with its square."""

    offset: float = setting(0.0, "start of the inspected segment, in seconds")
    seconds: float = setting(20.0, "duration of the inspected segment, in seconds")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.offset < math.inf, "offset", self.offset, "seconds, at least 0")
        require(0 < self.seconds <= 120, "seconds", self.seconds, "above 0, at most 120")


@dataclass(frozen=True)
class RecordingConfig:
    """Transcribed track and channels of a recording."""

    title = "Tracks and channels"  # of its options

    audio_track: int | None = setting(None, "number of the audio track, counted from 0 (none: the file's default)")
    channel: int | None = setting(None, "number of the channel, counted from 0 (none: see --channels)")
    channels: Literal["mix", "separate"] = setting(
        "mix", "mean of all channels, or a transcript of each, in order of time, for calls"
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
    """Decoding of audio into text. The result does not depend on `batch_size`."""

    batch_size: int = setting(16, "number of segments decoded together")
    compute_type: Literal["auto", "float32", "bfloat16", "float16", "int8"] = setting(
        "auto", "numeric type of the computation (auto: float16 on CUDA; int8 for wide models on a CPU, else float32)"
    )
    ctc_weight: float = setting(0.3, "weight of CTC scores in the joint search of native models")
    joint_beam_size: int = setting(2, "beam size of the joint CTC/attention search of native models (1: greedy)")
    max_segment_seconds: float = setting(
        20.0, "longest segment of native models, in seconds: longer recordings are split at pauses"
    )
    vad_threshold: float = setting(0.5, "speech probability above which voice activity detection reports speech")
    word_timestamps: bool = setting(False, "start and end times of each word, for JSON and subtitles")

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
    """Address and limits of the server."""

    title = "Server"  # of its options

    host: str = setting("127.0.0.1", "address to listen on (0.0.0.0: all networks of this machine)")
    port: int = setting(8000, "port to listen on (0: any free port)")
    cors_origin: str | None = setting(None, "origin whose web pages may use the server, such as https://example.org")
    max_upload_mb: float = setting(100.0, "largest upload, in megabytes (else status 413)")
    max_audio_seconds: float = setting(14_400.0, "longest recording, in seconds (else status 413)")
    max_requests: int = setting(32, "most concurrent requests, queued ones included (else status 503)")
    max_client_requests: int = setting(16, "most concurrent requests of one client address (else status 429)")
    max_batch: int = setting(8, "most recordings transcribed at the same time, in batches if that changes no text")
    header_seconds: float = setting(10.0, "time limit of the head of a request, in seconds (else status 408)")
    upload_seconds: float = setting(120.0, "time limit of an upload, in seconds (else status 408)")
    timeout_seconds: float = setting(1800.0, "time limit from upload to transcript, in seconds (else status 503)")

    def __post_init__(self) -> None:
        require(0 <= self.port <= 65_535, "port", self.port, "0 to 65535")
        for name in ("max_requests", "max_client_requests", "max_batch"):
            require(1 <= getattr(self, name) <= LARGEST, name, getattr(self, name), f"1 to {LARGEST}")
        for name in ("max_upload_mb", "max_audio_seconds", "header_seconds", "upload_seconds", "timeout_seconds"):
            require(0 < getattr(self, name) <= 1e9, name, getattr(self, name), "above 0, at most 1e9")
