"""Average the weights of checkpoints of one lineage, which often err less together than alone (Wortsman et al. 2022).

    scripts/average.py runs/mean runs/sixth/last runs/seventh/last=0.5

writes two thirds of the first and one third of the second, with the last one's settings and length of training.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from focusasr.checkpoint import load_checkpoint, read_json, save_checkpoint
from focusasr.files import written_aside


@torch.no_grad()
def main() -> None:
    """Average, write."""
    if len(sys.argv) < 4:
        sys.exit("usage: average.py TO_FOLDER FOLDER[=WEIGHT] FOLDER[=WEIGHT] ...")
    target, options = Path(sys.argv[1]), [option.partition("=") for option in sys.argv[2:]]
    shares = [float(weight or 1) for _, _, weight in options]
    checkpoints = [load_checkpoint(Path(folder)) for folder, _, _ in options]
    states = [checkpoint.model.state_dict() for checkpoint in checkpoints]
    weights = {
        name: sum(share * state[name] for share, state in zip(shares, states, strict=True)) / sum(shares)
        for name in states[-1]
    }
    mean = checkpoints[-1]
    mean.model.load_state_dict(weights)
    unmeasured = {name: value for name, value in mean.metrics.items() if name not in ("dev", "test")}
    with written_aside(target) as aside:
        save_checkpoint(
            aside, replace(mean, metrics=unmeasured), read_json(Path(options[-1][0]) / "config.json").get("run")
        )


if __name__ == "__main__":
    main()
