"""Training data: which utterances are used, how they are joined, batched by length and turned into tensors.

The order of everything follows from (seed, epoch) alone, so that a resumed run sees what it would have seen.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from focusasr import audio
from focusasr.augment import augment_mel, augment_waveform, change_speed, noise_alone
from focusasr.config import SAMPLE_RATE_HZ, ModelConfig, TrainConfig
from focusasr.features import log_mel, stack
from focusasr.manifest import Utterance, read_manifest
from focusasr.model import IGNORED
from focusasr.settings import InputError
from focusasr.tokenizer import Tokenizer

BAD_LINE = "bad line in the manifest"
UNREADABLE = frozenset(("no such audio file", "audio cannot be read", BAD_LINE))
LARGEST_GAP_SECONDS = 0.4  # silence between joined utterances


@dataclass(frozen=True)
class Corpus:
    """The usable utterances of one manifest, with how often each is seen per epoch."""

    name: str
    weight: float
    utterances: list[Utterance]
    tokens: list[list[int]]

    @property
    def seconds(self) -> float:
        """Return the length of all utterances together."""
        return sum(utterance.duration or 0.0 for utterance in self.utterances)


@dataclass
class Findings:
    """What was left out of training and why: reason → the utterances' places."""

    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def note(self, reason: str, utterance: Utterance) -> None:
        """Count one utterance under a reason."""
        self.left_out[reason].append(str(utterance.audio))

    def unreadable(self) -> bool:
        """Return whether audio was missing or broken, which is a fault and no choice."""
        return not UNREADABLE.isdisjoint(self.left_out)

    def lines(self) -> list[str]:
        """Return one line per reason, with the count and the first example."""
        return [
            f"left out {len(places)} ({reason}), such as {places[0]}"
            for reason, places in self.left_out.items()
            if places
        ]


def parse_manifest_option(option: str) -> tuple[Path, float]:
    """Split PATH or PATH=WEIGHT; the weight says how often each utterance is seen per epoch."""
    path, equals, weight = option.rpartition("=")
    if not equals or Path(option).exists():
        return Path(option), 1.0
    try:
        number = float(weight)
    except ValueError:
        return Path(option), 1.0
    if not 0 < number < 1000:
        raise InputError(f"manifest {option!r}: the weight is {weight}; wanted: above 0 and below 1000")
    return Path(path), number


def read_texts(options: Sequence[str]) -> list[str]:
    """Return every text of the manifests, for learning a tokenizer."""
    paths = [parse_manifest_option(option)[0] for option in options]
    bad: list[str] = []  # told by read_corpus
    return [utterance.text for path in paths for utterance in read_manifest(path, bad.append)]


def read_corpus(option: str, tokenizer: Tokenizer, model: ModelConfig, max_seconds: float, found: Findings) -> Corpus:
    """Read one manifest for training; what cannot be used is noted in `found` with the reason."""
    path, weight = parse_manifest_option(option)
    kept, tokens = [], []
    for utterance in read_manifest(path, lambda line: found.left_out[BAD_LINE].append(line)):
        ids = tokenizer.encode(utterance.text)
        try:
            utterance = _with_duration(utterance)
            reason = _refusal(utterance, ids, model, max_seconds)
            if reason is None and len(ids) + len(tokenizer.prompt) > model.text_context:
                reason = f"text longer than text_context {model.text_context}"
        except InputError:
            reason = "audio cannot be read"
        if reason:
            found.note(reason, utterance)
        else:
            kept.append(utterance)
            tokens.append(ids)
    return Corpus(str(path), weight, kept, tokens)


def _with_duration(utterance: Utterance) -> Utterance:
    """Return the utterance with its length, decoded where the header does not know; InputError where that fails."""
    if utterance.duration is not None or not utterance.audio.is_file():
        return utterance
    seconds = audio.probe_seconds(utterance.audio)
    if seconds is None:
        seconds = len(audio.load(utterance.audio)) / SAMPLE_RATE_HZ
    return dataclasses.replace(utterance, duration=max(0.0, seconds - utterance.offset))


