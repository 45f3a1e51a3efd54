"""Whisper's decoding of 30 s windows: prompt, logit filters, search and temperature fallback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from focusasr.decoding.beam_search import StopCriteria, search
from focusasr.decoding.beams import Hypothesis
from focusasr.decoding.logit_filters import (
    Continued,
    LogitFilter,
    NoRepeatNgram,
    RepetitionPenalty,
    Suppress,
    Timestamps,
    apply_rules,
)
from focusasr.decoding.whisper_prompts import DecodingResult, WhisperPrompts, best_of_tries, is_settled
from focusasr.model.decoding_state import DecodingState
from focusasr.model.engine import Engine, joined
from focusasr.model.transformer import EncoderOutput
from focusasr.runtime.turns import Turns
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.whisper_config import LongformConfig, SearchConfig


class WhisperDecoder(WhisperPrompts):
    """A Whisper model with one language, task and search; results for a window do not depend on other windows."""

    def __init__(
        self, engine: Engine, tokenizer: WhisperTokenizer, config: SearchConfig, longform: LongformConfig
    ) -> None:
        super().__init__(tokenizer, config, longform, engine.config)
        self.engine = engine
        self.turns: Turns | None = None  # of several threads, whose windows are decoded together

    def languages(self, memory: EncoderOutput) -> list[str]:
        """Return the likeliest language of each window."""
        return [max(found, key=found.__getitem__) for found in self.language_probabilities(memory)]

    def language_probabilities(self, memory: EncoderOutput) -> list[dict[str, float]]:
        """Return the probability of each language code, for each window."""
        codes = self.tokenizer.languages
        prompt = torch.full((len(memory.states), 1), self.tokenizer.start, device=memory.states.device)
        logits = self.engine.advance(prompt, self.engine.start(memory))[:, -1]
        rows = logits[:, list(codes.values())].float().softmax(dim=-1).tolist()
        return [dict(zip(codes, row, strict=True)) for row in rows]

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
                tried[row].append(self.opened(answer, opening) if opening else answer)
            failed = [
                place for place, row in enumerate(waiting) if not is_settled(tried[row], self.config, self.guarded)
            ]
            waiting = [waiting[place] for place in failed]
            if not waiting:
                break
            memory = memory.select(torch.tensor(failed, device=memory.states.device))
        return [best_of_tries(answers, self.config, self.guarded) for answers in tried]

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
        options = replace(config, temperature=temperature)
        begun = None
        if self.draft and len(prompt) == 1 and temperature == 0 and config.beam_size is None:
            logits, state, begun = self._verified(memory, prompt, goal, list(self.draft[: rooms[0] - 1]))
            first, following = logits[:, at - 1], logits[:, prompt.shape[1] - 1 + len(begun.tokens)]
        else:
            state = self.engine.start(memory)
            first = following = self.engine.advance(prompt[:, :at], state, last=True)[:, -1]
            if at < prompt.shape[1]:
                following = self.engine.advance(prompt[:, at:], state, last=True)[:, -1]
        silence = first.float().softmax(dim=-1)[:, tokenizer.no_speech].tolist()
        texts = search(self.engine, state, following, goal, options, begun)
        return [
            self.result(text.tokens, text.avg_logprob, temperature, unsaid)
            for text, unsaid in zip(texts, silence, strict=True)
        ]

    def _verified(
        self, memory: EncoderOutput, prompt: Tensor, goal: StopCriteria, draft: list[int]
    ) -> tuple[Tensor, DecodingState, Hypothesis]:
        """Return the longest beginning of a draft that greedy decoding would give, after logits and state.

        The decoder reads the prompt and the whole draft in one pass, which gives the logits (1, L, V). Leviathan et al.
        2023, Fast inference by speculative decoding.
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
        return logits, state, Hypothesis(draft[:count], log_prob)
