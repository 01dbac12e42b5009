"""A round on the virtual clock, written and read back."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from round_toys import MB, timed, timeline

from fedsim.errors import FedsimError
from fedsim.results.timed import read_round, write_round


def test_what_is_written_is_read(tmp_path):
    lines = [timeline("b", "watch", None, "failed"), timeline("a", "phone", 12.5)]
    round_ = replace(timed(lines), sensing={"a": "full", "b": None})
    write_round(tmp_path / "t.parquet", round_)
    assert read_round(tmp_path / "t.parquet") == round_
    assert round_.budgets == {"b": MB, "a": 2 * MB}  # by client, whatever the order of the lines
    table = pq.read_table(tmp_path / "t.parquet")
    assert table.column("client").to_pylist() == ["a", "b"]
    assert table.column("budget_bytes").to_pylist() == [2 * MB, MB]


def test_a_file_that_is_not_a_timeline(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_text("nothing")
    with pytest.raises(FedsimError, match=r"t\.parquet: .*: run the scenario again"):
        read_round(path)
    write_round(path, timed([timeline("a", "phone", 1.0)]))
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    with pytest.raises(FedsimError, match="run the scenario again"):
        read_round(path)
