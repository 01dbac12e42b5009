"""One row of results: one client's model, made by one method, tested on the client's clips."""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import numpy as np

from fedsim.quant.formats import OWN
from fedsim.quant.runtimes import EMULATED
from fedsim.scenario.scores import BASIC

if TYPE_CHECKING:
    import pyarrow as pa

ACCURACY = "accuracy"
"""The metric of a classifier."""


@dataclass(frozen=True, slots=True)
class Row:
    """The size of one client's model, and how well it recognizes the client's test clips.

    Recognition is counted either in words and characters (`errors`, `words`, `wer`, ...) or in
    whole clips (`correct`, `accuracy`); the other fields are None, and so is a rate of nothing.
    """

    client: str
    method: str
    """A label such as `fp32`, `uniform/cosine`, `myqasr/minmax`."""
    allocation: str
    calibration: str
    rounding: str
    """How weights got their codes; `-` for full precision."""
    moments: str
    """Whose second moments the rounding read: public, own or blend; `-` if none."""
    tuned_on: str
    """The key of the client whose clips the model was tuned on; empty if nobody's."""
    budget_bytes: int
    file_bytes: int
    mean_bits: float
    """Mean bit depth of a weight."""
    clips: int
    errors: int | None
    """Word substitutions, deletions and insertions."""
    words: int | None
    wer: float | None
    """Word error rate, errors / words: 0.12 is 12 %."""
    char_errors: int | None
    chars: int | None
    cer: float | None
    correct: int | None
    accuracy: float | None
    plan_sha256: str
    """Hash of the bit depths of all layers."""
    low: float | None = None
    """Lower end of a 95 % bootstrap interval over test clips, of the rate that `metric` names."""
    high: float | None = None
    """Upper end of that interval."""
    looped: int | None = None
    """Test clips whose transcript was cut because the model repeated itself; None for a model that
    cannot."""
    looped_errors: int | None = None
    """The part of `errors` in these clips; of `char_errors` if the metric is CER."""
    looped_words: int | None = None
    """The part of `words` in these clips; of `chars` if the metric is CER."""
    rate_without_loops: float | None = None
    """The rate that `metric` names, of the other clips."""
    metric: str = "wer"
    """What tables, intervals and counts of clips are of: `wer`, `cer` or `accuracy`."""
    text_normalizer: str = BASIC
    """How texts were normalized before errors were counted; `-` for a classifier."""
    format: str = OWN
    """The format of the files that `file_bytes` counts; `-` for full precision."""
    runtime: str = EMULATED
    """What computed the model when it was tested; `-` for full precision. Where it is not fedsim's
    emulation, it quantizes inputs its own way, and `calibration` is `-`."""
    rare_beyond: int | None = None
    """Words that are not among this many of the most frequent of their language are rare; None if
    they were not counted."""
    rare_errors: int | None = None
    """Rare words of the references that were substituted or deleted."""
    rare_words: int | None = None
    """Rare words of the references."""
    rare_rate: float | None = None
    """rare_errors / rare_words: 0.3 means that 30 % of the rare words were wrong."""

    @property
    def counted(self) -> tuple[int, int] | None:
        """Errors, and the words or characters that they are errors of; None for a classifier."""
        if self.words is None:
            return None
        if self.metric == "cer":
            return self.char_errors or 0, self.chars or 0
        return self.errors or 0, self.words


@dataclass(frozen=True)
class Plan:
    """The bit depth of each layer of one client's model; in a study also counts per test clip.

    `wrong` and `of` are the errors of each test clip and its words, or characters if the metric is
    CER (for a classifier 0 or 1, and 1); they are empty unless the scenario sets `study: true`.
    """

    client: str
    method: str
    tuned_on: str
    bits: tuple[int, ...]
    """Empty for full precision."""
    wrong: tuple[int, ...] = ()
    of: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sensed:
    """What the server knows of one client's layers.

    `sensitivity` holds the values of its layer profile, layer by layer; if the profile is a table,
    `depths` are the bit depths of its columns.

    `quantiles` are those of the layers' outputs, `fedsim.quant.sensitivity.QUANTILES` per layer;
    empty unless the scenario sets `study: true`.
    """

    client: str
    sensitivity: tuple[float, ...]
    quantiles: tuple[float, ...] = ()
    depths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Column:
    """One field of `Row` as a column: its Python type, and whether it may be None."""

    name: str
    kind: type
    optional: bool


def _column(name: str, hint: Any) -> Column:
    if get_origin(hint) is types.UnionType:
        kind = next(t for t in get_args(hint) if t is not type(None))
        return Column(name, kind, optional=True)
    return Column(name, hint, optional=False)


COLUMNS: tuple[Column, ...] = tuple(
    _column(field.name, get_type_hints(Row)[field.name]) for field in fields(Row)
)
"""The columns of every table of rows, in order: of the ledger, Arrow and Parquet."""


def sort_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in the order in which they are stored: by client, method and `tuned_on`."""
    return sorted(rows, key=lambda row: (row.client, row.method, row.tuned_on))


def arrow_schema() -> pa.Schema:
    """Return the Arrow schema of a table of rows."""
    import pyarrow as pa

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    return pa.schema([pa.field(c.name, kinds[c.kind], nullable=c.optional) for c in COLUMNS])


def to_arrow(rows: Sequence[Row], metadata: dict[str, str] | None = None) -> pa.Table:
    """Return the rows, sorted, as an Arrow table with `metadata` in its schema."""
    import pyarrow as pa

    rows, schema = sort_rows(rows), arrow_schema()
    columns = [_arrow_array([getattr(row, f.name) for row in rows], f.type) for f in schema]
    return pa.Table.from_arrays(columns, schema=schema.with_metadata(metadata))


def _arrow_array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return `pa.array(values, kind)`, which would import pandas: half a second at a run's end."""
    import pyarrow as pa

    known = np.array([value is not None for value in values], bool)
    buffers = [None if known.all() else pa.py_buffer(np.packbits(known, bitorder="little"))]
    if kind == pa.string():
        texts = [text.encode() for text in values]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        buffers += [pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
    else:
        numbers = [0 if value is None else value for value in values]
        buffers.append(pa.py_buffer(np.array(numbers, kind.to_pandas_dtype())))
    return pa.Array.from_buffers(kind, len(values), buffers)


def from_arrow(table: pa.Table) -> list[Row]:
    """Return the rows of an Arrow table of `to_arrow`."""
    return [Row(**values) for values in table.to_pylist()]
