"""The columns of a shard's table: as pyarrow would make them, without what pyarrow would import for it."""

import subprocess
import sys
from typing import Any

import pyarrow as pa
import pytest

from data_tools.table import column_of
from tests.source import ROOT


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", None, "é漢", ""], pa.string()),
        ([1, None, -3], pa.int32()),
        ([None, 2**60], pa.int64()),
        ([1.5, None, float("inf")], pa.float64()),
        ([True, None, False] * 5, pa.bool_()),
        ([], pa.string()),
        ([], pa.bool_()),
    ],
)
def test_columns_are_those_of_pyarrow(values: list[Any], kind: pa.DataType) -> None:
    found = column_of(values, kind)
    found.validate(full=True)
    assert found.equals(pa.array(values, kind)) and found.to_pylist() == values


def test_no_worker_pays_for_pandas() -> None:
    probe = (
        "import sys; from data_tools.table import table_bytes; table_bytes([], {}); sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", probe], check=False, cwd=ROOT).returncode == 0
