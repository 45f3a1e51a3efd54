"""Files that torch.save wrote."""
from pathlib import Path
from typing import Any
import torch
from focusasr.settings import InputError

def read_torch(path: Path, device: str = "cpu") -> Any:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: {error}") from None
