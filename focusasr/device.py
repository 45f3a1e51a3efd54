"""Which device computes: CUDA, then MPS, then CPU, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from focusasr.progress import say
from focusasr.settings import SettingError

Item = TypeVar("Item")
Result = TypeVar("Result")
FULL_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
LOST_DEVICE = ("cuda error", "cudnn_status", "cublas_status", "hip error", "mps error", "device lost")


def choose_device(wanted: str = "auto") -> tuple[torch.device, str]:
    """Return the device and the reason for it; UsageError where the wanted one is not there.

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
        raise SettingError("device", wanted, "auto, cuda, cuda:N, mps or cpu") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if not there.get(device.type, False) or (device.index or 0) >= count:
        raise SettingError("device", wanted, "one that is on this machine, such as auto")
    return device, "as asked"


def lacks_memory(error: Exception) -> bool:
    """Return whether an error says that memory was short, whichever library asked for it."""
    signs = any(sign in str(error).lower() for sign in FULL_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and signs)


def device_fails(device: torch.device, error: Exception) -> bool:
    """Return whether the CPU can go on where this device cannot: its memory is short, or it is lost."""
    lost = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in LOST_DEVICE)
    return device.type != "cpu" and (lost or lacks_memory(error))


def in_parts(
    work: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    device: torch.device,
    halved: Callable[[int], object],
) -> list[Result | None]:
    """Return work(items), one result per item; where memory is short that of each half, and so on.

    Halving is said, and `halved` is told how many items may be tried from now on. An item that does not fit the
    memory alone gives None on a CPU; on another device the error is raised, as the CPU may have more.
    """
    try:
        return list(work(items))
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error) or (len(items) == 1 and device.type != "cpu"):
            raise
    if len(items) == 1:
        return [None]
    if device.type == "cuda":  # the error is gone by now, and with it what the batch held
        torch.cuda.empty_cache()
    half = len(items) // 2
    say(f"focusasr: {len(items)} segments at once do not fit the memory; going on with {half}")
    halved(half)
    return [*in_parts(work, items[:half], device, halved), *in_parts(work, items[half:], device, halved)]


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


def doubles(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64, where its device has that: of MPS, which has not, on the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()
