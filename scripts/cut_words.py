"""Cut single words out of transcribed sentences: real voices for a recogniser of words that are said alone.

    scripts/cut_words.py data/cut/train.jsonl data/common_voice_en/train.jsonl data/kathleen/train.jsonl

A checkpoint aligns each sentence to its sound (CTC forced alignment); words that it is sure of become lines of the
manifest, with offset and duration into the same sound files. No sound is written.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import defaultdict
from pathlib import Path

import torch

from focusasr.alignment import word_times
from focusasr.audio import Source, load
from focusasr.checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from focusasr.config import SAMPLE_RATE_HZ
from focusasr.features import log_mel, stack
from focusasr.manifest import Utterance, read_manifest, write_manifest

MARGIN_SECONDS = 0.04  # kept on either side of a word
SHORTEST_SECONDS, LONGEST_SECONDS = 0.25, 1.5
FEWEST_LETTERS = 2


@torch.inference_mode()
def words_of(checkpoint: Checkpoint, utterance: Utterance, surest: float) -> list[Utterance]:
    """Return the words of an utterance whose letters have a mean probability of at least `surest`."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    waveform = load(Source(str(utterance.audio), utterance.offset, utterance.duration))
    seconds = len(waveform) / SAMPLE_RATE_HZ
    mel = log_mel(torch.from_numpy(waveform), model.config.mel_bands)
    log_probs = model.ctc_log_probs(model.encode(*stack([mel])))[0]
    text = re.sub(r"[^a-z' ]+", " ", utterance.text.lower().replace("’", "'"))
    words = word_times(log_probs, mel, tokenizer.encode(text), tokenizer, seconds / len(log_probs))
    cut = []
    for word in words:
        start, end = max(0.0, word.start - MARGIN_SECONDS), min(seconds, word.end + MARGIN_SECONDS)
        long_enough = SHORTEST_SECONDS <= end - start <= LONGEST_SECONDS and len(word.text) >= FEWEST_LETTERS
        if long_enough and word.probability >= surest:
            extra = {**utterance.extra, "confidence": round(word.probability, 3)}
            place = round(utterance.offset + start, 3)
            cut.append(Utterance(utterance.audio, word.text, place, round(end - start, 3), extra))
    return cut


def main() -> None:
    """Align, choose, write."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("output", type=Path, help="manifest to write")
    parser.add_argument("manifests", type=Path, nargs="+", help="sentences to cut")
    parser.add_argument("--checkpoint", default="default", help="what aligns; it needs a CTC head")
    parser.add_argument("--confidence", type=float, default=0.5, help="least mean probability of a word's letters")
    parser.add_argument("--most", type=int, default=40, help="of one word, by chance")
    given = parser.parse_args()
    checkpoint = load_checkpoint(find_checkpoint(given.checkpoint))
    checkpoint.model.eval()
    found: dict[str, list[Utterance]] = defaultdict(list)
    for path in given.manifests:
        for utterance in read_manifest(path):
            for word in words_of(checkpoint, utterance, given.confidence):
                found[word.text].append(word)
    draw = random.Random(1)
    chosen = [one for words in found.values() for one in draw.sample(words, min(len(words), given.most))]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_manifest(given.output, chosen)
    seconds = sum(one.duration or 0.0 for one in chosen)
    print(
        f"{len(chosen)} of {sum(map(len, found.values()))} words, {len(found)} different ones, {seconds / 60:.0f} min",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
