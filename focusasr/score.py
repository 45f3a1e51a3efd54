"""Word and character error rates: counted by jiwer, with a bootstrap interval and aligned differences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from focusasr.settings import InputError

# jiwer, numpy, rich and whisper_normalizer are imported where they are used: the command line reads NORMALIZERS.
if TYPE_CHECKING:
    import jiwer
    import numpy as np

NORMALIZERS = ("none", "basic", "english")
RESAMPLES = 1000
INTERVAL_PERCENT = 95.0


@dataclass(frozen=True)
class Errors:
    """How one hypothesis differs from its reference, counted in words or in characters."""

    substitutions: int
    deletions: int
    insertions: int
    hits: int

    @property
    def count(self) -> int:
        """All errors: substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def words(self) -> int:
        """Length of the reference, in words (or in characters, where those were counted)."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per reference word; with an empty reference the number of insertions, as jiwer 4 defines."""
        return self.count / max(self.words, 1)


@dataclass(frozen=True)
class Score:
    """Error rates of a set of utterances, as ratios (0.05 is 5 %), and the word counts behind them."""

    wer: float
    wer_low: float
    wer_high: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    words: int
    utterances: int


@functools.cache
def normalizer(name: str) -> Callable[[str], str]:
    """Return the function that rewrites reference and hypothesis alike before they are compared.

    none: white space only. basic: Whisper's basic normalizer, that is lower case, without punctuation and without
    what stands in brackets; accents and vowel signs stay. english: Whisper's English normalizer, which also spells
    alike, writes contractions out and numbers as digits: 'one two three' becomes the single word '123', so strings of
    digits count as one word. All three return words parted by single spaces. InputError on another name.
    """
    if name == "none":
        return _single_spaces
    if name == "basic":
        from whisper_normalizer.basic import BasicTextNormalizer

        # Whisper's own default parts words at the vowel signs of Hindi, Thai and others.
        rewrite = BasicTextNormalizer(preserve_marks=True)
    elif name == "english":
        from whisper_normalizer.english import EnglishTextNormalizer

        rewrite = EnglishTextNormalizer()
    else:
        raise InputError(f"normalizer is {name!r}; wanted: {', '.join(NORMALIZERS)}")
    return lambda text: _single_spaces(rewrite(text))


def normalize(texts: Iterable[str], name: str) -> list[str]:
    """Rewrite every text by the normalizer of that name."""
    rewrite = normalizer(name)
    return [rewrite(text) for text in texts]


def _single_spaces(text: str) -> str:
    return " ".join(text.split())


def count_errors(reference: str, hypothesis: str) -> Errors:
    """Count word errors; words are whatever white space parts."""
    import jiwer

    return _errors(jiwer.process_words(_single_spaces(reference), _single_spaces(hypothesis)))


def count_character_errors(reference: str, hypothesis: str) -> Errors:
    """Count character errors; a character is a Unicode code point, and the space between words is one."""
    import jiwer

    return _errors(jiwer.process_characters(_single_spaces(reference), _single_spaces(hypothesis)))


def _errors(counted: jiwer.WordOutput | jiwer.CharacterOutput) -> Errors:
    return Errors(counted.substitutions, counted.deletions, counted.insertions, counted.hits)


def score(references: Sequence[str], hypotheses: Sequence[str], normalizer: str = "basic", seed: int = 0) -> Score:
    """Score hypotheses against references, utterance by utterance; `summarize` says how the odd cases count.

    ValueError where the two differ in number or are empty; InputError on an unknown normalizer.
    """
    pairs = list(zip(normalize(references, normalizer), normalize(hypotheses, normalizer), strict=True))
    words = [count_errors(*pair) for pair in pairs]
    characters = [count_character_errors(*pair) for pair in pairs]
    return summarize(words, characters, seed)


def summarize(words: Sequence[Errors], characters: Sequence[Errors], seed: int = 0) -> Score:
    """Add up the errors of U utterances; ValueError where there are none.

    As in jiwer 4, an utterance with an empty reference adds its insertions and no words, and where no reference has
    a word the rate is the number of insertions. The interval is the middle 95 % of the word error rates of 1000 sets
    of U utterances drawn with replacement (Bisani and Ney 2004), the same for the same seed in whatever order the
    utterances come. One utterance, or utterances all alike, give an interval without width: it cannot say more.
    """
    if not words:
        raise ValueError("no utterances to score; wanted: at least 1")
    import numpy as np

    whole, spelled = _total(words), _total(characters)
    drawn = resample_totals(np.array([(errors.count, errors.words) for errors in words]), seed)
    rates = drawn[:, 0] / np.maximum(drawn[:, 1], 1)
    margin = (100.0 - INTERVAL_PERCENT) / 2
    low, high = np.percentile(rates, [margin, 100.0 - margin])
    counts = (whole.substitutions, whole.deletions, whole.insertions, whole.words)
    return Score(whole.rate, float(low), float(high), spelled.rate, *counts, utterances=len(words))


def _total(errors: Sequence[Errors]) -> Errors:
    return Errors(
        sum(one.substitutions for one in errors),
        sum(one.deletions for one in errors),
        sum(one.insertions for one in errors),
        sum(one.hits for one in errors),
    )


def resample_totals(counts: np.ndarray, seed: int) -> np.ndarray:
    """Draw the rows of `counts` (U, K) with replacement, U at a time; return the column sums (RESAMPLES, K).

    Equal rows are drawn together, as one multinomial count: the same distribution, in memory that follows the number
    of different rows.
    """
    import numpy as np

    kinds, shares = np.unique(counts, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(counts), shares / len(counts), size=RESAMPLES)
    return draws @ kinds


def align_columns(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    """Set the words of both against each other: (reference, hypothesis, mark), each padded to one terminal width.

    The mark is S, D or I, blank for a hit; a word that the other side lacks faces as many stars as it is wide.
    """
    import jiwer

    aligned = jiwer.process_words(_single_spaces(reference), _single_spaces(hypothesis))
    said, heard = aligned.references[0], aligned.hypotheses[0]
    columns = []
    for chunk in aligned.alignments[0]:
        left = said[chunk.ref_start_idx : chunk.ref_end_idx]
        right = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        mark = "" if chunk.type == "equal" else chunk.type[0].upper()
        pairs = zip(left or [""] * len(right), right or [""] * len(left), strict=True)
        columns += [_column(word, other, mark) for word, other in pairs]
    return columns


def _column(reference: str, hypothesis: str, mark: str) -> tuple[str, str, str]:
    from rich.cells import cell_len

    width = max(cell_len(reference), cell_len(hypothesis), 1)
    cells = (reference or "*" * width, hypothesis or "*" * width, mark)
    first, second, third = (cell + " " * (width - cell_len(cell)) for cell in cells)
    return first, second, third


def align(reference: str, hypothesis: str) -> str:
    """Return REF and HYP lines, word under word, and under them a line of S, D and I where they differ."""
    columns = align_columns(reference, hypothesis)
    heads = ("REF:", "HYP:", "    ")
    lines = [" ".join([head, *(column[index] for column in columns)]) for index, head in enumerate(heads)]
    return "\n".join(line.rstrip() for line in lines if line.strip())