def _refusal(utterance: Utterance, ids: list[int], model: ModelConfig, max_seconds: float) -> str | None:
    """Return why an utterance cannot be trained on, or None."""
    seconds = utterance.duration or 0.0
    repeats = sum(a == b for a, b in itertools.pairwise(ids))
    if not utterance.audio.is_file():
        return "no such audio file"
    if not ids:
        return "empty text"
    if seconds > max_seconds:
        return f"longer than max_seconds {max_seconds:g}"
    if model.ctc and seconds < (len(ids) + repeats) * model.step_seconds:
        return "too short for its text"
    return None


Group = tuple[tuple[tuple[int, int], ...], float]  # what one item joins, (corpus, utterance) pairs, and its seconds


class Item(NamedTuple):
    """One training example: (corpus, utterance) pairs that are joined, its own seed, and its place in the plan."""

    parts: tuple[tuple[int, int], ...]
    seconds: float
    seed: tuple[int, int, int]
    position: tuple[int, int]  # epoch, batch


class Plan(Sampler[list[Item]]):
    """Endless batches of items, by seconds of audio, similar lengths together, shuffled anew each epoch.

    No item made by joining is longer than `join_seconds`, or has more tokens than `text_context` has room for.
    Every item counts for at least `shortest_seconds`, the window where items are padded to one.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        config: TrainConfig,
        text_context: int,
        first: int = 0,
        shortest_seconds: float = 1.0,
    ) -> None:
        self.corpora = corpora
        self.shortest_seconds = shortest_seconds
        self.config = config
        self.text_context = text_context
        self.first = first  # batches to pass over, which an earlier run has seen

    def __iter__(self) -> Iterator[list[Item]]:
        passed = 0
        for epoch in itertools.count():
            batches = self.epoch(epoch)
            yield from batches[max(0, self.first - passed) :]
            passed += len(batches)

    def epoch(self, epoch: int) -> list[list[Item]]:
        """Return the batches of one epoch, the same for the same seed."""
        draw = np.random.default_rng([self.config.seed, epoch])
        groups = [group for index in range(len(self.corpora)) for group in self._groups(index, draw)]
        lengths = np.array([seconds for _, seconds in groups])
        order = np.argsort(lengths * draw.uniform(0.9, 1.1, len(lengths)), kind="stable")
        batches = self._fill([groups[index] for index in order])
        batches = [batches[index] for index in draw.permutation(len(batches))]
        items, count = [], 0
        for place, batch in enumerate(batches):
            items.append(
                [
                    Item(group[0], group[1], (self.config.seed, epoch, count + n), (epoch, place))
                    for n, group in enumerate(batch)
                ]
            )
            count += len(batch)
        return items

    def _groups(self, index: int, draw: np.random.Generator) -> list[Group]:
        """Return the items of one corpus: single utterances, and runs of them joined up to a drawn length."""
        corpus = self.corpora[index]
        groups: list[Group] = []
        parts: tuple[tuple[int, int], ...] = ()
        seconds, written, goal = 0.0, 0, 0.0
        for choice in _choices(corpus, draw):
            length = corpus.utterances[choice].duration or 0.0
            letters = len(corpus.tokens[choice]) + 1  # with the separator or the start
            too_long = seconds + length > self.config.join_seconds or written + letters > self.text_context
            if parts and (seconds >= goal or too_long):
                groups.append((parts, seconds))
                parts, seconds, written = (), 0.0, 0
            if not parts:
                goal = draw.uniform(0, self.config.join_seconds) if draw.random() < self.config.join else 0.0
            parts, seconds, written = (*parts, (index, choice)), seconds + length, written + letters
        return [*groups, (parts, seconds)]

    def _fill(self, groups: list[Group]) -> list[list[Group]]:
        """Cut a row of items into batches, none with more than `batch_seconds`, padding included."""
        batches: list[list[Group]] = [[]]
        longest = 0.0
        for group in groups:
            longest = max(longest, group[1], self.shortest_seconds)
            if batches[-1] and (len(batches[-1]) + 1) * longest > self.config.batch_seconds:
                batches.append([])
                longest = max(group[1], self.shortest_seconds)
            batches[-1].append(group)
        return batches


def _choices(corpus: Corpus, draw: np.random.Generator) -> list[int]:
    """Return the utterances of one epoch, each `weight` times; of a weight's fraction a drawn part, at least one."""
    size = len(corpus.utterances)
    whole, rest = divmod(corpus.weight, 1.0)
    copies = [draw.permutation(size) for _ in range(int(whole))]
    part = draw.permutation(size)[: max(round(rest * size), 0 if whole else 1)]
    return np.concatenate([*copies, part]).tolist()


