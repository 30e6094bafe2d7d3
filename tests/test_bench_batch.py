"""The benchmark of batch engines: a small run ends with its ratios, and its rows are as many as asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ops import bench_batch

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("rows", [1, 7, 250, 1000])
def test_repeat__so_many_rows_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(bench_batch, "GROUP", 30)
    bench_batch.repeat(pa.table({"x": list(range(100))}), rows, tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet")["x"].to_pylist() == [i % 100 for i in range(rows)]


@pytest.mark.e2e
def test_bench_batch__small_run__ends_with_the_ratio_of_local() -> None:
    command = [sys.executable, "-m", "ops.bench_batch", "--rows", "20000", "--days", "10", "--engines", "local"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert said.returncode == 0, said.stderr[-2000:]
    assert said.stdout.splitlines()[-1].startswith("local reaches ")
    assert said.stdout.count("| bare") == 2
    assert "| local, features logged |" in said.stdout
