"""Random streams that share nothing, whatever their seeds.

One generator seed for two tensors makes them equal row by row: a hidden state that is a row of a weight matrix gives
one product of 80 standard deviations (GLM-5: 0.022 of error in a row of the output, where 0.007 is usual).
"""

from __future__ import annotations

import hashlib

import torch


def stream(purpose: str, seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each purpose and seed."""
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "big"))
