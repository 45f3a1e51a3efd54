"""Average the weights of two checkpoints of one lineage, which often errs less than either (Wortsman et al. 2022).

    scripts/average.py runs/sixth/last runs/seventh/last 0.4 runs/mean

writes 0.6 of the first and 0.4 of the second, with the second one's settings and length of training.
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
    if len(sys.argv) != 5:
        sys.exit("usage: average.py FIRST_FOLDER SECOND_FOLDER SHARE_OF_THE_SECOND TO_FOLDER")
    first, second, target = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[4])
    share = float(sys.argv[3])
    mean = load_checkpoint(second)
    others = load_checkpoint(first).model.state_dict()
    weights = {name: torch.lerp(others[name], weight, share) for name, weight in mean.model.state_dict().items()}
    mean.model.load_state_dict(weights)
    unmeasured = {name: value for name, value in mean.metrics.items() if name not in ("dev", "test")}
    with written_aside(target) as aside:
        save_checkpoint(aside, replace(mean, metrics=unmeasured), read_json(second / "config.json").get("run"))


if __name__ == "__main__":
    main()
