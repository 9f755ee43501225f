"""What a chapter records arrives in full, whatever it is, and is shown rounded."""

import json
import math
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from nbformat import v4

from shared import record as module
from shared.record import (
    VERDICTS,
    plain,
    record,
    record_verdict,
    recorded_values,
    recorded_verdicts,
    rounded,
)


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the outputs that the calls make, one cell each, as JSON keeps them."""
    made: list[dict[str, Any]] = []

    def display(data: dict[str, str], raw: bool, metadata: dict[str, Any]) -> None:
        output = {"data": data, "metadata": metadata}
        made.append({"outputs": [json.loads(json.dumps(output, allow_nan=False))]})

    monkeypatch.setattr(module, "display", display)
    return made


def shown(cells: list[dict[str, Any]]) -> str:
    """Return the text of the last output."""
    return cells[-1]["outputs"][0]["data"]["text/plain"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (3, 3),
        (0.1, 0.1),
        ("word", "word"),
        (np.bool_(False), False),
        (np.int32(4), 4),
        (np.float32(0.5), 0.5),
        (np.array([[2.5]]), 2.5),
        (torch.tensor(7), 7),
        (torch.tensor([0.25]), 0.25),
        (torch.tensor(True), True),
    ],
)
def test_plain(value: Any, expected: Any) -> None:
    found = plain("loss", value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    "value", [None, [1], (), {}, np.zeros(2), torch.zeros(3), 1j, object()]
)
def test_what_is_neither_number_nor_text(value: Any) -> None:
    with pytest.raises(TypeError, match="loss must be a bool, a number, a string"):
        plain("loss", value)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (123456.0, "1.235e+05"),
        (0.123456, "0.1235"),
        (123456, "123456"),
        (True, "True"),
        (math.nan, "nan"),
    ],
)
def test_rounded(value: Any, text: str) -> None:
    assert rounded(value) == text


def test_values_travel_in_full(cells: list[dict[str, Any]]) -> None:
    record(loss=1 / 3, steps=7, stopped=False, word="é")
    record(loss=torch.tensor(2.0, dtype=torch.float64) / 3)
    found = recorded_values({"cells": cells})
    assert found == {"loss": 2 / 3, "steps": 7, "stopped": False, "word": "é"}
    assert type(found["stopped"]) is bool


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_is_a_result(value: float, cells: list[dict[str, Any]]) -> None:
    record(loss=value)
    assert recorded_values({"cells": cells}) == {"loss": value}


def test_nan_is_a_result(cells: list[dict[str, Any]]) -> None:
    record(loss=np.float32("nan"))
    assert math.isnan(recorded_values({"cells": cells})["loss"])
    assert shown(cells) == "loss = nan"


def test_values_are_shown_aligned(cells: list[dict[str, Any]]) -> None:
    record(a=0.123456, longer=12)
    assert shown(cells) == "a      = 0.1235\nlonger = 12"


def test_record_needs_a_value(cells: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        record()
    with pytest.raises(TypeError, match="loss must be"):
        record(fine=1, loss=[1])
    assert not cells


def test_verdicts_in_order(cells: list[dict[str, Any]]) -> None:
    record_verdict("A28", "true", "1001 of 1001")
    record(loss=1)
    record_verdict("B7", "misleading", "73 steps")
    assert recorded_verdicts({"cells": cells}) == [
        {"claim": "A28", "verdict": "true", "measured": "1001 of 1001"},
        {"claim": "B7", "verdict": "misleading", "measured": "73 steps"},
    ]
    assert recorded_values({"cells": cells}) == {"loss": 1}
    assert shown(cells).splitlines() == [
        "B7   A near-zero gradient offers no direction.",
        "     misleading: 73 steps",
    ]


@pytest.mark.parametrize("verdict", VERDICTS)
def test_verdicts_that_there_are(verdict: str, cells: list[dict[str, Any]]) -> None:
    record_verdict("A1", verdict, "0.1")
    assert verdict in shown(cells)


@pytest.mark.parametrize(
    ("claim", "verdict", "measured", "words"),
    [
        ("C1", "true", "x", "claim must be an id"),
        ("A", "true", "x", "claim must be an id"),
        ("28", "true", "x", "claim must be an id"),
        ("A28", "correct", "x", "verdict must be one of true.*'correct'"),
        ("A28", "true", "  ", "measured must say"),
    ],
)
def test_verdicts_that_are_refused(
    claim: str,
    verdict: str,
    measured: str,
    words: str,
    cells: list[dict[str, Any]],
) -> None:
    with pytest.raises(ValueError, match=words):
        record_verdict(claim, verdict, measured)
    assert not cells


def test_cells_without_records() -> None:
    text = {"cell_type": "markdown", "source": ""}
    stream = {"outputs": [{"output_type": "stream", "text": "x"}]}
    assert recorded_values({"cells": [text, stream]}) == {}


def test_through_a_kernel_and_a_file(tmp_path: Any) -> None:
    source = "from shared.record import record\nrecord(loss=float('inf'), x=1 / 3)"
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source)])
    NotebookClient(notebook, kernel_name="python3").execute()
    nbformat.write(notebook, tmp_path / "a.ipynb")
    saved = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    assert recorded_values(saved) == {"loss": math.inf, "x": 1 / 3}
    assert saved.cells[0].outputs[0].data["text/plain"] == "loss = inf\nx    = 0.3333"
