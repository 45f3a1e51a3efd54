"""Settings of a training run and of an adaptation of a Whisper model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from focusasr.runtime.settings import Settings, require, research, setting, with_default

SHARE = {"ge": 0, "le": 1}  # range of a setting


@dataclass(frozen=True)
class DataConfig:
    """Manifests of a training run, each PATH or PATH=WEIGHT (how often an epoch includes an utterance)."""

    train: list[str] = dataclasses.field(default_factory=list)
    dev: list[str] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)  # adaptation only: manifests whose texts are targets
    keep: list[str] = dataclasses.field(default_factory=list)  # training only: audio with the source model's texts


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Optimization and augmentation of a training run."""

    init_from: str | None = setting(None, "source checkpoint, native or Whisper: folder, .pt file or name on the hub")
    train_only: Literal["all", "encoder", "local"] = setting(
        "all", "trained parameters: all, the encoder's, or the local branches and projections of a hybrid model"
    )
    steps: int = setting(10_000, "number of optimizer steps", ge=1)
    batch_seconds: float = setting(120.0, "audio per batch, padding included, in seconds", gt=0)
    accumulate: int = setting(1, "batches per optimizer step", ge=1)
    learning_rate: float = setting(1e-3, "peak learning rate", gt=0)
    warmup_steps: int = setting(500, "steps of linear learning rate warm-up", ge=0)
    final_rate: float = research(0.02, "learning rate at the end of the cosine decay, as a share of the peak", **SHARE)
    weight_decay: float = research(0.05, "weight decay of matrices", ge=0)
    clip_norm: float = research(1.0, "largest gradient norm", gt=0)
    ctc_weight: float = research(0.3, "weight of the CTC loss", **SHARE)
    intermediate_ctc: float = research(
        0.0, "share of the CTC loss at half of the encoder (Lee & Watanabe 2021)", **SHARE
    )
    label_smoothing: float = research(0.1, "label smoothing of decoder targets", **SHARE)
    span_penalty: float = research(0.0, "weight of the mean local radius in the loss, for shorter spans", ge=0)
    ema_decay: float = research(0.999, "decay of the moving average of the weights, per step (0: off)", ge=0, lt=1)
    freeze: int = setting(0, "number of lowest encoder layers to freeze, together with the stem (0: none)", ge=0)
    explosion: float = research(
        10.0, "ratio of attention loss to its usual value above which a step is skipped (0: never)"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting("auto", "numeric type (auto: bf16 on CUDA, else fp32)")
    seed: int = setting(0, "random seed", ge=0, le=2**63 - 1)
    evaluate_every: int = setting(500, "steps between evaluations on dev, each followed by a checkpoint", ge=1)
    dev_normalizer: Literal["none", "basic", "english"] = setting("none", "normalization of dev texts, as in evaluate")
    patience: int = setting(0, "evaluations without a better dev WER before training stops (0: never)", ge=0)
    workers: int = setting(1, "processes that load and augment audio (0: the training process)", ge=0)
    clean_epochs: int = research(1, "epochs before augmentation starts: CTC aligns sooner on clean speech", ge=0)
    spec_augment: bool = setting(True, "SpecAugment: masks over time and frequency (Park et al. 2019)")
    speed: float = setting(0.1, "largest speed perturbation, as a share of the speed (0: off)", ge=0, lt=0.9)
    formant: float = setting(0.1, "largest vocal-tract-length perturbation (Jaitly & Hinton 2013)", ge=0, lt=0.5)
    gain_db: float = setting(12.0, "largest random attenuation, with amplification up to half of it, in dB", ge=0)
    noise: float = setting(0.3, "share of utterances with added noise", **SHARE)
    reverberation: float = setting(0.15, "share of utterances with reverberation", **SHARE)
    noise_folder: str | None = setting(None, "folder of noise recordings for half of the noise, else synthetic")
    room_folder: str | None = setting(None, "folder of impulse responses for half of the reverberation, else synthetic")
    microphone: float = setting(0.0, "share of utterances filtered as by another microphone", **SHARE)
    telephone: float = setting(0.1, "share of utterances band-limited to 8 kHz", **SHARE)
    silence: float = setting(0.02, "share of training items replaced by noise or silence without text", **SHARE)
    join: float = setting(0.5, "share of training items made by joining utterances", **SHARE)
    join_seconds: float = setting(10.0, "longest joined training item, in seconds", gt=0)
    max_seconds: float = setting(20.0, "longest training item, in seconds: longer utterances are skipped", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        off_or_more = self.explosion == 0 or self.explosion > 1
        require(off_or_more, "explosion", self.explosion, "above 1, or 0 for never")


@dataclass(frozen=True)
class AdaptConfig(TrainConfig):
    """Adaptation of a Whisper model to audio without padding; the padded source model is the teacher."""

    init_from: str | None = None  # the command's argument, not an option
    steps: int = with_default(TrainConfig, "steps", 1500)
    batch_seconds: float = with_default(
        TrainConfig, "batch_seconds", 40.0, "audio per batch, padding to the longest included, in seconds"
    )
    learning_rate: float = with_default(TrainConfig, "learning_rate", 3e-5)
    warmup_steps: int = with_default(TrainConfig, "warmup_steps", 50)
    weight_decay: float = with_default(TrainConfig, "weight_decay", 0.0)
    label_smoothing: float = with_default(TrainConfig, "label_smoothing", 0.0, "smoothing of the targets from --texts")
    ema_decay: float = with_default(TrainConfig, "ema_decay", 0.99)
    evaluate_every: int = with_default(TrainConfig, "evaluate_every", 250)
    dev_normalizer: Literal["none", "basic", "english"] = with_default(TrainConfig, "dev_normalizer", "english")
    clean_epochs: int = with_default(TrainConfig, "clean_epochs", 0, "epochs before augmentation starts")
    spec_augment: bool = with_default(TrainConfig, "spec_augment", False)
    formant: float = with_default(TrainConfig, "formant", 0.0)
    noise: float = with_default(TrainConfig, "noise", 0.2)
    reverberation: float = with_default(TrainConfig, "reverberation", 0.1)
    telephone: float = with_default(TrainConfig, "telephone", 0.05)
    silence: float = with_default(TrainConfig, "silence", 0.06)
    join: float = with_default(TrainConfig, "join", 0.4)
    join_seconds: float = with_default(TrainConfig, "join_seconds", 26.0)
    max_seconds: float = with_default(
        TrainConfig, "max_seconds", 26.0, "longest training item, in seconds: longer recordings are split"
    )
    longest_tail: int = research(64, "largest random tail of silence after the audio, in 10 ms frames", ge=0)
    cut: float = research(0.3, "share of recordings truncated at random, to at least 0.3 s", **SHARE)
    padded: float = research(0.1, "share of batches padded to the full window, as for the source model", **SHARE)
    timestamps: float = research(0.5, "share of batches with timestamp tokens", **SHARE)
    divergence: float = research(0.1, "weight of the KL divergence of outputs, relative to the state error", ge=0)
    text_weight: float = research(0.2, "weight of the cross-entropy of --texts and of audio without speech", ge=0)
