"""Grids from TOML and from the command line, and what is refused."""

import math
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from shared.sweep.errors import SweepError
from shared.sweep.grid import (
    SECTIONS,
    Grid,
    axis_values,
    grid_from_tables,
    grid_from_text,
    one_run,
    read_tables,
    smoke_grid,
)
from shared.sweep.page import Bounds, Parameter

PARAMETERS = {
    "depth": Parameter("depth", "int", 8, Bounds(lowest=1)),
    "seed": Parameter("seed", "int", 0, Bounds()),
    "rate": Parameter("rate", "float", 0.1, Bounds(0, lowest_is_allowed=False)),
    "kind": Parameter("kind", "str", "tanh", Bounds()),
}


def grid_of(text: str) -> Grid:
    return grid_from_tables(tomllib.loads(text), PARAMETERS)


def test_the_last_axis_moves_fastest() -> None:
    grid = grid_of('[grid]\nkind = ["b", "a"]\ndepth = [2, 1]')
    assert grid.axes == ("kind", "depth")
    assert grid.runs() == [
        {"kind": "b", "depth": 2},
        {"kind": "b", "depth": 1},
        {"kind": "a", "depth": 2},
        {"kind": "a", "depth": 1},
    ]
    assert len(grid) == 4


def test_zipped_axes_move_together() -> None:
    grid = grid_of("[grid]\nseed=[0, 1]\n[zip]\ndepth=[1, 2]\nrate=[0.1, 0.01]")
    assert [tuple(run.values()) for run in grid.runs()] == [
        (0, 1, 0.1),
        (0, 2, 0.01),
        (1, 1, 0.1),
        (1, 2, 0.01),
    ]


def test_a_range_of_whole_numbers_includes_both_ends() -> None:
    assert axis_values("seed", {"from": 0, "to": 3}, PARAMETERS) == [0, 1, 2, 3]


def test_a_log_range_has_equal_ratios() -> None:
    entry = {"from": 1e-3, "to": 1.0, "points": 7, "scale": "log"}
    values = axis_values("rate", entry, PARAMETERS)
    assert values[0] == 1e-3
    assert values[-1] == 1.0
    ratios = [b / a for a, b in pairwise(values)]
    assert ratios == pytest.approx([math.sqrt(10)] * 6, rel=1e-5)
    assert values[1] == 0.00316228


