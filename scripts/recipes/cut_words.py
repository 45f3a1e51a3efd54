"""Extract single words from transcribed sentences, to train on isolated words of many voices.

    scripts/recipes/cut_words.py data/cut data/common_voice_en/train.jsonl data/kathleen/train.jsonl

A checkpoint aligns each sentence to its audio (CTC forced alignment). Words with a high probability become entries of
two manifests, with offset and duration into the same audio files: FOLDER/home.jsonl has the isolated words of
phrases.py, FOLDER/other.jsonl some of each other word. No audio is written.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path

import torch
from phrases import LONE_WORDS

from focusasr.audio.features import log_mel, stack
from focusasr.audio.load import load
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.data.manifest import Utterance, read_manifest, write_manifest
from focusasr.decoding.ctc_alignment import word_times
from focusasr.model.checkpoint import Checkpoint, load_checkpoint
from focusasr.model.checkpoint_folder import find_checkpoint

MARGIN_SECONDS = 0.04  # kept on either side of a word
SHORTEST_SECONDS, LONGEST_SECONDS = 0.25, 1.5
LEAST_AT_HOME, LEAST = 0.25, 0.3  # mean probability of its letters: half of the other words pass
MOST = 15  # of each other word
SHORTEST_OTHER = 3  # letters: "of" and "to" are rarely isolated


@torch.inference_mode()
def cut(checkpoint: Checkpoint, utterance: Utterance) -> list[Utterance]:
    """Return the words of an utterance with the duration of isolated words, and the aligner's confidence."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    waveform = load(utterance.source)
    seconds = len(waveform) / SAMPLE_RATE_HZ
    mel = log_mel(torch.from_numpy(waveform), model.config.mel_bands)
    log_probs = model.ctc_log_probs(model.encode(*stack([mel])))[0]
    tokens = [token for token in tokenizer.encode(utterance.text.lower()) if token != tokenizer.unknown]
    found = []
    for word in word_times(log_probs, mel, tokens, tokenizer, model.config.step_seconds):
        start, end = max(0.0, word.start - MARGIN_SECONDS), min(seconds, word.end + MARGIN_SECONDS)
        if SHORTEST_SECONDS <= end - start <= LONGEST_SECONDS:
            extra = {**utterance.extra, "confidence": round(word.probability, 3)}
            offset, duration = round(utterance.offset + start, 3), round(end - start, 3)
            found.append(Utterance(utterance.audio, word.text.strip("'"), offset, duration, extra))
    return found


def main() -> None:
    """Align, choose, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("output", type=Path, help="folder for both manifests")
    parser.add_argument("manifests", type=Path, nargs="+", help="sentences to cut")
    parser.add_argument("--checkpoint", default="alnum", help="what aligns; it needs a CTC head")
    given = parser.parse_args()
    checkpoint = load_checkpoint(find_checkpoint(given.checkpoint))
    checkpoint.model.eval()
    home, other = [], defaultdict(list)
    for path in given.manifests:
        for word in (word for utterance in read_manifest(path) for word in cut(checkpoint, utterance)):
            if word.text in LONE_WORDS and word.extra["confidence"] >= LEAST_AT_HOME:
                home.append(word)
            elif len(word.text) >= SHORTEST_OTHER and word.extra["confidence"] >= LEAST:
                other[word.text].append(word)
    draw = random.Random(1)
    some = [word for words in other.values() for word in draw.sample(words, min(len(words), MOST))]
    given.output.mkdir(parents=True, exist_ok=True)
    for name, words in (("home", home), ("other", some)):
        write_manifest(given.output / f"{name}.jsonl", words)
        minutes = sum(word.duration or 0.0 for word in words) / 60
        print(f"{name}: {len(words)} words, {len({word.text for word in words})} different ones, {minutes:.0f} minutes")


if __name__ == "__main__":
    main()
