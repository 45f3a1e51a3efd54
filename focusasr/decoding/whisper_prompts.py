"""Prompts of Whisper windows, their results, and tests for failed ones."""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from focusasr.config import ModelConfig
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.whisper_config import LongformConfig, SearchConfig

if TYPE_CHECKING:
    from typing_extensions import Self

LONGEST_PHRASE = 12  # words of a phrase whose repeats are looked for


class DecodingResult(NamedTuple):
    """The text of a window, its tokens with timestamps, and the model's confidence."""

    tokens: list[int]
    text: str
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


def compression_ratio(text: str) -> float:
    """Return the ratio of a text's length to its zlib-compressed length: above 2.4 it is probably a loop."""
    encoded = text.encode("utf-8")
    return len(encoded) / len(zlib.compress(encoded))


def is_silence(answer: DecodingResult, config: SearchConfig) -> bool:
    """Return whether a window counts as silent: no speech is likely, and the text is unlikely."""
    if config.no_speech_threshold is None or answer.no_speech_prob <= config.no_speech_threshold:
        return False
    return config.logprob_threshold is None or answer.avg_logprob <= config.logprob_threshold


def has_failed(answer: DecodingResult, config: SearchConfig) -> bool:
    """Return whether a window should be decoded again at a higher temperature."""
    looping = (
        config.compression_ratio_threshold is not None and answer.compression_ratio > config.compression_ratio_threshold
    )
    unlikely = config.logprob_threshold is not None and answer.avg_logprob < config.logprob_threshold
    silent = unlikely and config.no_speech_threshold is not None and answer.no_speech_prob > config.no_speech_threshold
    return (looping or unlikely) and not silent


def words_of(text: str) -> list[str]:
    """Return the words of a text without case and punctuation."""
    return re.sub(r"[^\w' ]", "", text.lower()).split()


def repeats(words: Sequence[str]) -> list[str]:
    """Return the first phrase that occurs at least four times in a row, or three if it has three words, with repeats.

    Otherwise an empty list.
    """
    for length in range(1, LONGEST_PHRASE + 1):
        times = 3 if length >= 3 else 4
        for at in range(len(words) - times * length + 1):
            found = list(words[at : at + times * length])
            if found[length:] == found[:-length]:
                return found
    return []


def is_loop(answer: DecodingResult, answers: Sequence[DecodingResult]) -> bool:
    """Return whether a text has repeats that no other try has; repeats of two tries count as real speech."""
    found = repeats(words_of(answer.text))
    return bool(found) and not any(repeats(words_of(one.text)) == found for one in answers if one is not answer)


def is_settled(answers: Sequence[DecodingResult], config: SearchConfig, guarded: bool) -> bool:
    """Return whether no more tries are needed: the last one has not failed. `guarded`: nor is it a short loop."""
    return not has_failed(answers[-1], config) and not (guarded and is_loop(answers[-1], answers))


def best_of_tries(answers: Sequence[DecodingResult], config: SearchConfig, guarded: bool) -> DecodingResult:
    """Return the last try, or, if it failed too, the likeliest one that is no loop, or the shortest loop."""
    if is_settled(answers, config, guarded):
        return answers[-1]
    most = config.compression_ratio_threshold
    plain = [answer for answer in answers if most is None or answer.compression_ratio <= most]
    if guarded:
        plain = [answer for answer in plain if not is_loop(answer, answers)]
    if not plain:
        return min(answers, key=lambda answer: answer.compression_ratio)
    return max(plain, key=lambda answer: answer.avg_logprob)


def forbidden_after(
    said: Sequence[int], first: int, end: int, max_initial: int | None
) -> Iterable[tuple[int, int | None]]:
    """Yield ranges of tokens that must not follow a text's tokens, so that times are in pairs and never decrease.

    Times are the tokens from `first` on; `end` is the end token; `max_initial` the index of the latest first time.
    """
    if not said:
        yield 0, first
        if max_initial is not None:
            yield first + max_initial + 1, None
        return
    last = said[-1] >= first
    before = len(said) < 2 or said[-2] >= first
    if last:
        yield (first, None) if before else (0, end)
    latest = next((token for token in reversed(said) if token >= first), None)
    if latest is not None:  # the end of a segment may be the start of the next one
        yield first, latest + (0 if last and not before else 1)


