"""Every chapter passes every hygiene check; and what executes and starts chapters."""

import subprocess
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode, v4

from shared import notebooks, skeleton
from shared.notebooks import (
    ANATOMY,
    CARD_FIELDS,
    ROOT,
    chapter_paths,
    cost_line,
    execute,
    execute_all,
    new_chapter,
    reading_minutes,
    skeleton_notebook,
)
from shared.sweep.page import for_sweep, parameters_of
from tests import hygiene

# --------------------------------------------------------------------------------------
# The chapters
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", hygiene.CHECKS, ids=lambda c: c.__name__[6:])
@pytest.mark.parametrize("path", chapter_paths(), ids=lambda path: path.stem)
def test_chapter(path: Path, check: hygiene.Check) -> None:
    problems = check(nbformat.read(path, as_version=4), path.stem)
    assert not problems, "\n".join(problems)


def test_book() -> None:
    problems = hygiene.book_problems(ROOT)
    assert not problems, "\n".join(problems)


def test_there_are_chapters() -> None:
    # Without any, the tests above would pass on nothing.
    assert len(chapter_paths()) >= 1


# --------------------------------------------------------------------------------------
# Choosing chapters
# --------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a git checkout with two committed chapters that stands for the book."""
    (tmp_path / "chapters" / "sweeps").mkdir(parents=True)
    (tmp_path / "shared").mkdir()
    for slug in ("first", "second"):
        nbformat.write(tiny_notebook("1 + 1"), tmp_path / "chapters" / f"{slug}.ipynb")
    (tmp_path / "shared" / "helper.py").write_text("x = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "two chapters"], check=True)
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "CHAPTERS", tmp_path / "chapters")
    return tmp_path


def tiny_notebook(*sources: str) -> NotebookNode:
    """Return a notebook with these code cells."""
    return v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])


def test_chapter_paths_follow_the_slugs(checkout: Path) -> None:
    chapters = checkout / "chapters"
    both = [chapters / "first.ipynb", chapters / "second.ipynb"]
    assert chapter_paths() == both
    assert chapter_paths(["second"]) == both[1:]
    with pytest.raises(ValueError, match=r"'third'.*first, second"):
        chapter_paths(["third"])


def test_changed_slugs(checkout: Path) -> None:
    assert notebooks.changed_slugs() == []
    (checkout / "chapters" / "sweeps" / "second.toml").write_text("[grid]\n")
    (checkout / "README.md").write_text("no matter\n")
    assert notebooks.changed_slugs() == ["second"]
    (checkout / "shared" / "helper.py").write_text("x = 2\n")
    assert notebooks.changed_slugs() == ["first", "second"]


def test_pins_that_changed_concern_every_chapter(checkout: Path) -> None:
    (checkout / "requirements.txt").write_text("numpy\n")
    assert notebooks.changed_slugs() == ["first", "second"]


# --------------------------------------------------------------------------------------
# Executing
# --------------------------------------------------------------------------------------


def test_execute_saves_outputs_and_no_trace_of_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    notebook = tiny_notebook("x = 6\nprint(x)\nprint(x)", "x * 7")
    notebook.cells[0].metadata["execution"] = {"started": "yesterday"}
    notebook.metadata["language_info"] = {"name": "python", "version": "3.99"}
    notebook.cells.insert(0, v4.new_markdown_cell("- **Cost.** TODO"))
    nbformat.write(notebook, path)
    seconds = execute(path)
    saved = nbformat.read(path, as_version=4)
    assert seconds > 0
    assert [cell.execution_count for cell in saved.cells[1:]] == [1, 2]
    assert saved.cells[1].outputs[0].text == "6\n6\n"
    assert saved.cells[2].outputs[0].data["text/plain"] == "42"
    assert hygiene.check_metadata(saved, "a") == []
    assert saved.cells[0].source == cost_line(saved, max(1, round(seconds)))