def test_a_linear_range_has_equal_steps() -> None:
    entry = {"from": 1, "to": 2, "points": 5}
    assert axis_values("rate", entry, PARAMETERS) == [1.0, 1.25, 1.5, 1.75, 2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid]\ndeth = [1]", "'deth', which is not a parameter.*mean 'depth'"),
        ("[grid]\ndepth = []", "axis 'depth' is empty"),
        ("[grid]\ndepth = [1, 2, 1]", "axis 'depth' holds 1 twice"),
        ("[grid]\nrate = [1, 1.0]", "axis 'rate' holds 1.0 twice"),
        ("[grid]\ndepth = 3", "must be a list of values or a table"),
        ("[grid]\ndepth = [0]", "depth must be at least 1, not 0"),
        ('[grid]\ndepth = ["1"]', "depth must be of type int, not the str '1'"),
        ("[grid]\nseed = {from = 0}", "lacks to"),
        ("[grid]\nseed = {from = 0, to = 5, step = 2}", "not 'step'"),
        ("[grid]\nseed = {from = 5, to = 0}", "must rise"),
        ("[grid]\nseed = {from = 0, to = 1.5}", "whole number to whole number"),
        ("[grid]\nseed = {from = 0, to = 1000000000}", "more than 100000"),
        ("[grid]\nrate = {from = true, to = 2}", "must be a number, not True"),
        ("[grid]\nrate = {from = 1, to = inf, points = 3}", "must be finite"),
        ("[grid]\nrate = {from = 1, to = 2, points = 1}", "from 2 to 100000, not 1"),
        ("[grid]\nrate = {from = 1, to = 2, points = 3.0}", "not 3.0"),
        ('[grid]\nrate = {from = 1, to = 2, points = 3, scale = "ln"}', "not 'ln'"),
        ('[grid]\nrate = {from = 1, to = 2, scale = "log"}', "lacks points"),
        (
            '[grid]\nrate = {from = 0, to = 2, points = 3, scale = "log"}',
            "must start above 0",
        ),
        ("[grid]\nseed = [1]\n[zip]\nseed = [1]", "stands in .grid. and in .zip."),
        ("[zip]\nseed = [1, 2]\ndepth = [1]", "equal length, not seed: 2, depth: 1"),
        ("[again]\nseed = 1", "at least one axis"),
    ],
)
def test_a_bad_grid_is_refused(text: str, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        grid_of(text)


def test_smoke_keeps_named_values_and_the_first_of_other_axes() -> None:
    grid = grid_of(
        "[grid]\nseed=[5, 6]\nrate=[1, 2, 3]\n[zip]\ndepth=[1,2]\nkind=['a','b']"
    )
    picked = smoke_grid(grid, {"rate": [3, 1], "kind": ["b"]}, PARAMETERS)
    assert [tuple(run.values()) for run in picked.runs()] == [
        (5, 1.0, 2, "b"),
        (5, 3.0, 2, "b"),
    ]
    assert [tuple(run.values()) for run in smoke_grid(grid, {}, PARAMETERS).runs()] == [
        (5, 1.0, 1, "a")
    ]


@pytest.mark.parametrize(
    ("smoke", "message"),
    [
        ({"deep": [1]}, "'deep', which is not an axis of the grid"),
        ({"seed": [9]}, "asks for seed = 9, not in the grid"),
        ({"depth": [1], "kind": ["b"]}, "leaves no point of depth, kind"),
    ],
)
def test_smoke_must_be_part_of_the_grid(smoke: dict, message: str) -> None:
    grid = grid_of("[grid]\nseed=[5, 6]\n[zip]\ndepth=[1,2]\nkind=['a','b']")
    with pytest.raises(SweepError, match=message):
        smoke_grid(grid, smoke, PARAMETERS)


def test_one_run_is_checked_like_an_axis() -> None:
    assert one_run({"rate": 1}, PARAMETERS, "again") == {"rate": 1.0}
    with pytest.raises(SweepError, match=r"\[again\] names 'rat'"):
        one_run({"rat": 1}, PARAMETERS, "again")


def test_words_mean_what_toml_means() -> None:
    words = ["kind=a,1e3", "depth=1:3", "rate=1e-2:1:3log", "seed=7"]
    text = """
    [grid]
    kind = ["a", "1e3"]
    depth = {from = 1, to = 3}
    rate = {from = 1e-2, to = 1, points = 3, scale = "log"}
    seed = [7]
    """
    assert grid_from_text(words, PARAMETERS) == grid_of(text)


def test_a_colon_in_a_string_is_no_range() -> None:
    grid = grid_from_text(["kind=0:20"], PARAMETERS)
    assert grid.runs() == [{"kind": "0:20"}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["depth"], "must be like name=1,2,4, not 'depth'"),
        (["depth="], "axis 'depth' is empty"),
        (["depth=1", "depth=2"], "given twice"),
        (["depth=1,1"], "holds 1 twice"),
        (["depht=1"], "did you mean 'depth'"),
        (["depth=1,x"], "depth must be of type int, not 'x'"),
        (["depth=1:x"], "must be like 0:20"),
        (["depth=0:3"], "depth must be at least 1, not 0"),
        (["rate=__import__('os')"], "rate must be of type float"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(SweepError, match=message):
        grid_from_text(words, PARAMETERS)


def test_a_toml_error_is_given_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "page.toml"
    path.write_text("[grid]\nseed = [1\nrate = 2")
    with pytest.raises(SweepError, match=r"page.toml is not TOML: .*line 3"):
        read_tables(path)


def test_an_unknown_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.toml"
    for text in ("[grdi]\nseed = [1]", "grid = 3"):
        path.write_text(text)
        with pytest.raises(SweepError, match=", ".join(SECTIONS)):
            read_tables(path)


def test_a_missing_grid_is_refused_with_its_neighbor(tmp_path: Path) -> None:
    (tmp_path / "page.toml").touch()
    with pytest.raises(SweepError, match=r"did you mean 'page.toml'"):
        read_tables(tmp_path / "pgae.toml")
