"""Where a model computes: on the processor, or on a GPU that torch finds.

torch is imported only where there may be a GPU at all: most machines answer without it.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.base.imports import importing
from fedsim.errors import FedsimError, nearest

AUTO, CPU, CUDA, MPS = "auto", "cpu", "cuda", "mps"
DEVICES = (AUTO, CPU, CUDA, MPS)
VARIABLE = "FEDSIM_DEVICE"
"""Environment variable: the device that "auto" means."""
_SIGNS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvmap", "/dev/nvhost-gpu")
"""Linux: files of which a machine with a GPU has one (NVIDIA, WSL, AMD, Jetson)."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def find_device(asked: str = AUTO, *, where: str = "device") -> str:
    """Return the torch device that is meant: "cpu", "cuda", "cuda:1" or "mps".

    "auto" is a CUDA GPU if there is one, else Apple's (mps) if there is one, else the processor;
    or what the environment variable FEDSIM_DEVICE names. ROCm's GPUs are "cuda" to torch.

    Args:
        asked: one of `DEVICES`, or a GPU by its number, such as "cuda:1".
        where: what an error calls the setting.

    Raises:
        FedsimError: for another word, and for a device that is not there: says what was found.
    """
    if asked == AUTO and os.environ.get(VARIABLE, AUTO) != AUTO:
        return find_device(os.environ[VARIABLE], where=f"{VARIABLE} in the environment")
    kind, colon, number = asked.partition(":")
    if kind not in DEVICES or (colon and not (kind == CUDA and number.isdecimal())):
        raise FedsimError(f"{where} is {asked!r}: {nearest(asked, DEVICES)}")
    if kind == CPU or (kind == AUTO and not _may_have_gpu()):
        return CPU
    cards, mps = cuda_cards(), _has_mps()
    if kind == AUTO:
        return CUDA if cards else MPS if mps else CPU
    if (kind == MPS and mps) or (kind == CUDA and int(number or 0) < len(cards)):
        return asked
    found = [CPU, *([MPS] if mps else []), *(f"cuda:{i} ({card})" for i, card in enumerate(cards))]
    raise FedsimError(
        f"{where} is {asked!r}, but torch {_torch().__version__} finds {', '.join(found)} here"
        f"{_why_no_cuda() if kind == CUDA and not cards else ''}; use auto or cpu, or run where"
        f" the device is"
    )


def cuda_cards() -> list[str]:
    """Return the name of each CUDA GPU that this process may use."""
    torch = _torch()
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def first_card() -> tuple[str, int]:
    """Return the name and the bytes of memory of the first CUDA GPU, of which there is one."""
    card = _torch().cuda.get_device_properties(0)
    return str(card.name), int(card.total_memory)


def device_facts(device: str) -> str:
    """Return in words what results may depend on of a device, as `find_device` returned it: the
    card, and the versions of what computes on it; "cpu" for the processor."""
    if device == CPU:
        return CPU
    if device == MPS:
        return f"mps ({platform.machine()}, macOS {platform.mac_ver()[0]})"
    torch = _torch()
    card = torch.cuda.get_device_properties(device)
    runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return (
        f"{device} ({card.name}, compute capability {card.major}.{card.minor}, {runtime}, cuDNN"
        f" {torch.backends.cudnn.version()})"
    )


def is_lost(error: BaseException) -> bool:
    """Return whether an error says that the GPU is lost to this process: after an error of CUDA but
    out of memory, every further call fails."""
    if not isinstance(error, RuntimeError):
        return False
    text = str(error)
    cuda = type(error).__name__ == "AcceleratorError" or text.startswith("CUDA error")
    return cuda and "out of memory" not in text


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Let a CUDA GPU compute the same bits every time while open; see `set_deterministic`."""
    undo = set_deterministic(device)
    try:
        yield
    finally:
        undo()


def set_deterministic(device: str) -> Callable[[], None]:
    """Let a CUDA GPU compute the same bits every time; return what undoes it. No other device needs
    that.

    Matrix products and convolutions in full float32 (no TF32), algorithms whose order of sums does
    not depend on timing, and none chosen by a race. An operation that has no such algorithm raises
    `RuntimeError`.
    """
    if not device.startswith(CUDA):
        return lambda: None
    # cuBLAS reads it when it is first used; with another workspace its sums may be split up.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch = _torch()
    cudnn: Any = torch.backends.cudnn
    places = [(cudnn, "benchmark", False), (cudnn, "deterministic", True), *_float32(torch)]
    before = [(place, name, getattr(place, name)) for place, name, _ in places]
    strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()

    def undo() -> None:
        torch.use_deterministic_algorithms(strict, warn_only=warns)
        for place, name, value in before:
            setattr(place, name, value)

    for place, name, value in places:
        setattr(place, name, value)
    torch.use_deterministic_algorithms(True)
    return undo


def _float32(torch: Any) -> list[tuple[Any, str, Any]]:
    """Return the settings that keep TF32 out of products and convolutions."""
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    if hasattr(cudnn, "conv") and hasattr(products, "fp32_precision"):  # torch 2.9 and later
        return [(products, "fp32_precision", "ieee"), (cudnn.conv, "fp32_precision", "ieee")]
    return [(products, "allow_tf32", False), (cudnn, "allow_tf32", False)]


def _may_have_gpu() -> bool:
    return not sys.platform.startswith("linux") or any(Path(sign).exists() for sign in _SIGNS)


def _has_mps() -> bool:
    return bool(_torch().backends.mps.is_available())


def _why_no_cuda() -> str:
    torch = _torch()
    if torch.version.cuda is None and torch.version.hip is None:
        return " (it was built without CUDA)"
    if _VISIBLE in os.environ:
        return f" ({_VISIBLE} is {os.environ[_VISIBLE]!r})"
    return " (no driver, or no GPU that it knows)"


def _torch() -> Any:
    with importing():
        import torch

    return torch