def test_execute_runs_in_the_folder_of_the_chapter(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("here")
    path = tmp_path / "a.ipynb"
    nbformat.write(tiny_notebook("print(open('rows.csv').read())"), path)
    execute(path)
    saved = nbformat.read(path, as_version=4)
    assert saved.cells[0].outputs[0].text == "here\n"


def test_a_chapter_that_raises_is_not_saved_and_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = tmp_path / "bad.ipynb", tmp_path / "good.ipynb"
    nbformat.write(tiny_notebook("print(1)", "1 / 0"), bad)
    nbformat.write(tiny_notebook("print(2)"), good)
    before = bad.read_bytes()
    assert execute_all([bad, good], jobs=1) == [bad]
    assert bad.read_bytes() == before
    assert nbformat.read(good, as_version=4).cells[0].outputs[0].text == "2\n"
    said = capsys.readouterr()
    assert "good: executed in" in said.out
    assert "bad: FAILED, not saved" in said.err
    assert "ZeroDivisionError" in said.err


def test_a_run_time_that_hardly_moved_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ipynb"
    cells = [v4.new_markdown_cell("- **Cost.** TODO"), v4.new_code_cell("1")]
    notebook = v4.new_notebook(cells=cells)
    for stored, measured, expected in ((10, 12.0, 10), (10, 30.0, 30), (30, 9.0, 9)):
        notebook.cells[0].source = cost_line(notebook, stored)
        nbformat.write(notebook, path)
        clock = iter((0.0, 100.0, 100.0 + measured))
        monkeypatch.setattr(notebooks.time, "perf_counter", lambda c=clock: next(c))
        monkeypatch.setattr(
            notebooks.NotebookClient, "execute", lambda self: self.on_notebook_start()
        )
        execute(path)
        saved = nbformat.read(path, as_version=4)
        assert f"run in {expected} s" in saved.cells[0].source


def test_cost_line_counts() -> None:
    words = v4.new_markdown_cell("word " * 1000)
    code = v4.new_code_cell("\n".join(["x = 1"] * 45))
    notebook = v4.new_notebook(cells=[words, code, v4.new_code_cell(code.source)])
    # 1000 words at 200 a minute, 90 lines at 15 a minute.
    assert reading_minutes(notebook) == 5 + 6
    folded = v4.new_code_cell(code.source, metadata={"tags": ["hide-input"]})
    assert reading_minutes(v4.new_notebook(cells=[words, code, code, folded])) == 11
    line = cost_line(notebook, 3.4)
    # The line does not count itself.
    words.source += "\n" + "\n".join([line] * 20)
    assert reading_minutes(notebook) == 5 + 6
    assert line.startswith("- **Cost.** 11 minutes to read; 2 code cells that run in 3")
    assert "+cpu" not in line


# --------------------------------------------------------------------------------------
# Starting a chapter
# --------------------------------------------------------------------------------------


def test_skeleton_has_a_text_for_every_heading_and_field() -> None:
    assert tuple(skeleton.SECTIONS) == ANATOMY
    assert tuple(skeleton.CARD) == CARD_FIELDS


def test_new_chapter_writes_notebook_and_grid(tmp_path: Path) -> None:
    told = new_chapter("dead_units", tmp_path)
    notebook = nbformat.read(tmp_path / "dead_units.ipynb", as_version=4)
    assert hygiene.headings(notebook, 2) == list(ANATOMY)
    assert (tmp_path / "sweeps" / "dead_units.toml").exists()
    for step in (
        "make sweep ONLY=dead_units",
        "make execute ONLY=dead_units",
        "_toc.yml",
        "symptoms.toml",
        "make test",
    ):
        assert step in told


@pytest.mark.parametrize(
    "slug",
    ["", "Dead", "dead-units", "dead__units", "_dead", "dead_", "2dead", "../a", "a b"],
)
def test_bad_slugs_are_refused(slug: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="slug must be"):
        new_chapter(slug, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["taken.ipynb", "sweeps/taken.toml"])
def test_what_exists_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match="'taken' is taken"):
        new_chapter("taken", tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_the_skeleton_runs_as_it_stands(tmp_path: Path) -> None:
    new_chapter("dead_units", tmp_path)
    path = tmp_path / "dead_units.ipynb"
    notebook = nbformat.read(path, as_version=4)
    rows = tmp_path / "sweeps" / "dead_units.csv"
    rows.write_text("learning_rate,last\n0.01,0.6676079\n0.1,0.0115292\n")
    for cell in notebook.cells:
        # The rows of a chapter that is not in the book yet.
        cell.source = cell.source.replace(
            'read_rows("dead_units")', f"read_rows(Path({str(rows)!r}))"
        ).replace(
            "from shared import plots",
            "from pathlib import Path\nfrom shared import plots",
        )
    nbformat.write(notebook, path)
    execute(path)
    notebook = nbformat.read(path, as_version=4)
    for check in (
        hygiene.check_execution,
        hygiene.check_outputs,
        hygiene.check_page_only,
        hygiene.check_cost,
        hygiene.check_metadata,
    ):
        assert check(notebook, "dead_units") == []


def test_the_skeletons_recording_cells_run_alone(tmp_path: Path) -> None:
    notebook = for_sweep(skeleton_notebook("dead_units"))
    assert set(parameters_of(notebook, "dead_units")) >= {"learning_rate", "seed"}
    path = tmp_path / "a.ipynb"
    nbformat.write(notebook, path)
    execute(path)
    outputs = [o for c in nbformat.read(path, as_version=4).cells for o in c.outputs]
    assert any("last = 0.01153" in str(o) for o in outputs)


# --------------------------------------------------------------------------------------
# The command line
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["new", "Bad"], "slug must be"),
        (["new", ""], "slug must be"),
        (["execute", "third"], "no chapter 'third'"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    said: str,
    checkout: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert notebooks.main(words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_nothing_changed(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert notebooks.main(["execute", "changed"]) == 0
    assert "No chapter has uncommitted edits" in capsys.readouterr().out


def test_a_failure_is_the_exit_code(checkout: Path) -> None:
    path = checkout / "chapters" / "second.ipynb"
    nbformat.write(tiny_notebook("1 / 0"), path)
    assert notebooks.main(["execute", "changed"]) == 1
    nbformat.write(tiny_notebook("1 + 2"), path)
    assert notebooks.main(["execute", "changed"]) == 0
    saved = nbformat.read(path, as_version=4)
    assert saved.cells[0].outputs[0].data["text/plain"] == "3"
