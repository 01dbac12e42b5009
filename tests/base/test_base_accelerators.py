"""Which device is meant, what an error says was found, and what makes a GPU deterministic."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fedsim.base.accelerators import deterministic, device_facts, find_device, is_lost
from fedsim.errors import FedsimError

without_gpu = pytest.mark.skipif(
    torch.cuda.is_available() or torch.backends.mps.is_available(),
    reason="says what is found on a machine without a GPU",
)


@without_gpu
def test_auto_is_the_processor_without_a_gpu(monkeypatch):
    monkeypatch.delenv("FEDSIM_DEVICE")
    assert find_device() == find_device("auto") == find_device("cpu") == "cpu"
    assert device_facts("cpu") == "cpu"


@without_gpu
@pytest.mark.parametrize("asked", ["cuda", "cuda:3", "mps"])
def test_a_device_that_is_not_there(asked):
    """The error names the setting, what was asked for and what torch finds."""
    found = f"engine.device is '{asked}', but torch {torch.__version__} finds cpu here"
    with pytest.raises(FedsimError) as error:
        find_device(asked, where="engine.device")
    assert str(error.value).startswith(found)
    assert "use auto or cpu" in str(error.value)


@pytest.mark.parametrize(
    "asked", ["gpu", "", "cuda:", "cuda:x", "cpu:0", "mps:1", "Cuda", "auto:0"]
)
def test_a_word_that_names_no_device(asked):
    with pytest.raises(FedsimError, match="device is"):
        find_device(asked)


@without_gpu
def test_what_the_environment_says_that_auto_means(monkeypatch):
    monkeypatch.setenv("FEDSIM_DEVICE", "cuda")
    with pytest.raises(FedsimError, match="FEDSIM_DEVICE in the environment is 'cuda', but torch"):
        find_device()
    assert find_device("cpu") == "cpu"
    monkeypatch.setenv("FEDSIM_DEVICE", "auto")
    assert find_device() == "cpu"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere torch is asked")
@without_gpu
def test_without_a_driver_torch_is_not_imported():
    code = (
        "import sys; from fedsim.base.accelerators import find_device; find_device();"
        "print('torch' in sys.modules)"
    )
    env = {name: text for name, text in os.environ.items() if name != "FEDSIM_DEVICE"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.strip() == "False"


def settings() -> list[object]:
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    newer = hasattr(products, "fp32_precision") and hasattr(cudnn, "conv")
    name = "fp32_precision" if newer else "allow_tf32"
    return [
        torch.are_deterministic_algorithms_enabled(),
        cudnn.benchmark,
        cudnn.deterministic,
        getattr(products, name),
        getattr(cudnn.conv if newer else cudnn, name),
    ]


def test_what_makes_a_gpu_deterministic_is_undone(monkeypatch):
    """Settings of torch, which a machine without a GPU has too."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = settings()
    with deterministic("cuda"):
        strict, benchmark, same, *precisions = settings()
        assert (strict, benchmark, same) == (True, False, True)
        assert set(precisions) <= {"ieee", False}
    assert settings() == before
    with deterministic("cpu"):
        assert settings() == before


def test_an_error_after_which_a_gpu_is_lost():
    assert is_lost(RuntimeError("CUDA error: unspecified launch failure"))
    assert not is_lost(RuntimeError("CUDA error: out of memory"))
    assert not is_lost(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost(ValueError("CUDA error: unspecified launch failure"))
