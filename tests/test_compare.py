"""The report of what moved between two executions names every number that did."""

import copy
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode, v4

from shared.compare import Change, changes, main


def executed() -> NotebookNode:
    """Return a chapter with a printed table, a result, a figure and a text cell."""
    table = v4.new_output("stream", text="rate  steps\n0.1   73\n0.2   36\n")
    result = v4.new_output("execute_result", {"text/plain": "0.25"})
    figure = v4.new_output(
        "display_data", {"image/png": "AAAA", "text/plain": "Panel 1\n  line: mean 2"}
    )
    return v4.new_notebook(
        cells=[
            v4.new_markdown_cell("Text."),
            v4.new_code_cell("print(table)", outputs=[table]),
            v4.new_code_cell("share", outputs=[result]),
            v4.new_code_cell("draw()", outputs=[figure]),
        ]
    )


def moved(new: NotebookNode) -> list[Change]:
    """Return the changes against `executed`."""
    return list(changes(executed(), new, "a"))


def test_the_same_outputs_and_other_pixels_are_no_change() -> None:
    new = executed()
    new.cells[0].source = "Other text."
    new.cells[3].outputs[0].data["image/png"] = "BBBB"
    assert moved(new) == []


def test_a_number_in_a_table() -> None:
    new = executed()
    new.cells[1].outputs[0].text = "rate  steps\n0.1   74\n0.2   36\n"
    assert moved(new) == [Change("a", 2, "0.1   73", "0.1   74")]


def test_a_result_and_a_figure() -> None:
    new = executed()
    new.cells[2].outputs[0].data["text/plain"] = "0.26"
    new.cells[3].outputs[0].data["text/plain"] = "Panel 1\n  line: mean 3"
    assert moved(new) == [
        Change("a", 3, "0.25", "0.26"),
        Change("a", 4, "  line: mean 2", "  line: mean 3"),
    ]


def test_a_lost_line_an_added_line_and_an_error() -> None:
    new = executed()
    new.cells[1].outputs[0].text = "rate  steps\n0.2   36\n0.3   23\n"
    new.cells[2].outputs = [
        v4.new_output("error", ename="ValueError", evalue="no", traceback=[])
    ]
    assert moved(new) == [
        Change("a", 2, "0.1   73", ""),
        Change("a", 2, "", "0.3   23"),
        Change("a", 3, "0.25", "ValueError: no"),
    ]


def test_other_code_cannot_be_compared() -> None:
    new = executed()
    new.cells[2].source = "other"
    with pytest.raises(ValueError, match="a: the code differs"):
        moved(new)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return two folders with the same two executed chapters."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        for name in ("a", "b"):
            nbformat.write(executed(), folder / f"{name}.ipynb")
    return old, new


def test_report_of_folders(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = map(str, folders)
    assert main([old, new]) == 0
    assert capsys.readouterr().out == "No number moved.\n"
    again = copy.deepcopy(executed())
    again.cells[2].outputs[0].data["text/plain"] = "0.26"
    nbformat.write(again, folders[1] / "b.ipynb")
    assert main([old, new]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "Lines of output that moved: 1",
        "b, cell 3",
        "  old: 0.25",
        "  new: 0.26",
    ]


def test_folders_that_cannot_be_compared(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = folders
    (new / "b.ipynb").unlink()
    assert main([str(old), str(new)]) == 2
    assert "has b.ipynb" in capsys.readouterr().err
    assert main([str(old), str(tmp_path)]) == 2
    assert "no notebooks in" in capsys.readouterr().err