class Batch(NamedTuple):
    """Tensors for one step: mel (B, F, M), lengths (B,) in frames, decoder input and targets (B, L)."""

    mel: Tensor
    lengths: Tensor
    tokens: Tensor
    targets: Tensor
    position: tuple[int, int]
    broken: list[str]  # what could not be read

    @property
    def seconds(self) -> float:
        """Return the seconds of audio, padding not counted."""
        return float(self.lengths.sum()) / 100.0


class Examples(Dataset):
    """Items to features and tokens, augmented by the item's own seed; padded to `window_samples` where there is one."""

    def __init__(
        self,
        corpora: Sequence[Corpus],
        config: TrainConfig,
        mel_bands: int,
        separator: list[int],
        window_samples: int | None = None,
    ) -> None:
        self.window_samples = window_samples
        self.corpora = corpora
        self.config = config
        self.mel_bands = mel_bands
        self.separator = separator  # the tokens between joined texts

    def __getitem__(self, item: Item) -> tuple[Tensor, list[int], Item, list[str]]:
        """Return mel (F, M), token ids, the item, and what could not be read."""
        draw = np.random.default_rng(item.seed)
        clean = item.position[0] < self.config.clean_epochs
        pieces: list[np.ndarray] = []
        tokens: list[int] = []
        broken: list[str] = []
        for corpus, index in item.parts:
            utterance = self.corpora[corpus].utterances[index]
            try:
                waveform = audio.load(audio.Source(str(utterance.audio), utterance.offset, utterance.duration))
            except InputError as error:
                broken.append(str(error))
                continue
            pieces.append(waveform if clean else change_speed(waveform, self.config, draw))
            tokens += (self.separator if tokens else []) + self.corpora[corpus].tokens[index]
        waveform = join(pieces, draw, around=0.0 if clean else 0.5)
        if draw.random() < self.config.silence:
            waveform, tokens = noise_alone(len(waveform), draw), []
        if not clean:
            waveform = augment_waveform(waveform, self.config, draw)
        mel = log_mel(torch.from_numpy(waveform), self.mel_bands, self.window_samples)
        return mel if clean else augment_mel(mel, self.config, draw), tokens, item, broken


def join(pieces: Sequence[np.ndarray], draw: np.random.Generator, around: float = 0.0) -> np.ndarray:
    """Return the waveforms one after the other, with drawn silences up to 0.4 s between them.

    In the share `around` of the cases a silence also comes before them, and behind them: recordings begin and end with
    silence or without, and a model that met only one kind stumbles over the other.
    """
    parts = [_silence(draw, around)]
    for index, piece in enumerate(pieces):
        parts += [piece, _silence(draw, 1.0 if index < len(pieces) - 1 else around)]
    return np.concatenate(parts).astype(np.float32)


def _silence(draw: np.random.Generator, share: float) -> np.ndarray:
    """Return digital silence of a drawn length, in this share of the cases, else nothing."""
    seconds = draw.uniform(0, LARGEST_GAP_SECONDS)
    return np.zeros(int(seconds * SAMPLE_RATE_HZ) if draw.random() < share else 0, np.float32)


def collate(examples: Sequence[tuple[Tensor, list[int], Item, list[str]]], prompt: Sequence[int], end: int) -> Batch:
    """Pad examples to one batch; decoder input begins with `prompt`, which is no target, and targets end with `end`."""
    mel, lengths = stack([example[0] for example in examples])
    texts = [torch.tensor(example[1], dtype=torch.long) for example in examples]
    inputs = [torch.cat((torch.tensor(prompt), text)) for text in texts]
    given = torch.full((len(prompt) - 1,), IGNORED)
    targets = [torch.cat((given, text, torch.tensor([end]))) for text in texts]
    pad = torch.nn.utils.rnn.pad_sequence
    return Batch(
        mel, lengths, pad(inputs, batch_first=True, padding_value=end),
        pad(targets, batch_first=True, padding_value=IGNORED), examples[0][2].position,
        [line for example in examples for line in example[3]],
    )  # fmt: skip
