"""Training batches: utterances joined, sorted by length, and padded to tensors.

Their order and content follow from (seed, epoch) alone, so that a resumed run gets the batches of an undisturbed one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from focusasr.audio.features import frame_count
from focusasr.audio.load import load
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.model.losses import IGNORED
from focusasr.runtime.console import warn
from focusasr.runtime.errors import InputError
from focusasr.training.augment import (
    NO_MASKS,
    Masks,
    Sounds,
    augment_waveform,
    change_speed,
    draw_masks,
    noise_alone,
    stack_masks,
)
from focusasr.training.dataset import Corpus
from focusasr.training_config import TrainConfig

LARGEST_GAP_SECONDS = 0.4  # silence between joined utterances
BRIEF_NOISE, BRIEF_SECONDS = 0.3, (0.05, 0.5)  # share of noise examples as short as a word, and their length
MEAN_SILENCE_SECONDS = LARGEST_GAP_SECONDS / 2  # between two utterances; the same before and after all of them


# The (corpus, utterance) pairs that one item joins, and its seconds, with MEAN_SILENCE_SECONDS for each.
Group = tuple[tuple[tuple[int, int], ...], float]


class PlannedExample(NamedTuple):
    """One training example: the (corpus, utterance) pairs that it joins, its own seed, and its place in the plan."""

    parts: tuple[tuple[int, int], ...]
    seconds: float
    seed: tuple[int, int, int]
    position: tuple[int, int]  # epoch, batch


@dataclass(eq=False)
class BatchSampler(Sampler[list[PlannedExample]]):
    """Endless batches by seconds of audio, with items of similar length, shuffled in each epoch.

    No joined item is longer than `join_seconds` or `max_seconds`, or has more tokens than `text_context` allows. Every
    item counts for at least `shortest_seconds`, the window if items are padded to one.
    """

    corpora: Sequence[Corpus]
    config: TrainConfig
    text_context: int
    first: int = 0  # batches to skip, which an earlier run has used
    shortest_seconds: float = 1.0

    def __iter__(self) -> Iterator[list[PlannedExample]]:
        passed = 0
        for epoch in itertools.count():
            batches = self.epoch(epoch)
            yield from batches[max(0, self.first - passed) :]
            passed += len(batches)

    def epoch(self, epoch: int) -> list[list[PlannedExample]]:
        """Return the batches of one epoch, the same for the same seed."""
        draw = np.random.default_rng([self.config.seed, epoch])
        groups = [group for index in range(len(self.corpora)) for group in self._groups(index, draw)]
        lengths = np.array([seconds for _, seconds in groups])
        order = np.argsort(lengths * draw.uniform(0.95, 1.05, len(lengths)), kind="stable")
        batches = self._fill([groups[index] for index in order])
        batches = [batches[index] for index in draw.permutation(len(batches))]
        numbers = itertools.count()
        return [
            [PlannedExample(*group, (self.config.seed, epoch, next(numbers)), (epoch, place)) for group in batch]
            for place, batch in enumerate(batches)
        ]

    def _groups(self, index: int, draw: np.random.Generator) -> list[Group]:
        """Return the items of one corpus: single utterances, and sequences of them joined up to a sampled length."""
        corpus = self.corpora[index]
        groups: list[Group] = []
        parts: tuple[tuple[int, int], ...] = ()
        seconds, written, goal = 0.0, 0, 0.0
        longest = min(self.config.join_seconds, self.config.max_seconds)
        for choice in _choices(corpus, draw):
            length = (corpus.utterances[choice].duration or 0.0) + MEAN_SILENCE_SECONDS
            letters = len(corpus.tokens[choice]) + 1  # with the separator or the start
            too_long = seconds + length > longest or written + letters > self.text_context
            stranger = bool(parts) and corpus.prompts[choice] != corpus.prompts[parts[0][1]]  # in another language
            if parts and (seconds >= goal or too_long or stranger):
                groups.append((parts, seconds))
                parts, seconds, written = (), 0.0, 0
            if not parts:
                goal = draw.uniform(longest * (self.shortest_seconds >= longest), longest)  # the window is full
                goal *= draw.random() < self.config.join
            parts, seconds = (*parts, (index, choice)), seconds + length
            written += letters
        return [*groups, (parts, seconds)]

    def _fill(self, groups: list[Group]) -> list[list[Group]]:
        """Cut a sequence of items into batches of at most `batch_seconds`, padding included."""
        sizes = [max(seconds, self.shortest_seconds) for _, seconds in groups]
        return [[groups[index] for index in batch] for batch in filled(sizes, self.config.batch_seconds)]


def filled(sizes: Sequence[float], most: float) -> list[list[int]]:
    """Cut a sequence of items into batches of at most a size, padding included; return their numbers."""
    batches: list[list[int]] = [[]]
    longest = 0.0
    for index, size in enumerate(sizes):
        longest = max(longest, size)
        if batches[-1] and (len(batches[-1]) + 1) * longest > most:
            batches.append([])
            longest = size
        batches[-1].append(index)
    return batches


def _choices(corpus: Corpus, draw: np.random.Generator) -> list[int]:
    """Return the utterances of one epoch, each `weight` times; of a fraction a random subset, at least one."""
    size = len(corpus.utterances)
    whole, rest = divmod(corpus.weight, 1.0)
    copies = [draw.permutation(size) for _ in range(int(whole))]
    part = draw.permutation(size)[: max(round(rest * size), 0 if whole else 1)]
    return np.concatenate([*copies, part]).tolist()


class Batch(NamedTuple):
    """Tensors for one step, of B utterances.

    Waveforms (B, N) padded with zeros, the samples of each (B,), its masks, its frames (B,) after augmentation; decoder
    input and targets (B, L).
    """

    waveforms: Tensor
    samples: Tensor
    masks: Masks
    lengths: Tensor
    tokens: Tensor
    targets: Tensor
    items: list[PlannedExample]  # the item of each row
    broken: list[str]  # errors of unreadable audio
    speechless: Tensor  # (B,), true if the audio was replaced by noise or silence

    @property
    def position(self) -> tuple[int, int]:
        """Return the epoch and the place of the batch in it."""
        return self.items[0].position

    @property
    def seconds(self) -> float:
        """Return the seconds of audio without padding; 0 if no recording could be read."""
        return float(self.samples.sum()) / SAMPLE_RATE_HZ

    @property
    def padded_frames(self) -> int:
        """Return the frames of audio with padding, which determine the memory."""
        return len(self.lengths) * self.longest

    @property
    def longest(self) -> int:
        """Return the frames of the longest row."""
        return int(self.lengths.max())

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device; copies to a GPU from pinned memory do not block the host."""
        moved = functools.partial(Tensor.to, device=device, non_blocking=device.type == "cuda")
        tensors: dict[str, Any] = {
            name: moved(value) for name, value in self._asdict().items() if isinstance(value, Tensor)
        }
        return self._replace(masks=Masks(*map(moved, self.masks)), **tensors)

    def rows(self, first: int, last: int) -> Batch:
        """Return the rows from `first` to before `last` as a batch, no wider than they need."""
        samples, targets = self.samples[first:last], self.targets[first:last]
        masks = Masks(*(part[first:last] for part in self.masks))
        used = (targets != IGNORED).any(dim=0).nonzero()  # after a prompt, whose targets are IGNORED
        width = int(used.max()) + 1 if len(used) else 1
        return Batch(
            self.waveforms[first:last, : int(samples.max())], samples, masks, self.lengths[first:last],
            self.tokens[first:last, :width], targets[:, :width], self.items[first:last], [],
            self.speechless[first:last],
        )  # fmt: skip


