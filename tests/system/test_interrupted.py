"""A part of scripts/checks/interrupts.py: after kill -9 and Ctrl-C a rerun leaves what an undisturbed run leaves."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "checks"))

import interrupts as kills  # noqa: E402
from interrupts import JOBS, Campaign, Job, files_broken, files_left, finish, flat, living, prepare, start  # noqa: E402

CARELESS = """
import os, time
from pathlib import Path
out = Path("out")
out.mkdir(exist_ok=True)
for number in range(3):
    with (out / f"{number}.txt").open("w") as text:
        text.write("half ")
        text.flush()
        time.sleep(0.1)
        text.write("whole")
(out / ".0.txt.part").write_text("")
os._exit(0)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kills")
    kills.load()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("focusasr.training.logger.draw_curves", lambda *_: None)  # a second each, in every fork
        prepare(folder)
        yield folder


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_rerun_leaves_what_an_undisturbed_run_leaves(place: Path, job: Job) -> None:
    campaign = Campaign(job, place, random.Random(0))
    if job.name == "train":  # the model was trained undisturbed
        campaign.reference = job.left(place / "model")
        campaign.durations["--workers", "0", "False"] = 1.0
    wrong = [failure for number in range(2) for failure in campaign.round(number)]
    assert wrong == []
    assert campaign.kills + campaign.interrupts + campaign.missed == 2


def test_ctrl_c_to_a_group_while_training_workers_start(place: Path) -> None:
    """As a terminal sends it, to the workers too: one line, no traceback of theirs, and none lives on."""
    (job,) = (job for job in JOBS if job.name == "train")
    campaign = Campaign(job, place, random.Random(1))
    shutil.rmtree(campaign.out, ignore_errors=True)
    pid = start([*job.arguments, "--workers", "1"], place)
    while not any("spawn_main" in command for command in living(pid)):
        time.sleep(0.01)
    assert campaign.answered(finish(pid, place, signal.SIGINT, 0.2, group=True), signal.SIGINT) == []
    assert campaign.interrupts == 1


def test_what_is_not_whole_is_seen(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign finds the faults of a program that writes in place and leaves files aside."""
    monkeypatch.setattr("focusasr.__main__.program", lambda: exec(CARELESS, {}))
    campaign = Campaign(Job("careless", [], files_left, files_broken), place, random.Random(0))
    campaign.reference = {f"{number}.txt": b"half whole" for number in range(3)}
    campaign.durations["False",] = 0.3
    wrong = campaign.round(0)
    assert any(failure.startswith("not whole: ") for failure in wrong), wrong
    assert any(failure.startswith("left aside: .0.txt.part") for failure in wrong), wrong


def test_leaves_of_a_state_have_names() -> None:
    torch: Any = pytest.importorskip("torch")
    state = {"a": [1, {"b": torch.zeros(1)}]}
    assert flat("s", state) == {"s.0.0": "a", "s.0.1.0": 1, "s.0.1.1.0.0": "b", "s.0.1.1.0.1": b"\0\0\0\0"}
