"""Decoding of Whisper windows in numpy: the twin of `whisper_decoder` and `beam_search` for an `OnnxEngine`.

Letters: W windows, R rows (each window has the same number of candidates, side by side), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from focusasr.decoding.beams import Beams, BeamStep, Hypothesis, in_place, score
from focusasr.decoding.whisper_prompts import (
    DecodingResult,
    WhisperPrompts,
    best_of_tries,
    forbidden_after,
    is_settled,
)
from focusasr.model.onnx_engine import OnnxEngine
from focusasr.model.onnx_memory import Memory, State
from focusasr.runtime.turns import Turns
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.whisper_config import SECONDS_PER_TIMESTAMP, LongformConfig, SearchConfig

LARGE = 40.0  # logits from which exp is taken of differences to them; others need no copy
COLUMNS = 64  # values of which the largest is looked at first, to find the best tokens


class _Window(NamedTuple):
    """The prompt of a window, the longest text in tokens, and the time token before which no text ends at a time."""

    prompt: list[int]
    room: int
    until: int


class _Start(NamedTuple):
    """The decoder after the prompts of some windows, and the next logits (W, V)."""

    state: State
    logits: np.ndarray
    begun: list[Hypothesis]  # beginnings of the texts
    windows: list[_Window]
    silence: list[float]  # probabilities that a window has no speech


class OnnxWhisperDecoder(WhisperPrompts):
    """A Whisper model with one language, task and search; results for a window do not depend on other windows."""

    def __init__(
        self, engine: OnnxEngine, tokenizer: WhisperTokenizer, config: SearchConfig, longform: LongformConfig
    ) -> None:
        super().__init__(tokenizer, config, longform, engine.config)
        self.engine = engine
        self.turns: Turns | None = None  # of several threads, whose windows are decoded together
        latest = tokenizer.whisper.max_initial_timestamp_index
        self._times = tokenizer.timestamp_begin, tokenizer.end, latest
        self._at_start = [*tokenizer.encode_exactly(" "), tokenizer.end]
        self._never = np.array(self.suppressed() if config.suppress_tokens else [], dtype=int)
        self._timed = True  # whether texts have timestamps
        self._opening: list[int] = []  # what texts start with

    @staticmethod
    def supports(config: SearchConfig) -> bool:
        """Return whether these search options are possible here."""
        return config.repetition_penalty == 1.0 and not config.no_repeat_ngram_size

    def languages(self, memory: Memory) -> list[str]:
        """Return the likeliest language of each window."""
        start = np.full((len(memory.numbers), 1), self.tokenizer.start)
        logits, _ = self.engine.advance(start, self.engine.start(memory))
        codes = self.tokenizer.languages
        return [max(codes, key=lambda code: row[codes[code]]) for row in logits[:, -1]]

    def answers(
        self,
        memory: Memory,
        prompts: Sequence[Sequence[int]],
        timestamps: bool = True,
        opening: Sequence[int] = (),
        spoken_seconds: Sequence[float] = (),
    ) -> list[DecodingResult]:
        """Return the text of each window; prompts have one length, and texts start with the opening that they end with.

        Failed windows are decoded again, one by one, at a higher temperature. With `spoken_seconds`, the end of speech
        in each window, a text does not stop at an earlier time. The order of the windows in `memory` changes.
        """
        self._timed, self._opening = timestamps, list(opening)
        room = min(self.most_tokens, self.context - len(prompts[0]) + 1)
        first = self.tokenizer.timestamp_begin
        untils = [first + int(seconds / SECONDS_PER_TIMESTAMP) for seconds in spoken_seconds] or [0] * len(prompts)
        windows = [_Window(list(prompt), room, until) for prompt, until in zip(prompts, untils, strict=True)]
        if self.turns and len(windows) == 1 and self.config.temperatures[0] == 0 and not self.draft:
            place = windows[0].prompt.index(self.tokenizer.start)
            key = id(self.engine), self.config, timestamps, tuple(opening), len(prompts[0]), place
            found = [self.turns.share(key, (memory, windows[0]), self._together)]
        else:
            found = self._first_tries(memory, windows)
        return [
            self._settled(memory, number, window, answer)
            for number, (window, answer) in enumerate(zip(windows, found, strict=True))
        ]

    def _together(self, shared: list[tuple[Memory, _Window]]) -> list[DecodingResult]:
        """Return the first tries of the windows of several threads."""
        memories, windows = zip(*shared, strict=True)
        return self._first_tries(Memory.joined(memories) if len(memories) > 1 else memories[0], windows)

    def _first_tries(self, memory: Memory, windows: Sequence[_Window]) -> list[DecodingResult]:
        """Return the text of each window at the first temperature."""
        temperature = self.config.temperatures[0]
        start, begun = self._starts(memory, windows)
        if temperature == 0:
            texts = dict(self._beam(start, self.config.beam_size) if self.config.beam_size else self._rows(begun, 0.0))
        else:
            texts = {number: self._sample(self._one(start, number), temperature) for number in range(len(windows))}
        return [self._answer(texts[number], temperature, start.silence[number]) for number in range(len(windows))]

    def _settled(self, memory: Memory, number: int, window: _Window, first: DecodingResult) -> DecodingResult:
        """Return the result of a window: the first one, or, if it failed, one at a higher temperature."""
        if is_settled([first], self.config, self.guarded):
            return first
        start, _ = self._starts(memory.window(number), [window])
        tries = [first]
        for temperature in self.config.temperatures[1:]:
            tries.append(self._answer(self._sample(start, temperature), temperature, first.no_speech_prob))
            if is_settled(tries, self.config, self.guarded):
                break
        return best_of_tries(tries, self.config, self.guarded)

    def _answer(self, text: Hypothesis, temperature: float, silence: float) -> DecodingResult:
        answer = self.result(text.tokens, text.avg_logprob, temperature, silence)
        return self.opened(answer, self._opening) if self._opening else answer

    def _one(self, start: _Start, number: int) -> _Start:
        """Return the start of one window."""
        here = slice(number, number + 1)
        state = State(start.state.memory.window(number), [one[here] for one in start.state.past], 1)
        return _Start(state, start.logits[here], start.begun[here], start.windows[here], start.silence[here])

    def _starts(self, memory: Memory, windows: Sequence[_Window]) -> tuple[_Start, _Start]:
        """Read prompts, and the draft of a single window; return the decoder after the prompts, and after the draft's
        longest beginning that greedy decoding would give.
        """
        tokens = np.array([window.prompt for window in windows])
        place = windows[0].prompt.index(self.tokenizer.start) + 1
        found, state = self.engine.advance(tokens[:, :place], self.engine.start(memory))
        first = found[:, -1]
        silence = np.exp(first[:, self.tokenizer.no_speech] - _log_sums(first)).tolist()
        drafted = self.config.beam_size is None and len(windows) == 1
        draft = list(self.draft[: windows[0].room - 1]) if drafted else []
        rest = np.concatenate([tokens[:, place:], np.array([draft], int).repeat(len(windows), axis=0)], axis=1)
        rows = first[:, None]
        if rest.shape[1]:
            prompted = place < tokens.shape[1]
            found, state = self.engine.advance(rest, state, keep=len(draft) + prompted)
            rows = found if prompted else np.concatenate([rows, found], axis=1)
        begun = self._verified(rows[0], draft, windows[0])
        length, count = tokens.shape[1], len(begun.tokens)
        nothing = [Hypothesis([], 0.0)] * len(windows)
        plain = _Start(self.engine.cut(state, length), rows[:, 0], nothing, list(windows), silence)
        if not count:
            return plain, plain
        return plain, plain._replace(state=self.engine.cut(state, length + count), logits=rows[:, count], begun=[begun])

    def _verified(self, rows: np.ndarray, draft: list[int], window: _Window) -> Hypothesis:
        """Return the longest beginning of a draft that greedy decoding would give, from the logits (L, V) before it."""
        log_prob = 0.0
        for count, token in enumerate(draft):
            logits = rows[count : count + 1].copy()
            self._rule(logits, [draft[:count]], [window])
            if int(logits.argmax()) != token:
                return Hypothesis(draft[:count], log_prob)
            log_prob += float(logits[0, token] - _log_sums(logits)[0])
        return Hypothesis(draft, log_prob)

    def _sample(self, start: _Start, temperature: float) -> Hypothesis:
        """Return the best of several samples of one window."""
        count = self.config.best_of or 1
        state, logits = self.engine.select(start.state, [0] * count), start.logits.repeat(count, axis=0)
        rows = start._replace(state=state, logits=logits, begun=start.begun * count, windows=start.windows * count)
        texts = [text for _, text in self._rows(rows, temperature)]
        return max(texts, key=lambda text: score(text, self.config.length_penalty))

    def _rows(self, start: _Start, temperature: float) -> Iterator[tuple[int, Hypothesis]]:
        """Yield the number and the text of each row as it ends, greedy at temperature 0.

        The rows belong to one window, or each to its own, which then leaves the batch.
        """
        chance = np.random.default_rng(0)
        state, logits = start.state, start.logits.copy()
        going = list(enumerate(start.begun))
        while going:
            self._rule(logits, [text.tokens for _, text in going], [start.windows[number] for number, _ in going])
            tokens = self.choices(logits, temperature, chance)
            gains = logits[np.arange(len(going)), tokens] - _log_sums(logits)
            kept: list[tuple[int, Hypothesis]] = []
            places = []
            for place, ((number, text), token, gain) in enumerate(zip(going, tokens.tolist(), gains, strict=True)):
                ended = token == self.tokenizer.end
                longer = Hypothesis(text.tokens if ended else [*text.tokens, token], text.log_prob + float(gain))
                if ended or len(longer.tokens) >= start.windows[number].room:
                    yield number, longer
                else:
                    kept.append((number, longer))
                    places.append(place)
            if len(kept) < len(going) and kept:
                order = state.memory.keep(places) if state.windows > 1 else places
                kept = [kept[places.index(place)] for place in order]
                state = self.engine.select(state, order, min(state.windows, len(order)))
            going = kept
            if going:
                found, state = self.engine.advance(np.array([[text.tokens[-1]] for _, text in going]), state)
                logits = found[:, -1]

    def _beam(self, start: _Start, size: int) -> Iterator[tuple[int, Hypothesis]]:
        """Yield the number of each window and the best complete text that a beam search finds, as it ends."""
        wanted = round(size * (self.config.patience or 1.0))
        going = [(number, Beams(size, wanted, room)) for number, (_, room, _) in enumerate(start.windows)]
        state, logits = start.state, start.logits.copy()
        said: list[list[list[int]]] = [[[]] for _ in going]  # tokens of each row of each window
        scores = np.zeros(len(going), np.float32)
        for step in range(max(window.room for window in start.windows)):
            windows = [start.windows[number] for number, _ in going for _ in said[0]]
            self._rule(logits, [tokens for texts in said for tokens in texts], windows)
            best = _best(logits, size + 1)
            totals = np.take_along_axis(logits, best, axis=1) + (scores - _log_sums(logits))[:, None]
            rows, kept = len(said[0]), dict[int, list[BeamStep]]()
            for place, (number, beams) in enumerate(going):
                here = slice(rows * place, rows * (place + 1))
                steps = beams.extend(totals[here].tolist(), best[here].tolist(), said[place], self.tokenizer.end)
                if len(beams.complete) >= beams.wanted or step + 1 == beams.limit:
                    beams.close(steps, said[place])
                    yield number, max(beams.complete, key=lambda text: score(text, self.config.length_penalty))
                else:
                    kept[place] = in_place(steps)
            if not kept:
                return
            order = state.memory.keep(list(kept)) if len(kept) < len(going) else list(kept)
            going = [going[place] for place in order]
            chosen = [(rows * place + one.row, one) for place in order for one in kept[place]]
            said = [[[*said[place][one.row], one.token] for one in kept[place]] for place in order]
            scores = np.array([one.score for _, one in chosen], np.float32)
            state = self.engine.select(state, [row for row, _ in chosen], len(order))
            found, state = self.engine.advance(np.array([[one.token] for _, one in chosen]), state)
            logits = found[:, -1]

    @staticmethod
    def choices(logits: np.ndarray, temperature: float, chance: np.random.Generator) -> np.ndarray:
        """Return the likeliest token of each row (R, V) at temperature 0, else a sample."""
        if temperature == 0:
            return logits.argmax(axis=1)
        shares = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature).cumsum(axis=1, dtype=np.float64)
        places = chance.random(len(logits)) * shares[:, -1]
        return np.array([np.searchsorted(row, place, "right") for row, place in zip(shares, places, strict=True)])

    def _rule(self, logits: np.ndarray, texts: Sequence[Sequence[int]], windows: Sequence[_Window]) -> None:
        """Set the logits (R, V) of tokens that must not follow the texts to -inf, in place (`logit_filters`)."""
        first = self._times[0]
        logits[:, self._never] = -np.inf
        for row, text, window in zip(logits, texts, windows, strict=True):
            said = [*self._opening, *text]
            if not said:
                row[self._at_start] = -np.inf
            for begin, stop in forbidden_after(said, *self._times) if self._timed else ():
                row[begin:stop] = -np.inf
            if len(said) > 1 and said[-2] >= first and first <= said[-1] < window.until:  # a segment has begun
                row[self.tokenizer.end] = -np.inf
        if self._timed:
            logits[:, self.tokenizer.no_timestamps] = -np.inf
            likely = _log_sums(logits[:, first:]) > logits[:, :first].max(axis=1)  # all times together
            logits[likely, :first] = -np.inf


def _log_sums(logits: np.ndarray) -> np.ndarray:
    """Return log(sum(exp)) of each row (R,); -inf if all its values are."""
    peak = logits.max(axis=1)
    shift = np.where(np.isfinite(peak) & (np.abs(peak) > LARGE), peak, 0)
    powers = np.exp(logits - shift[:, None] if shift.any() else logits)
    with np.errstate(divide="ignore"):
        return shift + np.log(powers.sum(axis=1))


def _best(logits: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the largest values of each row, (R, count), in any order.

    They are among the columns with the largest maxima: `argpartition` of all values would take ten times as long.
    """
    rows, size = logits.shape
    depth = COLUMNS if size >= COLUMNS * count else 1
    width = size // depth
    whole = logits[:, : width * depth].reshape(rows, depth, width)
    columns = np.argpartition(-whole.max(axis=1), count - 1, axis=1)[:, :count]  # each has the values `width` apart
    inside = (columns[:, None] + width * np.arange(depth)[:, None]).reshape(rows, -1)
    places = np.concatenate([inside, np.arange(width * depth, size)[None].repeat(rows, axis=0)], axis=1)
    found = np.argpartition(-np.take_along_axis(logits, places, axis=1), count - 1, axis=1)[:, :count]
    return np.take_along_axis(places, found, axis=1)