class Example(NamedTuple):
    """One item: waveform (N,), masks, frames, tokens of prompt and text, and errors of unreadable audio."""

    waveform: Tensor
    masks: Masks
    frames: int
    prompt: list[int]
    tokens: list[int]
    item: PlannedExample
    broken: list[str]
    speechless: bool = False


@dataclass(eq=False)
class SpeechDataset(Dataset):
    """Dataset of waveforms and tokens, augmented by each item's own seed, and padded later to `window_samples`."""

    corpora: Sequence[Corpus]
    config: TrainConfig
    mel_bands: int
    separator: list[int]  # tokens between joined texts
    sounds: Sounds = Sounds()  # noqa: RUF009
    window_samples: int | None = None

    def __getitem__(self, item: PlannedExample) -> Example:
        """Return one example, read and augmented."""
        draw = np.random.default_rng(item.seed)
        clean = item.position[0] < self.config.clean_epochs
        pieces: list[np.ndarray] = []
        tokens: list[int] = []
        broken: list[str] = []
        for corpus, index in item.parts:
            utterance = self.corpora[corpus].utterances[index]
            try:
                waveform = load(utterance.source)
            except InputError as error:
                broken.append(str(error))
                continue
            pieces.append(waveform if clean else change_speed(waveform, self.config, draw))
            tokens += (self.separator if tokens else []) + self.corpora[corpus].tokens[index]
        clean = clean or not pieces  # an unreadable item gets no synthetic audio
        waveform = join(pieces, draw, around=0.0 if clean else 0.5)
        plain, said, speechless = waveform, tokens, False
        try:
            if draw.random() < self.config.silence:
                speechless = True
                brief = draw.random() < BRIEF_NOISE
                samples = int(draw.uniform(*BRIEF_SECONDS) * SAMPLE_RATE_HZ) if brief else len(waveform)
                waveform, tokens = noise_alone(min(samples, len(waveform)), draw, self.sounds.noises), []
            if not clean:
                waveform = augment_waveform(waveform, self.config, draw, self.sounds)
        except InputError as error:  # error of a noise or room recording with a valid header
            broken.append(str(error))
            waveform, tokens, speechless = plain, said, False
        frames = frame_count(len(waveform), self.window_samples)
        masks = NO_MASKS if clean else draw_masks(frames, self.mel_bands, self.config, draw)
        first, index = item.parts[0]
        prompt = self.corpora[first].prompts[index]
        return Example(torch.from_numpy(waveform), masks, frames, prompt, tokens, item, broken, speechless)


