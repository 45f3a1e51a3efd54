"""Decoding of Whisper windows in numpy: the twin of `whisper_decoder` and `beam_search` for an `OnnxEngine`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from focusasr.decoding.beams import Beams, Hypothesis, score
from focusasr.decoding.whisper_prompts import (
    DecodingResult,
    WhisperPrompts,
    best_of_tries,
    forbidden_after,
    has_failed,
)
from focusasr.model.onnx_engine import Memory, OnnxEngine, State
from focusasr.runtime.turns import Turns
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.whisper_config import LongformConfig, SearchConfig


class _Start(NamedTuple):
    """The decoder after the prompt, and the beginning of a text: its tokens, their log probability, the next logits."""

    state: State
    logits: np.ndarray  # (V,)
    begun: Hypothesis


class OnnxWhisperDecoder(WhisperPrompts):
    """A Whisper model with one language, task and search that decodes windows one by one."""

    def __init__(
        self, engine: OnnxEngine, tokenizer: WhisperTokenizer, config: SearchConfig, longform: LongformConfig
    ) -> None:
        super().__init__(tokenizer, config, longform, engine.config.text_context)
        self.engine = engine
        self.turns: Turns | None = None  # not used: windows are decoded alone
        latest = tokenizer.whisper.max_initial_timestamp_index
        self._times = tokenizer.timestamp_begin, tokenizer.end, latest
        self._at_start = [*tokenizer.encode_exactly(" "), tokenizer.end]
        self._never = np.array(self.suppressed() if config.suppress_tokens else [], dtype=int)
        self._timed = True  # whether texts have timestamps

    @staticmethod
    def supports(config: SearchConfig) -> bool:
        """Return whether these search options are possible here."""
        return config.repetition_penalty == 1.0 and not config.no_repeat_ngram_size

    def languages(self, memory: Memory) -> list[str]:
        """Return the likeliest language of the window."""
        logits, _ = self.engine.advance(np.array([[self.tokenizer.start]]), self.engine.start(memory))
        codes = self.tokenizer.languages
        return [max(codes, key=lambda code: logits[0, -1, codes[code]])]

    def answers(
        self, memory: Memory, prompts: Sequence[Sequence[int]], timestamps: bool = True, opening: Sequence[int] = ()
    ) -> list[DecodingResult]:
        """Return the text of a window, which starts with the opening that its prompt ends with.

        If it fails, it is decoded again at a higher temperature.
        """
        self._timed = timestamps
        (prompt,) = prompts
        place = list(prompt).index(self.tokenizer.start) + 1
        logits, state = self.engine.advance(np.array([prompt[:place]]), self.engine.start(memory))
        silence = float(np.exp(_log_softmax(logits[0, -1])[self.tokenizer.no_speech]))
        room = min(self.most_tokens, self.context - len(prompt) + 1)
        plain, begun = self._starts(state, logits[0, -1], list(prompt[place:]), room, opening)
        tries: list[DecodingResult] = []
        for temperature in self.config.temperatures:
            if temperature or self.config.beam_size is None:
                text = self._sampled(plain if temperature else begun, temperature, room, opening)
            else:
                text = self._beam(plain, self.config.beam_size, room, opening)
            answer = self.result(text.tokens, text.avg_logprob, temperature, silence)
            tries.append(self.opened(answer, opening) if opening else answer)
            if not has_failed(tries[-1], self.config):
                break
        return [best_of_tries(tries, self.config)]

    def _starts(
        self, state: State, logits: np.ndarray, rest: list[int], room: int, opening: Sequence[int]
    ) -> tuple[_Start, _Start]:
        """Read the rest of the prompt and the draft; return the decoder after the prompt, and after the draft's
        longest beginning that greedy decoding would give.
        """
        draft = list(self.draft[: room - 1]) if self.config.beam_size is None else []
        rows = [logits]
        if rest or draft:
            found, state = self.engine.advance(np.array([[*rest, *draft]]), state, keep=len(draft) + bool(rest))
            rows = [*([] if rest else rows), *found[0]]
        log_prob, count = 0.0, 0
        for count, token in enumerate([*draft, -1]):
            log_probs = _log_softmax(self._ruled(rows[count].copy(), [*opening, *draft[:count]]))
            if int(log_probs.argmax()) != token:
                break
            log_prob += float(log_probs[token])
        length = state.past[0].shape[2] - len(draft)
        plain = _Start(self.engine.cut(state, length), rows[0], Hypothesis([], 0.0))
        return plain, _Start(self.engine.cut(state, length + count), rows[count], Hypothesis(draft[:count], log_prob))

    def _sampled(self, start: _Start, temperature: float, room: int, opening: Sequence[int]) -> Hypothesis:
        """Return the greedy text at temperature 0, else the best of several samples."""
        count = (self.config.best_of or 1) if temperature > 0 else 1
        chance = np.random.default_rng(0)
        going = [start.begun] * count
        state = self.engine.select(start.state, [0] * count)
        logits = np.repeat(start.logits[None], count, axis=0)
        done: list[Hypothesis] = []
        while going:
            kept, longer = [], []
            for text, row in zip(going, logits, strict=True):
                self._ruled(row, [*opening, *text.tokens])
            for row, (text, token) in enumerate(zip(going, self.choices(logits, temperature, chance), strict=True)):
                total = text.log_prob + float(logits[row, token]) - _log_sum(logits[row])
                if token == self.tokenizer.end:
                    done.append(Hypothesis(text.tokens, total))
                elif len(text.tokens) + 1 >= room:
                    done.append(Hypothesis([*text.tokens, int(token)], total))
                else:
                    kept.append(row)
                    longer.append(Hypothesis([*text.tokens, int(token)], total))
            going = longer
            if going:
                state = state if len(kept) == len(logits) else self.engine.select(state, kept)
                found, state = self.engine.advance(np.array([[text.tokens[-1]] for text in going]), state)
                logits = found[:, -1]
        return max(done, key=lambda text: score(text, self.config.length_penalty))

    def _beam(self, start: _Start, size: int, room: int, opening: Sequence[int]) -> Hypothesis:
        """Return the best complete text that a beam search finds."""
        beams = Beams(size, round(size * (self.config.patience or 1.0)), room)
        state, logits, said, scores = start.state, start.logits[None].copy(), list[list[int]]([[]]), [0.0]
        for step in range(room):
            for row, tokens in zip(logits, said, strict=True):
                self._ruled(row, [*opening, *tokens])
            best = np.argpartition(-logits, size, axis=1)[:, : size + 1]
            sums = np.array([total - _log_sum(row) for row, total in zip(logits, scores, strict=True)])
            totals = np.take_along_axis(logits, best, axis=1) + sums[:, None]
            steps = beams.extend(totals.tolist(), best.tolist(), said, self.tokenizer.end)
            if len(beams.complete) >= beams.wanted or step + 1 == room:
                beams.close(steps, said)
                break
            rows, scores = [one.row for one in steps], [one.score for one in steps]
            said = [[*said[one.row], one.token] for one in steps]
            if rows != list(range(len(logits))):
                state = self.engine.select(state, rows)
            found, state = self.engine.advance(np.array([[one.token] for one in steps]), state)
            logits = found[:, -1]
        return max(beams.complete, key=lambda text: score(text, self.config.length_penalty))

    @staticmethod
    def choices(logits: np.ndarray, temperature: float, chance: np.random.Generator) -> np.ndarray:
        """Return the likeliest token of each row (R, V) at temperature 0, else a sample (Gumbel 1954, the maximum)."""
        if temperature == 0:
            return logits.argmax(axis=1)
        return (logits / temperature + chance.gumbel(size=logits.shape)).argmax(axis=1)

    def _ruled(self, logits: np.ndarray, said: Sequence[int]) -> np.ndarray:
        """Set the logits (V,) of tokens that must not follow to -inf, in place (`logit_filters`)."""
        first = self._times[0]
        logits[self._never] = -np.inf
        if not said:
            logits[self._at_start] = -np.inf
        if not self._timed:
            return logits
        logits[self.tokenizer.no_timestamps] = -np.inf
        for begin, stop in forbidden_after(said, *self._times):
            logits[begin:stop] = -np.inf
        if _log_sum(logits[first:]) > logits[:first].max():  # times together are likelier than any token of text
            logits[:first] = -np.inf
        return logits


def _log_sum(logits: np.ndarray) -> float:
    peak = float(logits.max())
    return peak + math.log(float(np.exp(logits - peak).sum())) if math.isfinite(peak) else peak


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.float32(_log_sum(logits))
