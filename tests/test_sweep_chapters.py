"""The committed rows are those that the chapters give: a few runs are made again."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from shared.sweep import read_rows
from shared.sweep.drive import Settings, open_chapter, plan_from_file, sweep
from shared.sweep.grid import grid_from_tables, one_run, read_tables
from shared.sweep.rows import SWEEPS

GRIDS = sorted(SWEEPS.glob("*.toml"))

DIGITS = 1e-5
"""Relative difference that other instruction sets may make after a training run."""

AT_A_BOUNDARY = {"confident_model": ("attacked", "fooled", "fooled_by_margin_loss")}
"""Counts of images that an attack moves across a boundary, or just not."""

MOST_MOVED = 2
"""So many of about 170 the last digit may move to its other side."""

each_grid = pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)


@each_grid
def test_the_table_has_the_rows_of_the_grid_in_its_order(path: Path) -> None:
    grid = plan_from_file(path).grid
    rows = read_rows(path.stem)
    assert list(rows.columns[: len(grid.axes)]) == list(grid.axes)
    given = rows[list(grid.axes)].to_dict("records")
    assert given == grid.runs(), f"make sweep ONLY={path.stem}"
    bad = rows[rows["status"] != "ok"]
    assert not len(bad), bad.to_string()


@each_grid
def test_runs_made_again_give_the_committed_rows(path: Path, tmp_path: Path) -> None:
    plan = plan_from_file(path, tmp_path / f"{path.stem}.csv", smoke=True)
    with ThreadPoolExecutor(1) as executor:
        sweep(plan, executor, 1, Settings())
    again, rows = read_rows(plan.table), read_rows(path.stem)
    axes = list(plan.grid.axes)
    committed = again[axes].merge(rows, how="left", on=axes)[list(rows.columns)]
    for name in AT_A_BOUNDARY.get(path.stem, ()):
        counts = again.pop(name), committed.pop(name)
        pd.testing.assert_series_equal(
            *counts, check_dtype=False, rtol=0, atol=MOST_MOVED
        )
    pd.testing.assert_frame_equal(
        again, committed, check_dtype=False, rtol=DIGITS, atol=0
    )


@each_grid
def test_a_grid_file_says_where_to_run_the_page_again(path: Path) -> None:
    tables = read_tables(path)
    chapter = open_chapter(path.parent.parent / f"{path.stem}.ipynb")
    assert "smoke" in tables
    assert one_run(tables.get("again", {}), chapter.parameters, "again")
    assert len(grid_from_tables(tables, chapter.parameters)) > 1