def join(pieces: Sequence[np.ndarray], draw: np.random.Generator, around: float = 0.0) -> np.ndarray:
    """Return the waveforms one after the other, with random silences up to 0.4 s between them.

    With probability `around` there is also silence before and after them: recordings start and end with silence or
    without, and a model trained on one kind only fails on the other.
    """
    parts = [_silence(draw, around)]
    for index, piece in enumerate(pieces):
        parts += [piece, _silence(draw, 1.0 if index < len(pieces) - 1 else around)]
    return np.concatenate(parts).astype(np.float32)


def _silence(draw: np.random.Generator, share: float) -> np.ndarray:
    """Return digital silence of a random length with this probability, else nothing."""
    seconds = draw.uniform(0, LARGEST_GAP_SECONDS)
    return np.zeros(int(seconds * SAMPLE_RATE_HZ) if draw.random() < share else 0, np.float32)


def collate(examples: Sequence[Example], end: int) -> Batch:
    """Pad examples to one batch; decoder input starts with a prompt, which is no target, and targets end with `end`."""
    inputs = [torch.tensor([*example.prompt, *example.tokens]) for example in examples]
    targets = [torch.tensor([IGNORED] * (len(e.prompt) - 1) + [*e.tokens, end]) for e in examples]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    return Batch(
        pad([example.waveform for example in examples]),
        torch.tensor([len(example.waveform) for example in examples]),
        stack_masks([example.masks for example in examples]),
        torch.tensor([example.frames for example in examples]),
        pad(inputs, padding_value=end),
        pad(targets, padding_value=IGNORED),
        [example.item for example in examples],
        [line for example in examples for line in example.broken],
        torch.tensor([example.speechless for example in examples]),
    )


def with_possible_workers(settings: TrainConfig) -> TrainConfig:
    """Return settings without workers if the machine has no shared memory for them."""
    if settings.workers:
        try:
            torch.multiprocessing.get_context("spawn").Lock()
        except OSError as error:
            warn(f"focusasr: no shared memory ({error.strerror}); audio is read in the training process, --workers 0")
            return dataclasses.replace(settings, workers=0)
    return settings


def begin_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer handles Ctrl-C and ends its workers
