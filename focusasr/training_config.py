"""What a training run sets, and an adaptation of a Whisper model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from focusasr.runtime.settings import require, require_choices, setting


@dataclass(frozen=True)
class DataConfig:
    """The manifests of a training run, each PATH or PATH=WEIGHT (how often an utterance is seen per epoch)."""

    train: list[str] = dataclasses.field(default_factory=list)
    dev: list[str] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)  # of an adaptation: manifests whose texts are learned


@dataclass(frozen=True)
class TrainConfig:
    """One training run, data apart. Each option says why it is there."""

    init_from: str | None = setting(
        None, "begin with this checkpoint's weights and tokens, a Whisper's too: a folder, .pt or name on the hub"
    )
    train_only: Literal["all", "local"] = setting(
        "all", "local: of a hybrid model only the local branches and their projections learn, which saves memory"
    )
    steps: int = setting(10_000, "optimizer steps in all")
    batch_seconds: float = setting(120.0, "audio per batch, padding included: memory follows seconds, not counts")
    accumulate: int = setting(1, "batches per optimizer step")
    learning_rate: float = setting(1e-3, "peak")
    warmup_steps: int = setting(500, "linear rise: early steps of attention models diverge without it")
    final_rate: float = setting(0.02, "the cosine decay ends at this share of the peak")
    weight_decay: float = setting(0.05, "matrices only")
    clip_norm: float = setting(1.0, "a bad batch may not throw the weights far")
    ctc_weight: float = setting(0.3, "share of the CTC loss: teaches alignment long before the decoder can")
    intermediate_ctc: float = setting(
        0.0, "share of the CTC loss taken half-way up the encoder: lower layers learn sounds too (Lee & Watanabe 2021)"
    )
    label_smoothing: float = setting(0.1, "decoder targets; keeps it from overconfidence on little data")
    span_penalty: float = setting(
        0.0, "price of the encoder's mean local radius (1 = the largest); makes short spans worth learning"
    )
    ema_decay: float = setting(0.999, "weights averaged over about 1/(1 - decay) steps; 0: off")
    freeze: int = setting(
        0, "lowest encoder layers that stay as they are, the stem with them: sound is alike in all tasks; 0: none"
    )
    explosion: float = setting(
        10.0, "a step whose attention loss is this many times the usual is skipped, its utterances named; 0: never"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "auto: bf16 on CUDA, fp32 elsewhere; fp16 scales its losses"
    )
    seed: int = setting(0, "one seed makes one run")
    evaluate_every: int = setting(500, "steps between evaluations on dev, each followed by a checkpoint")
    dev_normalizer: Literal["none", "basic", "english"] = setting(
        "none", "what dev texts lose before they are compared, as evaluate's normalizer"
    )
    patience: int = setting(0, "stop after so many evaluations without a better dev WER; 0: never")
    workers: int = setting(1, "processes that read and augment audio; 0: in the training process")
    clean_epochs: int = setting(1, "epochs before augmentation begins: CTC finds its alignments sooner on clean speech")
    spec_augment: bool = setting(True, "masks over time and frequency (Park et al. 2019)")
    speed: float = setting(0.1, "speed drawn from 1 - speed ... 1 + speed; 0: off")
    formant: float = setting(0.1, "mel axis stretched by up to this: other throats (Jaitly & Hinton 2013)")
    gain_db: float = setting(12.0, "level drawn from so many dB less to half as many more")
    noise: float = setting(0.3, "share of utterances with noise made up on the spot")
    reverberation: float = setting(0.15, "share of utterances put into a made-up room")
    noise_folder: str | None = setting(
        None, "recordings of noise, of which half of the noise is then taken: real rooms hum, chatter and clatter"
    )
    room_folder: str | None = setting(None, "impulse responses, of which half of the rooms are then taken")
    microphone: float = setting(0.0, "share of utterances colored as by another microphone")
    telephone: float = setting(0.1, "share of utterances band-limited to 8 kHz")
    silence: float = setting(0.02, "share of training items replaced by noise or silence without text")
    join: float = setting(0.5, "share of training items made by joining utterances, so that every length is seen")
    join_seconds: float = setting(10.0, "longest item made by joining")
    max_seconds: float = setting(20.0, "longest training item; longer utterances are left out and counted")

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
    """One adaptation of a Whisper model to audio of its own length; the padded source is the teacher."""

    steps: int = setting(1500, "optimizer steps in all")
    batch_seconds: float = setting(40.0, "audio per batch, padding to the longest included")
    learning_rate: float = setting(3e-5, "peak")
    warmup_steps: int = setting(50, "linear rise of the learning rate")
    weight_decay: float = setting(0.0, "matrices only")
    label_smoothing: float = setting(0.0, "decoder targets of --texts")
    ema_decay: float = setting(0.99, "weights averaged over about 1/(1 - decay) steps; 0: off")
    evaluate_every: int = setting(250, "steps between evaluations on dev, each followed by a checkpoint")
    dev_normalizer: Literal["none", "basic", "english"] = setting(
        "english", "what dev texts lose before they are compared, as evaluate's normalizer"
    )
    clean_epochs: int = setting(0, "epochs before augmentation begins")
    spec_augment: bool = setting(False, "masks over time and frequency (Park et al. 2019)")
    formant: float = setting(0.0, "mel axis stretched by up to this (Jaitly & Hinton 2013)")
    noise: float = setting(0.2, "share of utterances with noise made up on the spot")
    reverberation: float = setting(0.1, "share of utterances put into a made-up room")
    telephone: float = setting(0.05, "share of utterances band-limited to 8 kHz")
    silence: float = setting(0.06, "share of training items replaced by noise or silence without text")
    join: float = setting(0.4, "share of training items made by joining utterances, so that every length is seen")
    join_seconds: float = setting(26.0, "longest item made by joining")
    max_seconds: float = setting(26.0, "longest training item; longer recordings are cut into parts of this length")
    longest_tail: int = setting(64, "frames of silence after the audio, sampled from 0 to this")
    cut: float = setting(0.3, "share of recordings cut short, to 0.3 s or more")
    padded: float = setting(0.1, "share of batches padded to the window, as the source had them")
    timestamps: float = setting(0.5, "share of batches with timestamp tokens")
    divergence: float = setting(0.1, "weight of the KL divergence of the output, beside the error of decoder states")
    text_weight: float = setting(0.2, "weight of the cross-entropy of --texts and of audio without speech")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cut", "padded", "timestamps"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("longest_tail", "divergence", "text_weight"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
