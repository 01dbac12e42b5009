"""The model file: one safetensors file per client, exact to the byte, verified by hash.

    8 bytes        length of the header (little endian)
    header         JSON: tensor names, dtypes, shapes, offsets; the manifest under `__metadata__`;
                   padded with spaces to a length that depends on the model alone
    tensors        widest type first: activation ranges (F32), weight scales (F16), leftovers, the
                   bit depth of each layer's input (U8), which rows of the token embedding the file
                   holds, if not all (U8, one bit per row); then the packed codes of each layer, and
                   its packed zero points if it has any (U8)

Because the header's length is fixed, the size of a file is a constant plus the packed bytes of each
layer: a plan's size is known to the byte before anything is packed, and `getsize(file) <= budget`.
The header (`quant/modelheader.py`) holds a SHA-256 over its length, itself (with zeros for the
digest) and the tensors, and perhaps a signature (`quant/signatures.py`) in place of some padding.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from fedsim.base.files import atomic_write
from fedsim.errors import FedsimError, ModelFileError
from fedsim.quant.activations import InputFormat
from fedsim.quant.allocation import Sizes
from fedsim.quant.layers import Layer
from fedsim.quant.modelchecks import (
    OtherModel,
    check_layout,
    check_leftovers,
    inputs_of,
    weights_of,
)
from fedsim.quant.modelheader import (
    CODES,
    FORMAT,
    INPUT_BITS,
    NO_OPTIONS,
    RANGES,
    SCALES,
    Manifest,
    TensorSpec,
    fingerprint,
    header_length,
    layout,
    make_header,
    raw_bytes,
    spec_of,
)
from fedsim.quant.modelparse import (
    Flaw,
    Header,
    OtherVersion,
    check_hash,
    check_signature,
    read_header,
    read_tensors,
)
from fedsim.quant.rows import Rows, trimmed_layers
from fedsim.quant.signatures import KeySource, signer, verifier
from fedsim.quant.weights import PackedWeight, code_bytes

SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ModelFile:
    """The contents of a model file.

    `inputs` say how each layer's input is quantized; `rows` which rows of one layer are stored,
    None if all are.
    """

    manifest: Manifest
    weights: tuple[PackedWeight, ...]
    inputs: tuple[InputFormat, ...]
    leftovers: dict[str, torch.Tensor]
    rows: Rows | None = None


def store_leftovers(leftovers: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return leftovers as they are stored: floats in half precision, where that stays finite."""
    stored = {}
    for name, tensor in ((name, tensor.cpu()) for name, tensor in leftovers.items()):
        half = tensor.half() if tensor.is_floating_point() else tensor
        fits = not tensor.is_floating_point() or bool(torch.isfinite(half).all())
        stored[name] = (half if fits else tensor.float()).contiguous()
    return stored


