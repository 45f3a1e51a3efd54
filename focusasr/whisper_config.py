"""Options of Whisper models: search, long recordings and output, with openai/whisper's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from focusasr.runtime.errors import quote
from focusasr.runtime.settings import LONGEST_SECONDS, Settings, require, setting

LEAST_WARMTH = 0.01  # smallest temperature above 0, and smallest increment
LONGEST_ID = 9  # digits
MOST_TRIED = 100_000  # beams or samples
SECONDS_PER_TIMESTAMP = 0.02  # of the time tokens


@dataclass(frozen=True)
class SearchConfig(Settings):
    """Search of Whisper models and its fallback, with openai/whisper's names and defaults.

    Native models ignore these: they decode with CTC head and decoder together, at temperature 0.
    """

    title = "Search, Whisper models only"  # heading of the options

    temperature: float = setting(0.0, "sampling temperature (0: beam search or greedy decoding)")
    best_of: int | None = setting(5, "number of samples at temperatures above 0", ge=1, le=MOST_TRIED)
    beam_size: int | None = setting(5, "beam size at temperature 0 (none: greedy)", ge=1, le=MOST_TRIED)
    patience: float | None = setting(None, "beam search patience factor (none: 1.0)")
    length_penalty: float | None = setting(
        None, "exponent α of the length penalty ((5 + tokens) / 6) ** α (none: mean)", ge=0, le=1
    )
    suppress_tokens: str = setting("-1", "comma-separated ids of suppressed tokens (-1: brackets, notes and the like)")
    repetition_penalty: float = setting(1.0, "penalty of tokens that occurred before (1: none)", gt=0)
    no_repeat_ngram_size: int = setting(0, "size of n-grams that must not repeat, in tokens (0: none)", ge=0)
    temperature_increment_on_fallback: float | None = setting(0.2, "increment after a failed attempt", ge=LEAST_WARMTH)
    compression_ratio_threshold: float | None = setting(
        2.4, "compression ratio above which a text is decoded again; adapted models: also if a phrase is repeated"
    )
    logprob_threshold: float | None = setting(-1.0, "mean log probability below which a text is decoded again")
    no_speech_threshold: float | None = setting(
        0.6, "probability of no speech above which a window that fails logprob_threshold is silence"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.temperature == 0 or LEAST_WARMTH <= self.temperature <= 10
        require(fits, "temperature", self.temperature, f"0, or {LEAST_WARMTH:g} to 10")
        enough = self.patience is None or round((self.beam_size or 1) * self.patience) >= 1
        require(enough, "patience", self.patience, f"enough for one text of beam_size ({self.beam_size})")
        parts = [part.strip() for part in self.suppress_tokens.split(",")]
        numbers = (part == "-1" or (part.isdecimal() and len(part) <= LONGEST_ID) for part in parts)
        fine = not self.suppress_tokens or all(numbers)
        require(fine, "suppress_tokens", self.suppress_tokens, "ids with commas between, or -1 for signs not spoken")

    def fit(self, vocabulary: int) -> None:
        """Raise SettingError if a setting does not fit a model with `vocabulary` tokens."""
        largest = max(map(int, self.suppress_tokens.split(","))) if self.suppress_tokens else -1
        has = f"this model has {vocabulary} tokens"
        require(largest < vocabulary, "suppress_tokens", self.suppress_tokens, f"ids below {vocabulary}: {has}")
        require((self.beam_size or 1) < vocabulary, "beam_size", self.beam_size, f"below {vocabulary}: {has}")

    @property
    def temperatures(self) -> list[float]:
        """Return the temperatures to try in order, up to 1."""
        step = self.temperature_increment_on_fallback
        if step is None or self.temperature > 1:
            return [self.temperature]
        return [self.temperature + step * index for index in range(int((1.0 + 1e-6 - self.temperature) / step) + 1)]


@dataclass(frozen=True)
class LongformConfig(Settings):
    """Language and long recordings of Whisper models, with openai/whisper's and faster-whisper's names and defaults."""

    title = "Language and long recordings, Whisper models only"  # heading of the options

    task: Literal["transcribe", "translate"] = setting("transcribe", "transcription, or translation into English")
    language: str | None = setting(None, "spoken language, such as en or English (none: detected)")
    multilingual: bool = setting(
        False, "language detected for each window, whose prompt then lacks the previous text: it would be translated"
    )
    initial_prompt: str | None = setting(None, "prompt for the first window, with names, spelling or style")
    carry_initial_prompt: bool = setting(False, "initial_prompt for every window")
    condition_on_previous_text: bool = setting(True, "previous text as prompt for each window")
    prefix: str | None = setting(None, "text with which the transcript starts")
    hotwords: str | None = setting(None, "expected words, as prompt for every window that does not start with --prefix")
    without_timestamps: bool = setting(False, "text without timestamp tokens: one segment for each window")
    clip_timestamps: str = setting("0", "start,end,start,end,... of the clips to transcribe, in seconds")
    hallucination_silence_threshold: float | None = setting(
        None, "silence to skip around words that look hallucinated, with word times, in seconds (none: off)", ge=0
    )
    prepend_punctuations: str = setting("\"'“¿([{-", "punctuation of the next word, for word times")
    append_punctuations: str = setting("\"'.。,，!！?？:：”)]}、", "punctuation of the previous word, for word times")
    batched: bool = setting(False, "batched decoding of segments of up to 30 s, split at pauses")
    vad_filter: bool = setting(False, "restriction to speech by voice activity detection, as native models always do")

    def __post_init__(self) -> None:
        super().__post_init__()
        free = self.language is None or not self.multilingual
        require(free, "multilingual", True, f"off with language {quote(self.language)}")
        clips, given = self.clips, self.clip_timestamps
        require(clips is not None, "clip_timestamps", given, "seconds, with commas between")
        rising = all(start < end for start, end in zip((clips or [])[::2], (clips or [])[1::2], strict=False))
        require(rising, "clip_timestamps", given, "pairs of a start and a later end")

    @property
    def uses_previous_text(self) -> bool:
        """Return whether the previous text is the prompt; after one in another language, models translate."""
        return self.condition_on_previous_text and not self.multilingual

    @property
    def clips(self) -> list[float] | None:
        """Return the times in `clip_timestamps`, in seconds; None if one is not a number of at least 0."""
        try:
            seconds = [float(part) for part in self.clip_timestamps.split(",") if part.strip()]
        except ValueError:
            return None
        return seconds if all(0 <= second <= LONGEST_SECONDS for second in seconds) else None


@dataclass(frozen=True)
class OutputConfig(Settings):
    """Output formats, with openai/whisper's names and defaults. Limits of lines and words need word times."""

    highlight_words: bool = setting(False, "underlined words in srt and vtt as they are spoken")
    max_line_width: int | None = setting(None, "longest subtitle line, in characters", ge=1)
    max_line_count: int | None = setting(None, "most lines in a subtitle, with max_line_width", ge=1)
    max_words_per_line: int | None = setting(None, "most words in a subtitle, unless both other limits are given", ge=1)
    pretty_json: bool = setting(False, "indented json")
    verbose: bool = setting(True, "transcript and times of Whisper models on stdout while files are written")

    @property
    def shapes_lines(self) -> bool:
        """Return whether a limit on lines or words of subtitles is set."""
        return any((self.max_line_width, self.max_words_per_line))  # a line count alone uses the default lines
