"""Devices (CUDA, MPS, CPU), recovery from full memory, and distributed processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from focusasr.runtime.console import warn
from focusasr.runtime.errors import InputError, SettingError

if TYPE_CHECKING:
    import torch


Item = TypeVar("Item")
Result = TypeVar("Result")
FULL_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
LOST_DEVICE = ("cuda error", "cudnn_status", "cublas_status", "hip error", "mps error", "device lost")

ROUND = 32  # files per process between two gathers


def choose_device(wanted: str = "auto") -> tuple[torch.device, str]:
    """Return a device and the reason for its choice; `wanted` is auto, cuda, cuda:N, mps or cpu.

    SettingError if the device is not available.
    """
    import torch

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


def may_have_gpu() -> bool:
    """Return whether PyTorch might find a GPU here, without importing it."""
    return sys.platform != "linux" or os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/kfd")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of any library reports full memory."""
    signs = any(sign in str(error).lower() for sign in FULL_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and signs)


def device_fails(device: torch.device, error: Exception) -> bool:
    """Return whether the CPU can take over after an error: the device is lost or its memory is full."""
    lost = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in LOST_DEVICE)
    return device.type != "cpu" and (lost or is_out_of_memory(error))


def run_in_halves(
    work: Callable[[Sequence[Item]], list[Result]],
    items: Sequence[Item],
    device: torch.device,
    halved: Callable[[int], object],
) -> list[Result | None]:
    """Return work(items), one result per item, in halves as long as memory is full.

    Halving prints a warning and calls `halved` with the new number of items. A single item that does not fit gives
    None on a CPU; on another device the error is raised, since the CPU may have more memory.
    """
    if not items:
        return []
    try:
        return list(work(items))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or (len(items) == 1 and device.type != "cpu"):
            raise
    if len(items) == 1:
        return [None]
    if device.type == "cuda":  # the error is deleted by now, and with it the batch's memory
        import torch

        torch.cuda.empty_cache()
    half = len(items) // 2
    warn(f"focusasr: {len(items)} segments at once do not fit the memory; continuing with {half}")
    halved(half)
    return [*run_in_halves(work, items[:half], device, halved), *run_in_halves(work, items[half:], device, halved)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread, then restore PyTorch's number of threads.

    More threads slow small layers down, many times over on a busy machine.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def to_float64(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float64; MPS lacks it, so its tensors move to the CPU."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def memory_gigabytes() -> float:
    """Return the peak memory of the GPU, or without one of this process, in GB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (1e9 if sys.platform == "darwin" else 1e6)


@dataclass(frozen=True)
class Processes:
    """This process among those of the job."""

    rank: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Return whether this is the main process, which prints and writes."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's share: every `count`-th item."""
        return items[self.rank :: self.count]

    def gather(self, mine: list[Result]) -> list[Result]:
        """Return the lists of all processes as one, by rank; every process must call it."""
        if self.count == 1:
            return mine
        from accelerate.utils import gather_object

        return gather_object(mine)

    def in_order(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Iterator[Result]]) -> Iterator[Result]:
        """Yield the results of all items in their order, in every process; each process works on its share."""
        if self.count == 1:
            yield from work(items)
            return
        for start in range(0, len(items), ROUND * self.count):
            several = items[start : start + ROUND * self.count]
            parts = self.gather([list(work(self.share(several)))])
            for index in range(len(several)):
                yield parts[index % self.count][index // self.count]


def in_a_job() -> bool:
    """Return whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_processes(device: Any) -> tuple[Processes, Any]:
    """Return this process among those of the job, and its own device; without other processes, `device`."""
    if not in_a_job():
        return Processes(), device
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return Processes(state.process_index, state.num_processes), device if device.type == "cpu" else state.device


def close_process_group(processes: Processes) -> None:
    """Wait for the other processes, then close the connection to them."""
    if processes.count > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()


@contextmanager
def translate_peer_errors(remedy: str) -> Iterator[None]:
    """Raise the failure of a peer process as InputError with a remedy, instead of the transport's error."""
    try:
        yield
    except RuntimeError as error:
        words = str(error).lower()
        if not any(sign in words for sign in ("gloo", "nccl", "connection closed by peer", "connection reset")):
            raise
        raise InputError(f"another process of this job has failed; {remedy}") from None
