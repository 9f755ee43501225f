"""What a sweep reads from a chapter: parameters, their bounds, the cells to run."""

import math
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from shared.sweep.errors import SweepError, nearest_name
from shared.sweep.page import (
    Bounds,
    bounds_in,
    for_sweep,
    load,
    parameters_of,
)

PARAMETERS = """\
learning_rate: float = 0.1  # step size; above 0
depth: int = 8  # hidden layers; 1 to 100
activation: str = "tanh"  # one of sigmoid, tanh, relu
bias: bool = True  # whether layers have one
shift: float = -2.5
"""


def notebook_with(source: str) -> nbformat.NotebookNode:
    cell = new_code_cell(source, metadata={"tags": ["parameters"]})
    return new_notebook(cells=[new_markdown_cell("# A page"), cell])


@pytest.mark.parametrize(
    ("comment", "inside", "outside"),
    [
        ("# step size; above 0", [1e-9, 3.0], [0.0, -1.0]),
        ("# at least 1", [1, 7], [0]),
        ("# share; above 0 and below 1", [0.5], [0.0, 1.0]),
        ("# share; above 0 and at most 1", [1.0], [0.0, 1.1]),
        ("# below 1e-3", [0.0], [1e-3]),
        ("# momentum; in [0, 1)", [0.0, 0.999], [1.0, -0.1]),
        ("# angle; in (-1.5, 1.5]", [1.5], [-1.5]),
        ("# layers; 1 to 100", [1, 100], [0, 101]),
        ("# exponent; -3 to -1", [-3, -1], [-4, 0]),
        ("# one of sigmoid, tanh or relu", ["tanh", "relu"], ["gelu", ""]),
        ("# one of 'a', \"b\"; the kind", ["a", "b"], ["kind", "b; the kind"]),
    ],
)
def test_a_comment_states_bounds(comment: str, inside: list, outside: list) -> None:
    bounds = bounds_in(comment)
    assert all(bounds.allow(value) for value in inside)
    assert not any(bounds.allow(value) for value in outside)


def test_a_comment_without_bounds_allows_everything() -> None:
    bounds = bounds_in("# where descent begins, relative to 2020 models")
    assert bounds == Bounds()
    assert all(bounds.allow(value) for value in (-1e300, math.inf, math.nan, "x"))


def test_not_a_number_is_in_no_bounds() -> None:
    assert not bounds_in("# above 0").allow(math.nan)


@pytest.mark.parametrize(
    ("comment", "words"),
    [
        ("# above 0", "above 0"),
        ("# in [0, 1)", "at least 0 and below 1"),
        ("# one of a, b", "one of a, b"),
        ("#", "any value"),
    ],
)
def test_bounds_read_as_words(comment: str, words: str) -> None:
    assert str(bounds_in(comment)) == words


def test_parameters_are_read_with_type_default_and_bounds() -> None:
    found = parameters_of(notebook_with(PARAMETERS), "page")
    assert list(found) == ["learning_rate", "depth", "activation", "bias", "shift"]
    assert [p.type_name for p in found.values()] == [
        "float",
        "int",
        "str",
        "bool",
        "float",
    ]
    assert [p.default for p in found.values()] == [0.1, 8, "tanh", True, -2.5]
    assert found["activation"].bounds.choices == ("sigmoid", "tanh", "relu")


def test_a_whole_number_becomes_the_float_that_is_declared() -> None:
    value = parameters_of(notebook_with(PARAMETERS), "page")["shift"].checked(3)
    assert value == 3.0
    assert type(value) is float


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", 2.0, "depth must be of type int, not the float 2.0"),
        ("depth", True, "depth must be of type int, not the bool True"),
        ("depth", "2", "depth must be of type int, not the str '2'"),
        ("bias", 1, "bias must be of type bool, not the int 1"),
        ("shift", "1e-3", "shift must be of type float, not the str '1e-3'"),
        ("learning_rate", 0.0, "learning_rate must be above 0, not 0.0"),
        ("activation", "tahn", "must be one of .*; did you mean 'tanh'?"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: object, message: str) -> None:
    parameter = parameters_of(notebook_with(PARAMETERS), "page")[name]
    with pytest.raises(SweepError, match=message):
        parameter.checked(value)


def test_text_is_read_as_the_declared_type_and_never_evaluated() -> None:
    found = parameters_of(notebook_with(PARAMETERS), "page")
    assert found["learning_rate"].from_text("1e-3") == 0.001
    assert found["depth"].from_text("12") == 12
    assert found["bias"].from_text("false") is False
    assert found["activation"].from_text("relu") == "relu"
    plain = parameters_of(notebook_with('name: str = "x"'), "page")["name"]
    assert plain.from_text("__import__('os').getcwd()") == "__import__('os').getcwd()"
    for name, text in [("depth", "1.5"), ("bias", "1"), ("shift", "1+1")]:
        with pytest.raises(SweepError, match=f"{name} must be"):
            found[name].from_text(text)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("depth = 8", "must be name: type = value, not 'depth = 8'"),
        ("depth: int", "must be name: type = value, not 'depth: int'"),
        ("depth: list = [1]", "with a type of bool, int, float, str"),
        ("depth: int = int(8)", "with a plain value"),
        ("import os", "not 'import os'"),
        ("depth: int = 8.0", "depth must be of type int, not the float"),
        ("depth: int = 0  # at least 1", "depth must be at least 1, not 0"),
        ("depth: int = (", "is not Python"),
    ],
)
def test_a_bad_parameters_cell_is_refused(source: str, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        parameters_of(notebook_with(source), "page.ipynb")


@pytest.mark.parametrize("cells", [0, 2])
def test_there_must_be_one_parameters_cell(cells: int) -> None:
    notebook = new_notebook()
    for _ in range(cells):
        notebook.cells.append(notebook_with("a: int = 1").cells[1])
    with pytest.raises(SweepError, match=f"one cell tagged 'parameters', not {cells}"):
        parameters_of(notebook, "page.ipynb")


def test_a_missing_notebook_is_refused_with_its_neighbor(tmp_path: Path) -> None:
    nbformat.write(new_notebook(), tmp_path / "saddle_point.ipynb")
    with pytest.raises(SweepError, match=r"did you mean 'saddle_point.ipynb'"):
        load(tmp_path / "sadle_point.ipynb")


@pytest.mark.parametrize("text", ["not JSON", '{"cells": 3}', "{}"])
def test_what_is_no_notebook_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.ipynb").write_text(text)
    with pytest.raises(SweepError, match="is not a notebook"):
        load(tmp_path / "page.ipynb")


def test_a_sweep_leaves_out_text_page_only_cells_and_outputs() -> None:
    notebook = notebook_with("a: int = 1")
    notebook.cells += [
        new_code_cell("b = a", outputs=[nbformat.v4.new_output("stream", text="old")]),
        new_code_cell("assert b == 1", metadata={"tags": ["page-only"]}),
    ]
    kept = for_sweep(notebook)
    assert [cell.source for cell in kept.cells] == ["a: int = 1", "b = a"]
    assert kept.cells[0].metadata.tags == ["parameters"]
    assert kept.cells[1].outputs == []
    assert len(notebook.cells) == 4


def test_a_name_far_from_all_suggests_nothing() -> None:
    assert nearest_name("zzz", ["depth", "seed"]) == ""