class WhisperPrompts:
    """The prompts of a Whisper model with one language, task and search.

    Texts of models for audio at its own length are tried again if they have short loops, too (`is_loop`), unless the
    search for loops is off.
    """

    def __init__(
        self, tokenizer: WhisperTokenizer, config: SearchConfig, longform: LongformConfig, model: ModelConfig
    ) -> None:
        self.tokenizer, self.config, self.longform = tokenizer, config, longform
        self.context = model.text_context
        self.guarded = model.window_samples is None and config.compression_ratio_threshold is not None
        self.most_tokens = self.context // 2  # of one window's text
        self.draft: Sequence[int] = ()  # probable first tokens of a greedy text

    def speaking(self, language: str) -> Self:
        """Return the same decoder for another language."""
        other = copy.copy(self)
        other.tokenizer = self.tokenizer.speaking(language)
        return other

    def opening(self, timestamps: bool = True) -> list[int]:
        """Return the tokens that the first window's text starts with: the prefix, if any, from the time 0 on.

        As in faster-whisper. openai/whisper has the prefix before the first timestamp, where real models write nothing.
        """
        prefix = self._encoded(self.longform.prefix)[: self._most]
        return [*([self.tokenizer.timestamp_begin] if timestamps else []), *prefix] if prefix else []

    def prompt(self, previous: Sequence[int] = (), timestamps: bool = True, opening: Sequence[int] = ()) -> list[int]:
        """Return the prompt: hotwords, unless there is an opening, previous text, start tokens and opening.

        The format is openai/whisper's, and faster-whisper's for hotwords. The previous text is cut from the left to
        half the context, or to less with a long opening, so that a quarter of the context remains for the text.
        """
        tokenizer = self.tokenizer
        start = [*tokenizer.sot_sequence, *([] if timestamps else [tokenizer.no_timestamps])]
        expected = [] if opening else self._expected()[: self._most]
        room = self._room(len(start), len(opening), len(expected))
        before = [*expected, *(list(previous)[-room:] if room > 0 else [])]
        return [*([tokenizer.sot_prev, *before] if before else []), *start, *opening]

    @property
    def _most(self) -> int:
        return self.context // 2 - 1

    def _room(self, start: int, opening: int, expected: int) -> int:
        """Return the number of previous tokens that fit into the prompt."""
        return min(self._most, self.context - self.context // 4 - 1 - start - opening) - expected

    def _expected(self) -> list[int]:
        return self._encoded(self.longform.hotwords)

    def remarks(self) -> list[str]:
        """Return warnings about prompts that are too long."""
        prefix, expected = self._encoded(self.longform.prefix), self._expected()
        initial, opening = self._encoded(self.longform.initial_prompt), len(self.opening())
        room = self._room(len(self.tokenizer.sot_sequence), opening, 0 if opening else min(len(expected), self._most))
        room = max(0, room)
        parts = (("--prefix", prefix, self._most, "last"), ("--hotwords", expected, self._most, "last"))
        return [
            f"{option}: {len(given)} tokens, more than the maximum of {most}; the {end} {len(given) - most} are cut"
            for option, given, most, end in (*parts, ("--initial-prompt", initial, room, "first"))
            if len(given) > most
        ]

    def _encoded(self, text: str | None) -> list[int]:
        return self.tokenizer.encode_exactly(" " + text.strip()) if text and text.strip() else []

    def suppressed(self) -> list[int]:
        """Return the ids that `suppress_tokens` denotes, and the special tokens that are valid only in a prompt."""
        tokenizer = self.tokenizer
        ids = {int(part) for part in self.config.suppress_tokens.split(",")}
        if -1 in ids:
            ids = (ids - {-1}) | set(tokenizer.non_speech_tokens())
        openers = {tokenizer.transcribe, tokenizer.translate, tokenizer.start, tokenizer.sot_prev, tokenizer.sot_lm}
        return sorted(ids | openers | {tokenizer.no_speech})

    def result(
        self, tokens: list[int], avg_logprob: float, temperature: float, no_speech_prob: float
    ) -> DecodingResult:
        """Return the result for the tokens of a window."""
        said = self.text(tokens).strip()
        return DecodingResult(tokens, said, temperature, avg_logprob, compression_ratio(said), no_speech_prob)

    def opened(self, answer: DecodingResult, opening: Sequence[int]) -> DecodingResult:
        """Return the result with the opening before its text."""
        tokens = [*opening, *answer.tokens]
        text = self.text(tokens).strip()
        return answer._replace(tokens=tokens, text=text, compression_ratio=compression_ratio(text))

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without timestamps."""
        return self.tokenizer.decode_exactly([token for token in tokens if token < self.tokenizer.end])
