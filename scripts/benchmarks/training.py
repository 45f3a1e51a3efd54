"""Training speed relative to a plain Whisper with as many parameters.

    scripts/benchmarks/training.py FOLDER            # a folder with train.jsonl of real speech, such as Common Voice's

Both compute the loss of the same batch forward and backward, in float32, alternately. Whisper is that of transformers,
whose encoder pads every utterance to 30 s. Figures are audio seconds per second, medians over the turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from focusasr.audio.features import input_mels, log_mels
from focusasr.audio.mel_stream import WINDOW_SAMPLES
from focusasr.config import PRESETS, ModelConfig, TextConfig
from focusasr.model.losses import LossWeights, joint_loss
from focusasr.model.transformer import Model
from focusasr.text.tokenizer import Tokenizer, train_tokenizer
from focusasr.training.batching import Batch, BatchSampler, SpeechDataset, collate
from focusasr.training.dataset import Findings, read_corpus, read_texts
from focusasr.training_config import TrainConfig

MEAN_SECONDS, LONGEST_SECONDS = 10.0, 12.0
Contestant = tuple[nn.Module, Callable[[], Tensor]]  # a model, and what computes its loss


def main() -> None:
    """Print both speeds and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="holds train.jsonl")
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--utterances", type=int, default=8, help="in the batch")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    manifest = str(given.folder / "train.jsonl")
    tokenizer = train_tokenizer(read_texts([manifest]), TextConfig())
    config = ModelConfig(**PRESETS[given.preset], vocabulary=tokenizer.size)
    batch = batch_of(manifest, tokenizer, config, given.utterances)
    ours = focusasr(config, batch, tokenizer)
    contestants = {"focusasr": ours, "whisper": whisper(weights(ours[0]), batch, tokenizer)}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(given.turns + 1):  # the first warms up
        for name, (model, loss) in contestants.items():
            began = time.perf_counter()
            model.zero_grad(set_to_none=True)
            loss().backward()
            if turn:
                times[name].append(time.perf_counter() - began)
    count, seconds = len(batch.items), batch.seconds
    print(f"{count} utterances, {seconds:.1f} s, mean {seconds / count:.1f} s; {torch.get_num_threads()} threads")
    for name, (model, _) in contestants.items():
        speed = seconds / statistics.median(times[name])
        print(f"{name:9} {weights(model) / 1e6:5.2f} M weights {speed:7.1f} s of audio per s")
    ratios = [theirs / ours for ours, theirs in zip(*times.values(), strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} (turns {min(ratios):.2f} to {max(ratios):.2f})")


def batch_of(manifest: str, tokenizer: Tokenizer, model: ModelConfig, count: int) -> Batch:
    """Return the `count` training items nearest to 10 s, of joined utterances without augmentation."""
    settings = TrainConfig(join=1.0, join_seconds=LONGEST_SECONDS, silence=0.0)  # the first epoch is clean
    corpus = read_corpus(manifest, tokenizer, model, settings.max_seconds, Findings())
    plan = BatchSampler([corpus], settings, model.text_context, shortest_seconds=LONGEST_SECONDS)
    items = sorted((item for some in plan.epoch(0) for item in some), key=lambda item: abs(item.seconds - MEAN_SECONDS))
    if len(items) < count:
        raise SystemExit(f"only {len(items)} items of {MEAN_SECONDS:g} s in this manifest; take fewer --utterances")
    examples = SpeechDataset([corpus], settings, model.mel_bands, tokenizer.separator)
    return collate([examples[item] for item in items[:count]], tokenizer.end)


def weights(model: nn.Module) -> int:
    """Return a model's number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())


def focusasr(config: ModelConfig, batch: Batch, tokenizer: Tokenizer) -> Contestant:
    """Return our model, and a function that computes its loss, CTC included."""
    model = Model(config).train()
    mel, lengths = input_mels(batch.waveforms, batch.samples, config)
    return (
        model,
        lambda: joint_loss(model(mel, lengths, batch.tokens), batch.targets, tokenizer.blank, LossWeights()).total,
    )


def whisper(wanted: int, batch: Batch, tokenizer: Tokenizer) -> Contestant:
    """Return a Whisper with about as many weights as `wanted`, and a function that computes its loss."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    def build(width: int) -> WhisperForConditionalGeneration:
        return WhisperForConditionalGeneration(
            WhisperConfig(
                vocab_size=tokenizer.size, d_model=width, encoder_layers=4, decoder_layers=4, num_mel_bins=80,
                encoder_attention_heads=width // 32, decoder_attention_heads=width // 32, encoder_ffn_dim=4 * width,
                decoder_ffn_dim=4 * width, pad_token_id=tokenizer.end, bos_token_id=tokenizer.start,
                eos_token_id=tokenizer.end, decoder_start_token_id=tokenizer.start, suppress_tokens=None,
                begin_suppress_tokens=None,
            )
        )  # fmt: skip

    def learned(width: int) -> int:
        with torch.device("meta"):
            return weights(build(width))

    model = build(min(range(64, 1025, 32), key=lambda width: abs(learned(width) - wanted))).train()
    features = log_mels(batch.waveforms, batch.samples, window_samples=WINDOW_SAMPLES)[0].mT.contiguous()
    return model, lambda: model(input_features=features, labels=batch.targets).loss


if __name__ == "__main__":
    main()
