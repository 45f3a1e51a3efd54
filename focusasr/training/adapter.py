"""Adaptation of a Whisper model to audio of its own length.

The teacher is the same model on padded audio, and the student starts as its copy. The student encodes each recording
without the padding to 30 s, and its decoder states are trained toward those of the padded teacher over the teacher's
own greedy text, so that recordings need no transcripts. Audio replaced by noise or silence, and manifests with
transcripts, are trained with cross-entropy instead.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from focusasr.audio.features import log_mels
from focusasr.audio.load import length_seconds
from focusasr.audio.source import find_sources
from focusasr.config import SAMPLE_RATE_HZ, ModelConfig
from focusasr.data.manifest import Utterance, read_utterances
from focusasr.decoding.whisper_decoder import WhisperDecoder
from focusasr.decoding.whisper_prompts import has_failed
from focusasr.evaluation.wer import Score
from focusasr.model.checkpoint import Checkpoint
from focusasr.model.engine import Engine
from focusasr.model.losses import IGNORED, Size
from focusasr.model.transformer import EncoderOutput, Model
from focusasr.runtime.errors import InputError
from focusasr.text.whisper_tokenizer import WhisperTokenizer
from focusasr.training.batching import Batch, PlannedExample
from focusasr.training.dataset import LEAST_SECONDS, Corpus, Findings, parse_manifest_option
from focusasr.training.run import TrainingRun
from focusasr.training.step import TrainStep
from focusasr.training.trainer import Trainer
from focusasr.training.validation import Measured, overall_wer
from focusasr.training_config import AdaptConfig, TrainConfig
from focusasr.whisper_config import SECONDS_PER_TIMESTAMP, LongformConfig, SearchConfig

SHORTEST_CUT_SECONDS = 0.3
POSITIONS_COMPARED = 96  # sampled per batch for the comparison of whole output distributions, which is costly
PADDED = "padded"  # suffix of a dev set that is measured with padding to the window
ONE_SEGMENT_SECONDS = 3.0  # longest recording whose text is surely one segment
GREEDY = SearchConfig(beam_size=None, best_of=None, temperature_increment_on_fallback=None)


Texts = dict[int, list[int]]  # tokens by row


class GreedyText(NamedTuple):
    """The tokens of a prompt, and those of a text without the end."""

    prompt: list[int]
    tokens: list[int]


def greedy_texts(
    engine: Engine, tokenizer: WhisperTokenizer, memory: EncoderOutput, timestamps: bool
) -> list[GreedyText | None]:
    """Return the greedy text of each row of an encoding; None if it fails Whisper's own tests: a loop, or unlikely."""
    reader = WhisperDecoder(engine, tokenizer, GREEDY, LongformConfig())
    prompts = [reader.prompt(timestamps=timestamps)] * len(memory.states)
    if tokenizer.whisper.multilingual and tokenizer.policy.language is None:
        spoken = [tokenizer.speaking(language) for language in reader.languages(memory)]
        prompts = [[*one.sot_sequence, *([] if timestamps else [one.no_timestamps])] for one in spoken]
    answers = reader.answers(memory, prompts, timestamps)
    return [
        None if has_failed(answer, GREEDY) else GreedyText(prompt, answer.tokens)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


class Lesson(NamedTuple):
    """Decoder input and targets of one batch; rows in the batch's order."""

    tokens: Tensor  # (B, L)
    targets: Tensor  # (B, L), IGNORED for positions that the teacher's states train
    taught: Tensor  # (B, L), true for those positions
    memory: EncoderOutput | None  # the teacher's, of the rows that it trains
    rows: Tensor  # (R,), those rows


class TaughtStep(TrainStep):
    """One exact optimizer step with a teacher; `chosen` are the numbers of the corpora that are treated differently."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: Model,
        settings: TrainConfig,
        tokenizer: WhisperTokenizer,
        teacher: Model,
        chosen: frozenset[int],
    ) -> None:
        super().__init__(accelerator, model, settings, tokenizer.blank)
        self.tokenizer = tokenizer
        self.teacher = teacher.to(accelerator.device).requires_grad_(False).eval()
        self.engine = Engine(self.teacher)
        self.chosen = chosen


class AdaptStep(TaughtStep):
    """One exact optimizer step of an adaptation; the chosen corpora have transcripts."""

    def __init__(self, accelerator: Accelerator, model: Model, settings: AdaptConfig, *others: Any) -> None:
        super().__init__(accelerator, model, settings, *others)
        self.adapt = settings
        model.decoder.token_embedding.requires_grad_(False)  # shared by both, so that outputs are comparable

    def _backward(self, piece: Batch, whole: Size) -> tuple[list[float], list[tuple[float, PlannedExample]]]:
        there, config = piece.to(self.accelerator.device), self.model.config
        labelled = torch.tensor([item.parts[0][0] in self.chosen for item in piece.items])
        free = ~labelled & ~piece.speechless
        samples = self._cut(piece.samples, free)
        waveforms = there.waveforms * (torch.arange(there.waveforms.shape[1]) < samples[:, None]).to(there.waveforms)
        mel, lengths = log_mels(waveforms, samples.to(waveforms.device), config.mel_bands)
        lesson = self._lesson(piece, mel, free)
        mel, lengths = self._heard(mel, lengths)
        with self.accelerator.autocast():
            memory = self.model.encode(mel, lengths)
            found = self.model.decoder.hidden(lesson.tokens, memory)
            rows, parts = self._losses(found, lesson)
        total = rows.sum() / whole.utterances
        self.accelerator.backward(total)
        spelled = float(parts[1].sum()) / whole.utterances
        figures = [float(total.detach()), float(total.detach()), spelled, self._span(memory, whole)]
        pairs = list(zip(rows.tolist(), piece.items, strict=True))
        return [*figures, float(samples.sum()) / SAMPLE_RATE_HZ, mel.shape[0] * mel.shape[1] / 100], pairs

    def _span(self, memory: EncoderOutput, whole: Size) -> float:
        return (
            sum(float(scale.detach().mean(dim=1).sum()) for scale in memory.spans)
            / max(1, len(memory.spans))
            / whole.utterances
        )

    def _cut(self, samples: Tensor, free: Tensor) -> Tensor:
        """Return the samples (B,) of each row, some of the `free` ones truncated at random."""
        shortest = SHORTEST_CUT_SECONDS * SAMPLE_RATE_HZ
        cut = (shortest + torch.rand(len(samples)) * (samples - shortest).clamp(min=0)).long()
        return torch.where(free & (torch.rand(len(samples)) < self.adapt.cut), cut.minimum(samples), samples)

    def _heard(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's input: mel with a tail of sampled length in each row, or padded to the window."""
        config, stride = self.model.config, self.model.config.strides[0] * self.model.config.strides[1]
        window = config.audio_context * stride
        tails = torch.randint(0, self.adapt.longest_tail + 1, (len(lengths),)).to(lengths.device)
        if float(torch.rand(())) < self.adapt.padded:
            lengths = torch.full_like(lengths, window)
        else:
            lengths = ((lengths + tails + stride - 1) // stride * stride).clamp(max=window)
        longest = int(lengths.max())
        return F.pad(mel, (0, 0, 0, max(0, longest - mel.shape[1])))[:, :longest], lengths

    @torch.no_grad()
    def _lesson(self, piece: Batch, mel: Tensor, free: Tensor) -> Lesson:
        """Return decoder input and targets: the teacher's greedy texts, those of --texts, or only the end token."""
        timestamps = float(torch.rand(())) < self.adapt.timestamps
        rows = free.nonzero().flatten().to(mel.device)
        memory, texts = self._taught(piece, mel, rows, timestamps) if len(rows) else (None, {})
        tokens, targets = [], []
        for row in range(len(piece.items)):
            if row in texts:
                read, wanted = texts[row], [IGNORED] * len(texts[row])
            elif bool(piece.speechless[row]):
                read, wanted = self._silence(timestamps)
            elif bool(free[row]):  # the teacher's text failed
                read, wanted = self.tokenizer.sot_sequence, [IGNORED] * len(self.tokenizer.sot_sequence)
            else:
                read, wanted = self._written(piece, row, timestamps)
            tokens.append(torch.tensor(read))
            targets.append(torch.tensor(wanted))
        pad = torch.nn.utils.rnn.pad_sequence
        device = mel.device
        kept = torch.tensor(list(texts), device=device, dtype=torch.long)
        if memory is not None and len(kept) < len(rows):
            places = {int(row): place for place, row in enumerate(rows.tolist())}
            memory = memory.select([places[int(row)] for row in kept.tolist()]) if len(kept) else None
        taught = pad([torch.full((len(one),), row in texts) for row, one in enumerate(tokens)], batch_first=True)
        return Lesson(
            pad(tokens, batch_first=True, padding_value=self.tokenizer.end).to(device),
            pad(targets, batch_first=True, padding_value=IGNORED).to(device),
            taught.to(device), memory, kept,
        )  # fmt: skip

    def _taught(
        self, piece: Batch, mel: Tensor, rows: Tensor, timestamps: bool
    ) -> tuple[EncoderOutput, dict[int, list[int]]]:
        """Return the teacher's encoding of some rows, padded to its window, and its greedy tokens by row.

        Rows whose text fails Whisper's own tests (a loop, an unlikely text) are left out.
        """
        window = self.teacher.config.input_frames(mel.shape[1])
        padded = F.pad(mel[rows], (0, 0, 0, window - mel.shape[1]))
        memory = self.teacher.encode(padded, torch.full((len(rows),), window, device=mel.device))
        answers = greedy_texts(self.engine, self.tokenizer, memory, timestamps)
        there = zip(rows.tolist(), answers, strict=True)
        return memory, {row: [*text.prompt, *text.tokens, self.tokenizer.end] for row, text in there if text}

    def _written(self, piece: Batch, row: int, timestamps: bool) -> tuple[list[int], list[int]]:
        """Return decoder input and targets of a transcript, that of a short recording between timestamps if requested.

        Others have none, also joined ones: a model that reads no times between parts of a text would write none.
        """
        wanted = [token for token in piece.targets[row].tolist() if token != IGNORED]
        start = int((piece.targets[row] != IGNORED).nonzero()[0]) + 1  # length of the prompt
        prompt = piece.tokens[row, :start].tolist()
        seconds = float(piece.samples[row]) / SAMPLE_RATE_HZ
        if timestamps and len(piece.items[row].parts) == 1 and seconds <= ONE_SEGMENT_SECONDS:
            begin = self.tokenizer.timestamp_begin
            prompt = [token for token in prompt if token != self.tokenizer.no_timestamps]
            wanted = [begin, *wanted[:-1], begin + round(seconds / SECONDS_PER_TIMESTAMP), wanted[-1]]
        return [*prompt, *wanted[:-1]], [*[IGNORED] * (len(prompt) - 1), *wanted]

    def _silence(self, timestamps: bool) -> tuple[list[int], list[int]]:
        """Return decoder input and targets without speech: "no speech" at the start, then the end."""
        tokenizer = self.tokenizer
        start = tokenizer.sot_sequence
        last = tokenizer.timestamp_begin if timestamps else tokenizer.no_timestamps
        wanted = [tokenizer.no_speech, *[IGNORED] * (len(start) - 1), tokenizer.end]
        return [*start, last], wanted

    def _losses(self, found: Sequence[Tensor], lesson: Lesson) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return each row's loss (B,), and its parts: the error of states and divergence, and the cross-entropy."""
        embedding = self.teacher.decoder.token_embedding.weight
        teaching = 0.0 * found[-1].float().sum(dim=(1, 2))  # has a gradient, also if no row has a target
        if lesson.memory is not None:
            with torch.no_grad():
                wanted = self.teacher.decoder.hidden(lesson.tokens[lesson.rows], lesson.memory)
            mask = lesson.taught[lesson.rows].float()
            mine = [states[lesson.rows] for states in found]
            teaching = teaching.index_add(0, lesson.rows, self._apart(mine, wanted, mask, embedding))
        there = lesson.targets != IGNORED
        spelled = torch.zeros_like(teaching)
        if bool(there.any()):
            logits = (found[-1][there] @ embedding.T).float()
            losses = F.cross_entropy(
                logits, lesson.targets[there], reduction="none", label_smoothing=self.settings.label_smoothing
            )
            owners = there.nonzero()[:, 0]
            spelled = spelled.index_add(0, owners, losses) / there.sum(dim=1).clamp(min=1)
        return teaching + self.adapt.text_weight * spelled, (teaching.detach(), spelled.detach())

    def _apart(self, found: Sequence[Tensor], wanted: Sequence[Tensor], mask: Tensor, embedding: Tensor) -> Tensor:
        """Return the distance of the student's states from the teacher's for each row, (R,)."""
        spoken = mask.sum(dim=1)
        error = torch.zeros_like(spoken)
        for mine, theirs in zip(found, wanted, strict=True):
            scale = (theirs.square().mean(dim=-1) * mask).sum() / mask.sum()
            error = error + ((mine.float() - theirs.float()).square().mean(dim=-1) * mask).sum(dim=1) / spoken / scale
        places = mask.nonzero()
        chosen = places[torch.randperm(len(places))[:POSITIONS_COMPARED].to(places.device)]
        picked = chosen[:, 0], chosen[:, 1]
        mine, theirs = ((states[-1][picked] @ embedding.T).float().log_softmax(-1) for states in (found, wanted))
        apart = F.kl_div(mine, theirs, log_target=True, reduction="none").sum(dim=-1)
        counts = torch.zeros_like(spoken).index_add(0, chosen[:, 0], torch.ones_like(apart)).clamp(min=1)
        divergence = torch.zeros_like(spoken).index_add(0, chosen[:, 0], apart) / counts
        return error / len(found) + self.adapt.divergence * divergence


class Adapter(Trainer):
    """An adaptation in progress: a training run with a teacher, other data and other measures."""

    def __init__(self, teacher: Checkpoint, run: TrainingRun, device: torch.device, resume: bool) -> None:
        self.teacher = copy.deepcopy(teacher.model)  # the student may share the source's tensors
        set_config(self.teacher, dataclasses.replace(teacher.model.config, tail_frames=None))
        super().__init__(run, device, resume, teacher)

    def _read_corpora(self) -> list[Corpus]:
        texts = self._read_manifests(self.run.texts)
        settings = self.run.settings
        recordings = [
            read_recordings(option, self.tokenizer.prompt, settings.max_seconds, self.findings)
            for option in self.run.train
        ]
        self.labelled = frozenset(range(len(recordings), len(recordings) + len(texts)))
        return [*recordings, *texts]

    def _make_step(self, model: Model) -> TrainStep:
        settings, tokenizer = self.run.settings, self.tokenizer
        assert isinstance(settings, AdaptConfig) and isinstance(tokenizer, WhisperTokenizer)
        return AdaptStep(self.accelerator, model, settings, tokenizer, self.teacher, self.labelled)

    def _measures(self, model: Model) -> dict[str, Measured]:
        """Return the result of each dev set at its own length, and padded to the window."""
        measures, own = super()._measures(model), model.config
        try:
            set_config(model, dataclasses.replace(own, tail_frames=None))
            padded = super()._measures(model)
        finally:
            set_config(model, own)
        return {**measures, **{f"{name} {PADDED}": measured for name, measured in padded.items()}}

    def _overall(self, scores: dict[str, Score]) -> float | None:
        return overall_wer({name: score for name, score in scores.items() if not name.endswith(f" {PADDED}")})


def set_config(model: Model, config: ModelConfig) -> None:
    """Change the configuration of a model; shapes of weights stay."""
    model.config = model.encoder.config = model.decoder.config = config


def read_recordings(option: str, prompt: list[int], max_seconds: float, found: Findings) -> Corpus:
    """Return recordings as a corpus without texts: a manifest (PATH or PATH=WEIGHT), a file, a folder or a glob.

    Recordings longer than `max_seconds` are split. InputError if none is usable.
    """
    path, weight = parse_manifest_option(option)
    parts: list[Utterance] = []
    for utterance in _recordings(option, path):
        try:
            seconds = _length(utterance)
        except InputError:
            found.exclude("audio cannot be read", utterance)
            continue
        if seconds < LEAST_SECONDS:
            found.exclude(f"less than {LEAST_SECONDS:g} s of sound", utterance)
            continue
        count = math.ceil(seconds / max_seconds)
        for part in range(count):
            offset = utterance.offset + part * seconds / count
            parts.append(dataclasses.replace(utterance, offset=round(offset, 3), duration=seconds / count, text=""))
    if not parts:
        raise InputError(f"{option}: no recording can be used; {'; '.join(found.lines()) or 'it names none'}")
    return Corpus(str(path), weight, parts, [[] for _ in parts], [prompt] * len(parts))


def _recordings(option: str, path: Path) -> list[Utterance]:
    if path.suffix == ".jsonl":
        return [utterance for _, utterance in read_utterances(path, text_required=False)]
    return [Utterance(Path(source.path)) for source in find_sources([option])]


def _length(utterance: Utterance) -> float:
    """Return the seconds of an utterance; InputError if it cannot be read."""
    if utterance.duration is not None:
        if not utterance.audio.is_file():
            raise InputError(f"{utterance.audio}: no such file")
        return utterance.duration
    return max(0.0, length_seconds(utterance.audio) - utterance.offset)
