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

from focusasr.audio.features import log_mel, stack
from focusasr.audio.load import load
from focusasr.config import PRESETS, ModelConfig, TextConfig
from focusasr.data.manifest import Utterance, read_manifest
from focusasr.model.losses import IGNORED, LossWeights, joint_loss
from focusasr.model.transformer import Model
from focusasr.text.tokenizer import Tokenizer, train_tokenizer

MEAN_SECONDS = 10.0
WHISPER_FRAMES = 3000


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
    chosen = batch_of(read_manifest(given.folder / "train.jsonl"), given.utterances)
    tokenizer = train_tokenizer([text for _, text in chosen], TextConfig())
    mels = [mel for mel, _ in chosen]
    seconds = sum(len(mel) for mel in mels) / 100
    ours, our_weights = focusasr_step(given.preset, mels, [text for _, text in chosen], tokenizer)
    theirs, their_weights = whisper_step(our_weights, mels, [text for _, text in chosen], tokenizer)
    times: dict[str, list[float]] = {"focusasr": [], "whisper": []}
    for turn in range(given.turns + 1):  # the first warms up
        for name, step in (("focusasr", ours), ("whisper", theirs)):
            began = time.perf_counter()
            step()
            if turn:
                times[name].append(time.perf_counter() - began)
    print(
        f"{len(mels)} utterances, {seconds:.1f} s, mean {seconds / len(mels):.1f} s; {torch.get_num_threads()} threads"
    )
    for name, weights in (("focusasr", our_weights), ("whisper", their_weights)):
        print(
            f"{name:9} {weights / 1e6:5.2f} M weights {seconds / statistics.median(times[name]):7.1f} s of audio per s"
        )
    ratios = [theirs / ours for ours, theirs in zip(times["focusasr"], times["whisper"], strict=True)]
    print(f"ratio {statistics.median(ratios):.2f} (turns {min(ratios):.2f} to {max(ratios):.2f})")


def batch_of(utterances: list[Utterance], count: int) -> list[tuple[torch.Tensor, str]]:
    """Return spectrograms (F, M) and texts of the `count` items nearest to 10 s.

    Shorter utterances are joined with the next ones, as training does.
    """
    items: list[tuple[torch.Tensor, str]] = []
    pieces: list[torch.Tensor] = []
    words: list[str] = []
    for utterance in utterances:
        waveform = load(utterance.source)
        pieces.append(torch.from_numpy(waveform))
        words.append(utterance.text)
        if sum(map(len, pieces)) >= 0.8 * MEAN_SECONDS * 16_000:
            items.append((log_mel(torch.cat(pieces)), " ".join(words)))
            pieces, words = [], []
        if len(items) == 6 * count:
            break
    if len(items) < count:
        raise SystemExit(f"only {len(items)} items of {MEAN_SECONDS:g} s in this manifest; take fewer --utterances")
    return sorted(items, key=lambda item: abs(len(item[0]) - 100 * MEAN_SECONDS))[:count]


def padded(texts: list[list[int]], filling: int) -> torch.Tensor:
    """Return token rows (B, L)."""
    rows = [torch.tensor(text) for text in texts]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=filling)


def focusasr_step(
    preset: str, mels: list[torch.Tensor], texts: list[str], tokenizer: Tokenizer
) -> tuple[Callable[[], None], int]:
    """Return a function that computes our loss and gradient, CTC included, and the number of weights."""
    model = Model(ModelConfig(**PRESETS[preset], vocabulary=tokenizer.size)).train()
    mel, lengths = stack(mels)
    ids = [tokenizer.encode(text) for text in texts]
    tokens = padded([[tokenizer.start, *text] for text in ids], tokenizer.end)
    targets = padded([[*text, tokenizer.end] for text in ids], IGNORED)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        joint_loss(model(mel, lengths, tokens), targets, tokenizer.blank, LossWeights()).total.backward()

    return step, model.parameter_count()


def whisper_step(
    weights: int, mels: list[torch.Tensor], texts: list[str], tokenizer: Tokenizer
) -> tuple[Callable[[], None], int]:
    """Return a function that computes Whisper's loss and gradient, and its number of weights, near `weights`."""
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
            return sum(parameter.numel() for parameter in build(width).parameters())

    model = build(min(range(64, 1025, 32), key=lambda width: abs(learned(width) - weights))).train()
    features = torch.stack(
        [torch.nn.functional.pad(mel, (0, 0, 0, WHISPER_FRAMES - len(mel)), value=-1.0).T for mel in mels]
    )
    labels = padded([[*tokenizer.encode(text), tokenizer.end] for text in texts], -100)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(input_features=features, labels=labels).loss.backward()

    return step, sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
