"""Whisper's decoding of 30 s windows: prompt, logit filters, search and temperature fallback."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from focusasr.decoding.beam_search import DecoderOutput, Hypothesis, Search, StopCriteria, forward, search
from focusasr.decoding.logit_filters import (
    Continued,
    LogitFilter,
    NoRepeatNgram,
    RepetitionPenalty,
    Suppress,
    Timestamps,
    apply_rules,
)
from focusasr.model.decoding_state import DecodingState
from focusasr.model.engine import Engine, joined
from focusasr.model.transformer import EncoderOutput
from focusasr.runtime.turns import Turns
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.whisper_config import LongformConfig, SearchConfig


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


def best_of_tries(answers: Sequence[DecodingResult], config: SearchConfig) -> DecodingResult:
    """Return the last try, or, if it failed too, the likeliest one that is no loop, or the shortest loop."""
    if not has_failed(answers[-1], config):
        return answers[-1]
    most = config.compression_ratio_threshold
    plain = [answer for answer in answers if most is None or answer.compression_ratio <= most]
    if not plain:
        return min(answers, key=lambda answer: answer.compression_ratio)
    return max(plain, key=lambda answer: answer.avg_logprob)


class EngineDecoder:
    """The engine's decoder as a StepDecoder; its states are changed in place."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def start(self, memory: EncoderOutput) -> DecodingState:
        """Return the state before the first token, with one row per utterance."""
        return self._engine.start(memory)

    def advance(self, tokens: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
        """Read tokens (R, L) and return logits (R, 1, V)."""
        return self._engine.advance(tokens, state, last=True), state

    def select(self, state: DecodingState, rows: Tensor) -> DecodingState:
        """Keep the rows with these numbers (R,)."""
        state.select(rows.tolist())
        return state


class WhisperDecoder:
    """A Whisper model with one language, task and search; results for a window do not depend on other windows."""

    def __init__(
        self, engine: Engine, tokenizer: WhisperTokenizer, config: SearchConfig, longform: LongformConfig
    ) -> None:
        self.engine, self.tokenizer, self.config, self.longform = engine, tokenizer, config, longform
        self.decoder = EngineDecoder(engine)
        self.context = engine.config.text_context
        self.most_tokens = self.context // 2  # of one window's text
        self.turns: Turns | None = None  # of several threads, whose windows are decoded together
        self.draft: Sequence[int] = ()  # probable first tokens of a greedy text

    def speaking(self, language: str) -> WhisperDecoder:
        """Return the same decoder for another language."""
        other = copy.copy(self)
        other.tokenizer = self.tokenizer.speaking(language)
        return other

    def languages(self, memory: EncoderOutput) -> list[str]:
        """Return the likeliest language of each window."""
        return [max(found, key=found.__getitem__) for found in self.language_probabilities(memory)]

    def language_probabilities(self, memory: EncoderOutput) -> list[dict[str, float]]:
        """Return the probability of each language code, for each window."""
        codes = self.tokenizer.languages
        prompt = torch.full((len(memory.states), 1), self.tokenizer.start, device=memory.states.device)
        logits = forward(self.decoder, self.decoder.start(memory), prompt).logits
        rows = logits[:, list(codes.values())].float().softmax(dim=-1).tolist()
        return [dict(zip(codes, row, strict=True)) for row in rows]

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

    def rules(self, timestamps: bool = True) -> list[LogitFilter]:
        """Return the logit filters, in openai/whisper's order."""
        tokenizer, config = self.tokenizer, self.config
        rules: list[LogitFilter] = [Suppress((*tokenizer.encode_exactly(" "), tokenizer.end), at_start=True)]
        if config.suppress_tokens:
            rules.append(Suppress(tuple(self.suppressed())))
        if config.repetition_penalty != 1.0:
            rules.append(RepetitionPenalty(config.repetition_penalty))
        if config.no_repeat_ngram_size:
            rules.append(NoRepeatNgram(config.no_repeat_ngram_size))
        if timestamps:
            latest = tokenizer.whisper.max_initial_timestamp_index
            rules.append(Timestamps(tokenizer.timestamp_begin, tokenizer.end, tokenizer.no_timestamps, latest))
        return rules

    def suppressed(self) -> list[int]:
        """Return the ids that `suppress_tokens` denotes, and the special tokens that are valid only in a prompt."""
        tokenizer = self.tokenizer
        ids = {int(part) for part in self.config.suppress_tokens.split(",")}
        if -1 in ids:
            ids = (ids - {-1}) | set(tokenizer.non_speech_tokens())
        openers = {tokenizer.transcribe, tokenizer.translate, tokenizer.start, tokenizer.sot_prev, tokenizer.sot_lm}
        return sorted(ids | openers | {tokenizer.no_speech})

    @torch.inference_mode()
    def answers(
        self,
        memory: EncoderOutput,
        prompts: Sequence[Sequence[int]],
        timestamps: bool = True,
        opening: Sequence[int] = (),
    ) -> list[DecodingResult]:
        """Return the text of each window; prompts have one length, and texts start with the opening that they end with.

        Failed windows are decoded again, at a higher temperature.

        If all tries fail, the result is the likeliest one that is no loop, as in faster-whisper; openai/whisper takes
        the last one.
        """
        rules = self.rules(timestamps)
        rules = [Continued(tuple(opening), tuple(rules))] if opening else rules
        tried: list[list[DecodingResult]] = [[] for _ in prompts]
        waiting = list(range(len(prompts)))
        for temperature in self.config.temperatures:
            prompt = torch.tensor([list(prompts[row]) for row in waiting], device=memory.states.device)
            for row, answer in zip(waiting, self._tried(memory, prompt, rules, temperature), strict=True):
                tried[row].append(self._opened(answer, opening) if opening else answer)
            failed = [place for place, row in enumerate(waiting) if has_failed(tried[row][-1], self.config)]
            waiting = [waiting[place] for place in failed]
            if not waiting:
                break
            memory = memory.select(torch.tensor(failed, device=memory.states.device))
        return [best_of_tries(answers, self.config) for answers in tried]

    def _tried(
        self, memory: EncoderOutput, prompt: Tensor, rules: Sequence[LogitFilter], temperature: float
    ) -> list[DecodingResult]:
        """Return the result of one temperature for each window.

        A greedy text of a single window is decoded together with those of other threads, if that changes no bit of it.
        """
        room = min(self.most_tokens, self.context - prompt.shape[1] + 1)
        greedy = temperature == 0 and self.config.beam_size is None
        alone = len(prompt) > 1 or not greedy or len(self.draft) > 0
        if self.turns is None or alone or not self.engine.keeps_rows_apart:
            return self._searched(memory, prompt, rules, temperature, [room] * len(prompt))
        place = prompt[0].tolist().index(self.tokenizer.start)

        def work(windows: list[tuple[EncoderOutput, Tensor, int]]) -> list[DecodingResult]:
            memories, prompts, rooms = zip(*windows, strict=True)
            return self._searched(joined(memories), torch.cat(prompts), rules, temperature, rooms)

        key = (id(self.engine), self.config, prompt.shape[1], place, len(rules))
        result: DecodingResult = self.turns.share(key, (memory, prompt, room), work)
        return [result]

    def _searched(
        self,
        memory: EncoderOutput,
        prompt: Tensor,
        rules: Sequence[LogitFilter],
        temperature: float,
        rooms: Sequence[int],
    ) -> list[DecodingResult]:
        """Return the result of one temperature for each window; `rooms` are their maximum numbers of tokens."""
        tokenizer, config = self.tokenizer, self.config
        at = prompt[0].tolist().index(tokenizer.start) + 1
        goal = StopCriteria(rules, tokenizer.end, rooms)
        options = Search(temperature, config.beam_size, config.best_of, config.patience, config.length_penalty)
        begun = None
        if self.draft and len(prompt) == 1 and temperature == 0 and config.beam_size is None:
            first, opening, begun = self._verified(memory, prompt, goal, list(self.draft[: rooms[0] - 1]))
            first = first[:, at - 1]
        else:
            opening = forward(self.decoder, self.decoder.start(memory), prompt[:, :at])
            first = opening.logits
            if at < prompt.shape[1]:
                opening = forward(self.decoder, opening.state, prompt[:, at:])
        silence = first.float().softmax(dim=-1)[:, tokenizer.no_speech].tolist()
        texts = search(self.decoder, opening, goal, options, begun)
        return [self._answer(text, temperature, unsaid) for text, unsaid in zip(texts, silence, strict=True)]

    def _verified(
        self, memory: EncoderOutput, prompt: Tensor, goal: StopCriteria, draft: list[int]
    ) -> tuple[Tensor, DecoderOutput[DecodingState], Hypothesis]:
        """Return the longest beginning of a draft that greedy decoding would give, and the decoder's output after it.

        The decoder reads the prompt and the whole draft in one pass, whose logits (1, L, V) are returned too. Leviathan
        et al. 2023, Fast inference by speculative decoding.
        """
        drafted = torch.tensor([draft], device=prompt.device)
        state = self.engine.start(memory)
        logits = self.engine.advance(torch.cat((prompt, drafted), dim=1), state)
        start = prompt.shape[1]
        count, log_prob = 0, 0.0
        for count, token in enumerate([*draft, -1]):
            ruled = apply_rules(goal.rules, logits[:, start - 1 + count].float(), drafted[:, :count])
            if int(ruled.argmax()) != token:
                break
            log_prob += float(ruled[0, token] - ruled.logsumexp(dim=-1))
        state.lengths = [start + count]
        return logits, DecoderOutput(state, logits[:, start - 1 + count]), Hypothesis(draft[:count], log_prob)

    def _answer(self, text: Hypothesis, temperature: float, no_speech_prob: float) -> DecodingResult:
        said = self.text(text.tokens).strip()
        ratio = compression_ratio(said)
        return DecodingResult(text.tokens, said, temperature, text.avg_logprob, ratio, no_speech_prob)

    def _opened(self, answer: DecodingResult, opening: Sequence[int]) -> DecodingResult:
        tokens = [*opening, *answer.tokens]
        text = self.text(tokens).strip()
        return answer._replace(tokens=tokens, text=text, compression_ratio=compression_ratio(text))

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without timestamps."""
        return self.tokenizer.decode_exactly([token for token in tokens if token < self.tokenizer.end])
