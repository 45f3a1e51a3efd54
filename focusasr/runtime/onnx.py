"""Sessions of ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from focusasr.runtime.libraries import library


def session(
    model: bytes | Path, threads: int, weights: Mapping[str, np.ndarray] | None = None, arena: bool = True
) -> Any:
    """Return an ONNX Runtime session with its own number of threads (0: all cores); weights may be given apart.

    Without an `arena`, memory is given back at once.
    """
    with library("onnxruntime"):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level, options.enable_cpu_mem_arena = 3, arena
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads use no processor time
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    given = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def run(session: Any, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
    """Return outputs of a session, or all; MemoryError if the memory is full."""
    try:
        found: list[np.ndarray] = session.run(outputs, dict(inputs))
    except Exception as error:  # those of ONNX Runtime have no other common class
        if "alloc" in str(error).lower():
            raise MemoryError(str(error)) from error
        raise
    return found