def load_leftovers(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return stored leftovers as the model computes with them: floats in float32."""
    return {k: v.float() if v.is_floating_point() else v for k, v in stored.items()}


def model_sizes(
    layers: Sequence[Layer],
    leftovers: Mapping[str, torch.Tensor],
    manifest: Manifest,
    depths: Sequence[int],
    rows: Rows | None = None,
) -> Sizes:
    """Return the exact bytes of every possible model file of a model, as a table for allocators.

    Args:
        layers: of the model.
        leftovers: as stored.
        manifest: with any bit depths; its other fields decide the length of the header.
        depths: legal bit depths, ascending.
        rows: which rows of one layer are stored; None for all.
    """
    layers = trimmed_layers(layers, rows)
    weight_format, specs = manifest.weight_format, _specs(leftovers)
    table = np.array(
        [[weight_format.code_bytes(layer.shape, depth) for depth in depths] for layer in layers],
        np.int64,
    )
    scales = sum(weight_format.scale_bytes(layer.shape) for layer in layers)
    inputs = len(layers) * (2 * 4 + 1)
    rest = sum(t.nbytes for t in leftovers.values())
    bitmap = 0 if rows is None else rows.bitmap.nbytes
    header = 8 + header_length(layers, specs, manifest, rows)
    return Sizes(tuple(depths), table, header + inputs + scales + rest + bitmap)


def write(
    path: str | os.PathLike[str],
    layers: Sequence[Layer],
    model: ModelFile,
    key: KeySource | None = None,
) -> int:
    """Write a model file atomically and return its bytes: as many with a signature as without.

    Args:
        path: of the file.
        layers: of the model.
        model: the contents of the file.
        key: an Ed25519 private key that signs it (`quant/signatures.py`); None for no signature.

    Raises:
        FedsimError: if the folder cannot be written, the key is not a private key, or the header
            has no room for a signature.
    """
    sign = None if key is None else signer(key)
    layers = trimmed_layers(layers, model.rows)
    tensors = _tensors(layers, model)
    length = header_length(layers, _specs(model.leftovers), model.manifest, model.rows)
    header = make_header(tensors, model.manifest, length, sign)
    try:
        with atomic_write(Path(path)) as file:
            file.write(header)
            for array in tensors.values():
                file.write(raw_bytes(array))
            return file.tell()
    except OSError as error:
        raise FedsimError(
            f"the model file {path} cannot be written: {error.strerror}; choose a folder that is "
            f"writable and has {len(header) + sum(a.nbytes for a in tensors.values()):,} bytes free"
        ) from error


def read(
    path: str | os.PathLike[str],
    layers: Sequence[Layer],
    leftovers: Mapping[str, torch.Tensor] | None = None,
    key: KeySource | None = None,
) -> ModelFile:
    """Read and verify a model file that was made from a model with these layers.

    The index of its tensors must be the one that the writer makes for the model, which bounds the
    memory, and every number one that the writer may write.

    Args:
        path: of the file.
        layers: of the model.
        leftovers: of the model in full precision. If they are not given, those of the file may have
            any names and shapes, up to `modelchecks.MAX_LEFTOVER_BYTES`.
        key: an Ed25519 key whose owner must have signed the file; None to ask for no signature.

    Raises:
        ModelFileError: if the file is missing, truncated, altered by a single bit, of another model
            or of another format, is not signed by `key`, or holds what no model file may.
        FedsimError: if `key` is not an Ed25519 key.
    """
    known = None
    if leftovers is not None:
        known = {k: tensor.cpu().numpy() for k, tensor in load_leftovers(leftovers).items()}
    with _opened(path, key) as (file, header):
        manifest = header.manifest
        if manifest.fingerprint != fingerprint(layers):
            raise ModelFileError(
                f"the model file {path} holds a model made from {manifest.model!r:.300}, whose "
                f"layers differ from those of the model given; load it with the model it was made "
                f"from"
            )
        rows = check_layout(file, header, layers, known)
        layers = trimmed_layers(layers, rows)
        tensors = read_tensors(file, header)
        weights = weights_of(layers, manifest, tensors)
        inputs = inputs_of(layers, tensors[INPUT_BITS], tensors[RANGES])
        fixed = {RANGES, SCALES, INPUT_BITS, *(layer.name + CODES for layer in layers)}
        fixed |= set() if rows is None else set(rows.tensor)
        rest = {name: array for name, array in tensors.items() if name not in fixed}
        check_leftovers(rest, known)
    copies = {name: torch.from_numpy(np.array(array)) for name, array in rest.items()}
    return ModelFile(manifest, weights, inputs, copies, rows)


def read_manifest(path: str | os.PathLike[str], key: KeySource | None = None) -> Manifest:
    """Verify header, hash and, with a `key`, signature of a model file; return its manifest.

    Takes no more memory than the header does, however long the file. Raises as `read` does.
    """
    with _opened(path, key) as (file, header):
        check_hash(file, header)
    return header.manifest


@contextmanager
def _opened(
    path: str | os.PathLike[str], key: KeySource | None
) -> Iterator[tuple[BinaryIO, Header]]:
    """Open a model file and read its header; whatever is wrong is a `ModelFileError`."""
    check = None if key is None else verifier(key)
    try:
        if "\0" in os.fspath(path):
            raise Flaw("no file has such a name")
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise Flaw("it is not a regular file")
        with Path(path).open("rb") as file:
            header = read_header(file)
            if check is not None and not check_signature(header, check):
                how = "signed with another key" if header.signature else "not signed"
                raise ModelFileError(
                    f"the model file {path} is {how}; ask for one that the owner of the key signed"
                )
            yield file, header
    except OSError as error:
        raise ModelFileError(
            f"the model file {path} cannot be read: {error.strerror}; check the path"
        ) from error
    except OtherVersion as version:
        raise ModelFileError(
            f"the model file {path} has format {str(version)!r}, and this version of fedsim reads "
            f"{FORMAT!r}; use the version that wrote it"
        ) from None
    except OtherModel as name:
        raise ModelFileError(
            f"the model file {path} was made with {_options(header.manifest)} of "
            f"{header.manifest.model!r:.300}, and the given model, whose {str(name)!r:.100} "
            f"differs, was loaded with other options; give its id or folder instead"
        ) from None
    except Flaw as flaw:
        raise damaged(path, str(flaw)) from None


def damaged(path: str | os.PathLike[str], what: str) -> ModelFileError:
    """Return the refusal of a model file, `what` of which is wrong."""
    return ModelFileError(
        f"the model file {path} is damaged or is not a fedsim model file ({what}); download or "
        f"make it again"
    )


def _options(manifest: Manifest) -> str:
    """Return the settings that a loader needs, in words."""
    given = {k: v for k, v in sorted(manifest.settings.items()) if v and k not in NO_OPTIONS}
    text = ", ".join(f"{key} {value}" for key, value in given.items())
    return ascii(text)[1:-1][:200] or "no options"


def _specs(leftovers: Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
    return {name: spec_of(tensor.numpy()) for name, tensor in leftovers.items()}


def _tensors(layers: Sequence[Layer], model: ModelFile) -> dict[str, np.ndarray]:
    """Return every tensor of the file, in the order in which they are written."""
    ranges = [i.range for i in model.inputs]
    pairs = [(np.nan, np.nan) if r is None else (r.low, r.high) for r in ranges]
    tensors = {
        RANGES: np.asarray(pairs, "<f4").reshape(len(layers), 2),
        SCALES: np.concatenate([w.scales.reshape(-1) for w in model.weights]).astype("<f2"),
        INPUT_BITS: np.asarray([i.bits for i in model.inputs], np.uint8),
    }
    tensors |= {} if model.rows is None else model.rows.tensor
    tensors |= {name: tensor.numpy() for name, tensor in model.leftovers.items()}
    tensors |= {
        layer.name + CODES: code_bytes(weight)
        for layer, weight in zip(layers, model.weights, strict=True)
    }
    order = layout(layers, _specs(model.leftovers), model.manifest, model.rows)
    return {name: tensors[name] for name in order}
