"""Settings of a training run and of an adaptation of a Whisper model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from focusasr.runtime.settings import require, require_choices, research, setting


@dataclass(frozen=True)
class DataConfig:
    """Manifests of a training run, each PATH or PATH=WEIGHT (how often an epoch includes an utterance)."""

    train: list[str] = dataclasses.field(default_factory=list)
    dev: list[str] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)  # adaptation only: manifests whose texts are targets
    keep: list[str] = dataclasses.field(default_factory=list)  # training only: audio with the source model's texts


@dataclass(frozen=True)
class TrainConfig:
    """Optimization and augmentation of a training run."""

    init_from: str | None = setting(
        None, "checkpoint to start from, native or Whisper: a folder, a .pt file or a name on the hub"
    )
    train_only: Literal["all", "local"] = setting(
        "all", "trained parameters: all, or only the local branches and projections of a hybrid model, to save memory"
    )
    steps: int = setting(10_000, "number of optimizer steps")
    batch_seconds: float = setting(120.0, "audio per batch, padding included, in seconds")
    accumulate: int = setting(1, "batches per optimizer step")
    learning_rate: float = setting(1e-3, "peak learning rate")
    warmup_steps: int = setting(500, "steps of linear learning rate warm-up")
    final_rate: float = research(0.02, "learning rate at the end of the cosine decay, as a share of the peak")
    weight_decay: float = research(0.05, "weight decay of matrices")
    clip_norm: float = research(1.0, "largest gradient norm")
    ctc_weight: float = research(0.3, "weight of the CTC loss")
    intermediate_ctc: float = research(
        0.0, "share of the CTC loss computed in the middle of the encoder (Lee & Watanabe 2021)"
    )
    label_smoothing: float = research(0.1, "label smoothing of decoder targets")
    span_penalty: float = research(0.0, "weight of the encoder's mean local radius in the loss, for shorter spans")
    ema_decay: float = research(0.999, "decay of the moving average of the weights, per step (0: off)")
    freeze: int = setting(0, "number of lowest encoder layers to freeze, together with the stem (0: none)")
    explosion: float = research(
        10.0, "attention loss, relative to its usual value, above which a step is skipped and logged (0: never)"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "numeric type of the computation (auto: bf16 on CUDA, else fp32)"
    )
    seed: int = setting(0, "random seed")
    evaluate_every: int = setting(500, "steps between evaluations on dev, each followed by a checkpoint")
    dev_normalizer: Literal["none", "basic", "english"] = setting(
        "none", "normalization of dev texts, as --normalizer of evaluate"
    )
    patience: int = setting(0, "evaluations without a better dev WER before training stops (0: never)")
    workers: int = setting(1, "processes that load and augment audio (0: the training process)")
    clean_epochs: int = research(1, "epochs before augmentation starts: CTC aligns sooner on clean speech")
    spec_augment: bool = setting(True, "SpecAugment: masks over time and frequency (Park et al. 2019)")
    speed: float = setting(0.1, "largest speed perturbation, as a share of the speed (0: off)")
    formant: float = setting(0.1, "largest vocal-tract-length perturbation (Jaitly & Hinton 2013)")
    gain_db: float = setting(12.0, "largest random attenuation, with amplification up to half of it, in dB")
    noise: float = setting(0.3, "share of utterances with added noise")
    reverberation: float = setting(0.15, "share of utterances with reverberation")
    noise_folder: str | None = setting(None, "folder of noise recordings, used for half of the noise, else synthetic")
    room_folder: str | None = setting(
        None, "folder of room impulse responses, used for half of the reverberation, else synthetic"
    )
    microphone: float = setting(0.0, "share of utterances filtered as by another microphone")
    telephone: float = setting(0.1, "share of utterances band-limited to 8 kHz")
    silence: float = setting(0.02, "share of training items replaced by noise or silence without text")
    join: float = setting(0.5, "share of training items made by joining utterances")
    join_seconds: float = setting(10.0, "longest joined training item, in seconds")
    max_seconds: float = setting(20.0, "longest training item, in seconds: longer utterances are skipped and counted")

    def __post_init__(self) -> None:
        require_choices(self)
        for name in ("steps", "accumulate", "evaluate_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("batch_seconds", "learning_rate", "clip_norm", "max_seconds", "join_seconds"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in (
            "ctc_weight",
            "intermediate_ctc",
            "label_smoothing",
            "noise",
            "reverberation",
            "microphone",
            "telephone",
            "silence",
            "join",
            "final_rate",
        ):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in (
            "warmup_steps",
            "weight_decay",
            "span_penalty",
            "freeze",
            "patience",
            "workers",
            "gain_db",
            "clean_epochs",
        ):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 9223372036854775807")
        off_or_more = self.explosion == 0 or self.explosion > 1
        require(off_or_more, "explosion", self.explosion, "above 1, or 0 for never")
        require(0 <= self.speed < 0.9, "speed", self.speed, "at least 0 and below 0.9")
        require(0 <= self.formant < 0.5, "formant", self.formant, "at least 0 and below 0.5")
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "at least 0 and below 1")


@dataclass(frozen=True)
class AdaptConfig(TrainConfig):
    """Adaptation of a Whisper model to audio without padding; the padded source model is the teacher."""

    steps: int = setting(1500, "number of optimizer steps")
    batch_seconds: float = setting(40.0, "audio per batch, padding to the longest included, in seconds")
    learning_rate: float = setting(3e-5, "peak learning rate")
    warmup_steps: int = setting(50, "steps of linear learning rate warm-up")
    weight_decay: float = research(0.0, "weight decay of matrices")
    label_smoothing: float = research(0.0, "label smoothing of the targets from --texts")
    ema_decay: float = research(0.99, "decay of the moving average of the weights, per step (0: off)")
    evaluate_every: int = setting(250, "steps between evaluations on dev, each followed by a checkpoint")
    dev_normalizer: Literal["none", "basic", "english"] = setting(
        "english", "normalization of dev texts, as --normalizer of evaluate"
    )
    clean_epochs: int = research(0, "epochs before augmentation starts")
    spec_augment: bool = setting(False, "SpecAugment: masks over time and frequency (Park et al. 2019)")
    formant: float = setting(0.0, "largest vocal-tract-length perturbation (Jaitly & Hinton 2013)")
    noise: float = setting(0.2, "share of utterances with added noise")
    reverberation: float = setting(0.1, "share of utterances with reverberation")
    telephone: float = setting(0.05, "share of utterances band-limited to 8 kHz")
    silence: float = setting(0.06, "share of training items replaced by noise or silence without text")
    join: float = setting(0.4, "share of training items made by joining utterances")
    join_seconds: float = setting(26.0, "longest joined training item, in seconds")
    max_seconds: float = setting(26.0, "longest training item, in seconds: longer recordings are split")
    longest_tail: int = research(64, "largest random tail of silence after the audio, in 10 ms frames")
    cut: float = research(0.3, "share of recordings truncated at random, to at least 0.3 s")
    padded: float = research(0.1, "share of batches padded to the full window, as for the source model")
    timestamps: float = research(0.5, "share of batches with timestamp tokens")
    divergence: float = research(0.1, "weight of the KL divergence of the output, relative to the decoder state error")
    text_weight: float = research(0.2, "weight of the cross-entropy of --texts and of audio without speech")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cut", "padded", "timestamps"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("longest_tail", "divergence", "text_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
