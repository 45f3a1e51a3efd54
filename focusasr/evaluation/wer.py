"""Word and character error rates with bootstrap intervals, and aligned differences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from focusasr.evaluation.bootstrap import Interval, group_totals, percentile_interval, resample_totals
from focusasr.runtime.errors import InputError

if TYPE_CHECKING:
    import jiwer


NORMALIZERS = ("none", "basic", "english")
BOUNDS = {"": "value", "_low": "low", "_high": "high"}  # endings of a rate's keys in JSON


@dataclass(frozen=True)
class Errors:
    """The differences of one hypothesis from its reference, counted in words or in characters by jiwer."""

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
        """Length of the reference in words, or in characters if those were counted."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors per reference word; for an empty reference the number of insertions, as in jiwer 4."""
        return self.count / max(self.words, 1)


@dataclass(frozen=True)
class Score:
    """Error rates of a set of utterances, as ratios (0.05 is 5 %), each with its 95 % interval, and the counts.

    `rates` has wer, cer, ser (the share of utterances with any error), and substitution_rate, deletion_rate and
    insertion_rate per reference word. `unit` is the resampling unit of the intervals, utterance or speaker, and `drawn`
    its count; there are no bounds if that is one.
    """

    rates: dict[str, Interval]
    substitutions: int
    deletions: int
    insertions: int
    words: int
    wrong: int
    utterances: int
    unit: str
    drawn: int

    @property
    def wer(self) -> float:
        """The word error rate."""
        return self.rates["wer"].value

    @property
    def cer(self) -> float:
        """The character error rate."""
        return self.rates["cer"].value

    def to_json(self) -> dict[str, Any]:
        """Return the rates with their bounds, as wer, wer_low and wer_high, and the counts."""
        rates = {name + end: getattr(rate, key) for name, rate in self.rates.items() for end, key in BOUNDS.items()}
        return rates | {name: value for name, value in vars(self).items() if name != "rates"}

    @classmethod
    def from_json(cls, figures: dict[str, Any]) -> Score:
        """Return the score of `to_json`."""
        rates = {name: Interval(*(figures[name + end] for end in BOUNDS)) for name in RATES}
        return cls(rates, **{one.name: figures[one.name] for one in fields(cls) if one.name != "rates"})


@functools.cache
def normalizer(name: str) -> Callable[[str], str]:
    """Return the function that rewrites reference and hypothesis alike before they are compared.

    none: white space only. basic: Whisper's basic normalizer: lower case, without punctuation and without text in
    brackets; accents and vowel signs are kept. english: Whisper's English normalizer, which also unifies spellings,
    expands contractions and writes numbers as digits: 'one two three' becomes the single word '123', so strings of
    digits count as one word. All three return words separated by single spaces. InputError for another name.
    """
    if name == "none":
        return _single_spaces
    if name == "basic":
        from whisper_normalizer.basic import BasicTextNormalizer

        # Whisper's own default splits words at the vowel signs of Hindi, Thai and others.
        rewrite = BasicTextNormalizer(preserve_marks=True)
    elif name == "english":
        from whisper_normalizer.english import EnglishTextNormalizer

        rewrite = EnglishTextNormalizer()
    else:
        raise InputError(f"normalizer is {name!r}; expected: {', '.join(NORMALIZERS)}")
    return lambda text: _single_spaces(rewrite(text))


def normalize(texts: Iterable[str], name: str) -> list[str]:
    """Rewrite every text by the normalizer of that name."""
    rewrite = normalizer(name)
    return [rewrite(text) for text in texts]


def _single_spaces(text: str) -> str:
    return " ".join(text.split())


def count_errors(reference: str, hypothesis: str) -> Errors:
    """Count word errors; words are separated by white space."""
    import jiwer

    return _errors(jiwer.process_words(_single_spaces(reference), _single_spaces(hypothesis)))


def count_character_errors(reference: str, hypothesis: str) -> Errors:
    """Count character errors; a character is a Unicode code point, including the space between words."""
    import jiwer

    return _errors(jiwer.process_characters(_single_spaces(reference), _single_spaces(hypothesis)))


def _errors(counted: jiwer.WordOutput | jiwer.CharacterOutput) -> Errors:
    return Errors(counted.substitutions, counted.deletions, counted.insertions, counted.hits)


