"""What users of Whisper set: its search, its way through a recording, its files; names and defaults are theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from focusasr.runtime.settings import LONGEST_SECONDS, require, require_choices, setting

LEAST_WARMTH = 0.01  # of temperatures above 0, and between them
LONGEST_ID = 9  # digits
MOST_TRIED = 100_000  # texts at a time


@dataclass(frozen=True)
class SearchConfig:
    """How Whisper models look for a text, and when they look again; names and defaults are openai/whisper's.

    Native models decode with their CTC head and decoder together, at temperature 0, and have no use for these.
    """

    title = "Search, Whisper models only"  # of its options

    temperature: float = setting(0.0, "0: the likeliest text; above: sampling")
    best_of: int | None = setting(5, "samples to choose from where the temperature is above 0")
    beam_size: int | None = setting(5, "beams at temperature 0; none: greedy")
    patience: float | None = setting(None, "beams: how many times beam_size texts to wait for; none: 1")
    length_penalty: float | None = setting(None, "exponent α of ((5 + tokens) / 6) ** α; none: mean per token")
    suppress_tokens: str = setting("-1", "ids never written, with commas; -1: brackets, notes and the like")
    repetition_penalty: float = setting(1.0, "above 1: tokens written before become less likely")
    no_repeat_ngram_size: int = setting(0, "no sequence of so many tokens comes twice; 0: any may")
    temperature_increment_on_fallback: float | None = setting(0.2, "how much warmer a failed window is tried again")
    compression_ratio_threshold: float | None = setting(2.4, "a text that compresses better is a loop: try again")
    logprob_threshold: float | None = setting(-1.0, "a text with a lower mean log probability: try again")
    no_speech_threshold: float | None = setting(0.6, "silence where its probability is above and logprob fails")

    def __post_init__(self) -> None:
        fits = self.temperature == 0 or LEAST_WARMTH <= self.temperature <= 10
        require(fits, "temperature", self.temperature, f"0, or {LEAST_WARMTH:g} to 10")
        for name in ("best_of", "beam_size"):
            given = getattr(self, name)
            require(given is None or 1 <= given <= MOST_TRIED, name, given, f"1 to {MOST_TRIED}, or none")
        enough = self.patience is None or round((self.beam_size or 1) * self.patience) >= 1
        require(enough, "patience", self.patience, "enough for one text of {beam_size}", beam_size=self.beam_size)
        fits = self.length_penalty is None or 0 <= self.length_penalty <= 1
        require(fits, "length_penalty", self.length_penalty, "0 to 1, or none")
        require(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "above 0")
        require(self.no_repeat_ngram_size >= 0, "no_repeat_ngram_size", self.no_repeat_ngram_size, "at least 0")
        warmer = self.temperature_increment_on_fallback
        fits = warmer is None or warmer >= LEAST_WARMTH
        require(fits, "temperature_increment_on_fallback", warmer, f"at least {LEAST_WARMTH:g}, or none")
        parts = [part.strip() for part in self.suppress_tokens.split(",")]
        numbers = (part == "-1" or (part.isdecimal() and len(part) <= LONGEST_ID) for part in parts)
        fine = not self.suppress_tokens or all(numbers)
        require(fine, "suppress_tokens", self.suppress_tokens, "ids with commas between, or -1 for signs not spoken")

    def fit(self, vocabulary: int) -> None:
        """Refuse what a model of so many tokens cannot do: SettingError."""
        largest = max(map(int, self.suppress_tokens.split(","))) if self.suppress_tokens else -1
        has = f"this model has {vocabulary} tokens"
        require(largest < vocabulary, "suppress_tokens", self.suppress_tokens, f"ids below {vocabulary}: {has}")
        require((self.beam_size or 1) < vocabulary, "beam_size", self.beam_size, f"below {vocabulary}: {has}")

    @property
    def temperatures(self) -> list[float]:
        """Return the temperatures to try, one after the other, up to 1."""
        step = self.temperature_increment_on_fallback
        if step is None or self.temperature > 1:
            return [self.temperature]
        return [self.temperature + step * index for index in range(int((1.0 + 1e-6 - self.temperature) / step) + 1)]


@dataclass(frozen=True)
class LongformConfig:
    """How Whisper models go through a recording; names and defaults are openai/whisper's and faster-whisper's."""

    title = "Language and long recordings, Whisper models only"  # of its options

    task: Literal["transcribe", "translate"] = setting("transcribe", "translate: into English")
    language: str | None = setting(None, "what is spoken, such as en or English; none: detected")
    initial_prompt: str | None = setting(None, "text before the first window: names, spelling, style")
    carry_initial_prompt: bool = setting(False, "put initial_prompt before every window")
    condition_on_previous_text: bool = setting(True, "each window knows the text before it; off: loops end sooner")
    prefix: str | None = setting(None, "text that every window goes on from")
    hotwords: str | None = setting(None, "words to expect in every window; without effect beside prefix")
    clip_timestamps: str = setting("0", "start,end,start,end ... in seconds of what is read; the last end may lack")
    hallucination_silence_threshold: float | None = setting(
        None, "with word times: skip silences above so many seconds around words that look invented"
    )
    prepend_punctuations: str = setting("\"'“¿([{-", "word times: marks that belong to the next word")
    append_punctuations: str = setting("\"'.。,，!！?？:：”)]}、", "word times: marks that belong to the word before")
    batched: bool = setting(False, "split at pauses into pieces of up to 30 s and decode many at once")
    vad_filter: bool = setting(False, "read only where the pause finder hears speech; native models always do")

    def __post_init__(self) -> None:
        require_choices(self)
        threshold = self.hallucination_silence_threshold
        require(threshold is None or threshold >= 0, "hallucination_silence_threshold", threshold, "at least 0")
        clips, given = self.clips, self.clip_timestamps
        require(clips is not None, "clip_timestamps", given, "seconds, with commas between")
        rising = all(start < end for start, end in zip((clips or [])[::2], (clips or [])[1::2], strict=False))
        require(rising, "clip_timestamps", given, "pairs of a start and a later end")

    @property
    def clips(self) -> list[float] | None:
        """Return the seconds in `clip_timestamps`; None where they are no numbers from 0 on."""
        try:
            seconds = [float(part) for part in self.clip_timestamps.split(",") if part.strip()]
        except ValueError:
            return None
        return seconds if all(0 <= second <= LONGEST_SECONDS for second in seconds) else None


@dataclass(frozen=True)
class OutputConfig:
    """What is written how; names and defaults are openai/whisper's. Lines and words need word times."""

    highlight_words: bool = setting(False, "srt and vtt: underline each word as it is spoken")
    max_line_width: int | None = setting(None, "most characters in a line")
    max_line_count: int | None = setting(None, "most lines in a subtitle; not with max_words_per_line alone")
    max_words_per_line: int | None = setting(None, "most words in a subtitle; without effect beside both of the others")
    pretty_json: bool = setting(False, "json on many lines")
    verbose: bool = setting(True, "Whisper models: print what was heard, with its times, where files are written")

    @property
    def shapes_lines(self) -> bool:
        """Return whether anything is said of how long lines and subtitles are."""
        return any((self.max_line_width, self.max_words_per_line))  # a count alone shapes the usual lines

    def __post_init__(self) -> None:
        for name in ("max_line_width", "max_line_count", "max_words_per_line"):
            given = getattr(self, name)
            require(given is None or given >= 1, name, given, "at least 1, or none")
