"""Where and how a base is computed: which device, in which dtype, on how many threads."""

from __future__ import annotations

import os
from typing import Any

import torch

from ..errors import BackboneError

SMALL, SMALL_IN_A_CROWD = 40_000_000, 300_000_000
"""Parameters below which a base is run on one thread: in a program that does one thing at a time,
and in one of many threads."""
THREADS = torch.get_num_threads()


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, else CUDA, else Apple's MPS, else the CPU."""
    if device is not None:
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise BackboneError(f"device is {device!r}: use 'cpu', 'cuda', 'cuda:0' or 'mps'.") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_dtype(dtype: torch.dtype | str | None, device: torch.device, config: Any) -> torch.dtype:
    """float32 where it is the exact and fast enough choice (CPU and MPS, small models), else bf16,
    else fp16."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype is not None:
        named = getattr(torch, str(dtype).removeprefix("torch."), None)
        if not isinstance(named, torch.dtype):
            raise BackboneError(f"dtype is {dtype!r}: use 'float32', 'bfloat16' or 'float16'.")
        return named
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    if device.type == "cuda":
        return torch.bfloat16
    text = config.get_text_config()
    width, layers = int(getattr(text, "hidden_size", 0)), int(getattr(text, "num_hidden_layers", 0))
    about_parameters = 12 * layers * width * width  # attention and feed-forward of a usual block
    if about_parameters < 2_000_000_000:
        return torch.float32
    return torch.bfloat16


def choose_threads(device: torch.device, parameters: int, *, in_a_crowd: bool = False) -> None:
    """Let torch compute on as many threads as suit this base: one for a small one on a CPU, else
    torch's own choice.

    Products of a small base are over before a second thread has got its share: training the
    built-in base on two threads takes a third longer than on one. And where several threads of a
    program compute, OpenMP's helpers sleep between products, and to wake them made a token of the
    built-in base five times as long. It counts for the whole process, so it is for programs, not
    for libraries. OMP_NUM_THREADS has the last word.

    Args:
        parameters: of the base. in_a_crowd: the program answers several people from several threads.
    """
    if device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    small = SMALL
    if in_a_crowd:
        small = SMALL_IN_A_CROWD
    threads = THREADS
    if parameters < small:
        threads = 1
    torch.set_num_threads(threads)
