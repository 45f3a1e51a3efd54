"""Candidates of a beam search: which texts continue, which are complete, and which is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Hypothesis(NamedTuple):
    """Token ids without the end token, and their log probability with it."""

    tokens: list[int]
    log_prob: float

    @property
    def avg_logprob(self) -> float:
        """Return the mean log probability per token; the end counts as one token."""
        return self.log_prob / (len(self.tokens) + 1)


def score(text: Hypothesis, length_penalty: float | None) -> float:
    """Return the log probability per token, or, with `length_penalty`, that of `beam_search.search`."""
    length = max(1, len(text.tokens))
    return text.log_prob / (length if length_penalty is None else ((5 + length) / 6) ** length_penalty)


class BeamStep(NamedTuple):
    """One more token for a beam: its source row, counted within the utterance, the token and the new score."""

    row: int
    token: int
    score: float


def in_place(steps: Sequence[BeamStep]) -> list[BeamStep]:
    """Return the next rows in an order in which most remain in their places, so that few are copied."""
    places: dict[int, BeamStep | None] = dict.fromkeys(range(len(steps)))
    others = []
    for step in steps:
        if step.row in places and places[step.row] is None:
            places[step.row] = step
        else:
            others.append(step)
    return [step or others.pop(0) for step in places.values()]


@dataclass
class Beams:
    """The beams of one utterance: its unfinished rows and its complete texts, at most `wanted`."""

    size: int
    wanted: int
    limit: int  # tokens of a text
    rows: int = 1
    complete: list[Hypothesis] = field(default_factory=list)

    def extend(
        self, scores: list[list[float]], tokens: list[list[int]], said: Sequence[list[int]], end: int
    ) -> list[BeamStep]:
        """Return the next rows, best first, from scores and tokens (rows, size + 1) of the candidates.

        Candidates that end are complete texts if they rank above the last of the next rows.
        """
        steps = [
            BeamStep(row, token, score)
            for row, (row_scores, row_tokens) in enumerate(zip(scores, tokens, strict=True))
            for score, token in zip(row_scores, row_tokens, strict=True)
        ]
        going: list[BeamStep] = []
        for step in sorted(steps, key=lambda step: step.score, reverse=True):
            if step.token != end:
                going.append(step)
            elif len(self.complete) < self.wanted:
                self.complete.append(Hypothesis(said[step.row], step.score))
            if len(going) == self.size:
                break
        self.rows = len(going)
        return going

    def close(self, going: list[BeamStep], said: Sequence[list[int]]) -> None:
        """Add the best unfinished rows to the complete texts if there are fewer texts than beams."""
        lacking = max(0, self.size - len(self.complete))
        self.complete += [Hypothesis([*said[step.row], step.token], step.score) for step in going[:lacking]]
