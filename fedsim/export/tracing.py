"""Tracing a network of torch into an ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fedsim.errors import FedsimError
from fedsim.export.onnx_graph import OPSET


def traced(
    module: nn.Module,
    inputs: tuple[Any, ...],
    names: tuple[Sequence[str], Sequence[str]],
    free: Mapping[str, Any],
    *,
    model: str,
    optimize: bool = True,
) -> Any:
    """Return the graph of a network, an `onnx.ModelProto`.

    Args:
        module: whose graph it is.
        inputs: of its `forward`, an example.
        names: of the graph's inputs and outputs.
        free: the dimensions of each argument that may vary, as `torch.export` takes them.
        model: what an error calls it.
        optimize: fold what is constant.

    Raises:
        FedsimError: if torch cannot trace the network.
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                inputs,
                dynamo=True,
                verbose=False,
                optimize=optimize,
                opset_version=OPSET,
                input_names=names[0],
                output_names=names[1],
                dynamic_shapes=free,
            )
    except Exception as error:  # torch's exporter raises whatever it meets
        raise FedsimError(
            f"model {model!r} cannot be exported: torch cannot trace its network"
            f" ({type(error).__name__})"
        ) from error
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter logs and warns of while it traces."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