def score(references: Sequence[str], hypotheses: Sequence[str], normalizer: str = "basic", seed: int = 0) -> Score:
    """Score hypotheses against references, utterance by utterance; `summarize` documents special cases.

    ValueError if the two differ in number or are empty; InputError for an unknown normalizer.
    """
    pairs = list(zip(normalize(references, normalizer), normalize(hypotheses, normalizer), strict=True))
    words = [count_errors(*pair) for pair in pairs]
    characters = [count_character_errors(*pair) for pair in pairs]
    return summarize(words, characters, seed)


def summarize(
    words: Sequence[Errors], characters: Sequence[Errors], seed: int = 0, groups: Sequence[str] | None = None
) -> Score:
    """Add up the errors of U utterances; ValueError if there are none.

    As in jiwer 4, an utterance with an empty reference adds its insertions and no words, and without any reference word
    the rate is the number of insertions. The interval is the middle 95 % of the rates of 1000 sets of U utterances
    sampled with replacement (Bisani and Ney 2004); it depends on the seed and not on their order. With `groups` (the
    speaker of each utterance) whole speakers are sampled. Sets without a word are ignored. One utterance or speaker
    gives no interval; identical utterances give one of width 0.
    """
    if not words:
        raise ValueError("no utterances to score; expected: at least 1")
    import numpy as np

    counts = np.array([_counts(*pair) for pair in zip(words, characters, strict=True)])
    counted = group_totals(counts, groups)
    whole, drawn = counts.sum(axis=0, keepdims=True), resample_totals(counted, seed)
    figures = {}
    for name, (above, below) in RATES.items():
        kept = drawn if not whole[0, below] else drawn[drawn[:, below] > 0]  # a sample without a word has no rate
        value, rates = (table[:, above] / np.maximum(table[:, below], 1) for table in (whole, kept))
        figures[name] = Interval(float(value[0]), *percentile_interval(rates))
    names = ("substitutions", "deletions", "insertions", "words", "wrong", "utterances")
    totals = {name: int(whole[0, _COLUMNS.index(name)]) for name in names}
    unit = "utterance" if groups is None else "speaker"
    return Score(figures, **totals, unit=unit, drawn=len(counted))


_COLUMNS = (
    *("substitutions", "deletions", "insertions", "errors", "words", "wrong", "utterances"),
    *("character errors", "characters"),
)
RATES = {  # a rate is the first column divided by the second
    name: (_COLUMNS.index(above), _COLUMNS.index(below))
    for name, above, below in (
        ("wer", "errors", "words"),
        ("cer", "character errors", "characters"),
        ("ser", "wrong", "utterances"),
        ("substitution_rate", "substitutions", "words"),
        ("deletion_rate", "deletions", "words"),
        ("insertion_rate", "insertions", "words"),
    )
}


def _counts(words: Errors, characters: Errors) -> tuple[int, ...]:
    kinds = (words.substitutions, words.deletions, words.insertions)
    return (*kinds, words.count, words.words, int(words.count > 0), 1, characters.count, characters.words)


def align_words(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    """Align the words of both: (reference, hypothesis, mark), the mark S, D, I or empty for a hit.

    A missing word is the empty string.
    """
    import jiwer

    aligned = jiwer.process_words(_single_spaces(reference), _single_spaces(hypothesis))
    said, heard = aligned.references[0], aligned.hypotheses[0]
    pairs = []
    for chunk in aligned.alignments[0]:
        left = said[chunk.ref_start_idx : chunk.ref_end_idx]
        right = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        mark = "" if chunk.type == "equal" else chunk.type[0].upper()
        sides = zip(left or [""] * len(right), right or [""] * len(left), strict=True)
        pairs += [(word, other, mark) for word, other in sides]
    return pairs


def align_columns(reference: str, hypothesis: str) -> list[tuple[str, str, str]]:
    """Return `align_words` with each column padded to one terminal width; a missing word is a row of stars.

    The mark is blank for a hit.
    """
    return [_column(*triple) for triple in align_words(reference, hypothesis)]


def _column(reference: str, hypothesis: str, mark: str) -> tuple[str, str, str]:
    from rich.cells import cell_len

    width = max(cell_len(reference), cell_len(hypothesis), 1)
    cells = (reference or "*" * width, hypothesis or "*" * width, mark)
    first, second, third = (cell + " " * (width - cell_len(cell)) for cell in cells)
    return first, second, third


def align(reference: str, hypothesis: str) -> str:
    """Return REF and HYP lines with aligned words, and a line of S, D and I under their differences."""
    columns = align_columns(reference, hypothesis)
    heads = ("REF:", "HYP:", "    ")
    lines = [" ".join([head, *(column[index] for column in columns)]) for index, head in enumerate(heads)]
    return "\n".join(line.rstrip() for line in lines if line.strip())
