"""Which device computes: CUDA, then MPS, then CPU, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from focusasr.settings import InputError


def choose_device(wanted: str = "auto") -> tuple[torch.device, str]:
    """Return the device and the reason for it; InputError where the wanted one is not there.

    `wanted` is auto, cuda, cuda:N, mps or cpu.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"CUDA is available: {torch.cuda.get_device_name()}"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "no CUDA; MPS is available"
        return torch.device("cpu"), f"neither CUDA nor MPS is available; {torch.get_num_threads()} CPU threads"
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise InputError(f"device is {wanted!r}; wanted: auto, cuda, cuda:N, mps or cpu") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False) or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise InputError(f"device {wanted!r} is not on this machine; use --device auto")
    return device, "as asked"


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, and leave PyTorch as it was.

    Small layers lose by more threads, many times over on a busy machine; and importing silero_vad sets one thread
    for good.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
