"""Sweeps that really run: how runs end, what is run again, what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from shared.sweep import drive, read_rows, runs
from shared.sweep.__main__ import main
from shared.sweep.errors import SweepError
from shared.sweep.rows import Row, Store

NOTEBOOKS = Path(__file__).parent / "notebooks"
DESCENT = NOTEBOOKS / "descent.ipynb"
FAULTS = NOTEBOOKS / "faults.ipynb"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move to a folder with the two notebooks and the grid."""
    shutil.copytree(NOTEBOOKS, tmp_path / "chapters")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it an error to run anything."""

    def fail(*_: object) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr(drive, "run", fail)


def faults(*words: str) -> int:
    return main(["chapters/faults.ipynb", *words, "--jobs", "2", "--timeout", "2"])


def test_every_end_of_a_run_is_a_row(folder: Path, capsys: Any) -> None:
    code = faults("fault=none,raise,kill,hang,diverge,repeat", "turn=3")
    assert code == 1
    assert Path("faults-ad-hoc.csv").read_text() == (
        "fault,turn,before,after,status,error\n"
        "none,3,3,6.0,ok,\n"
        "raise,3,3,,failed,ValueError: the loss is not what it was\n"
        "kill,3,3,,killed,the kernel died\n"
        "hang,3,3,,timed out,a cell ran longer than 2 s\n"
        "diverge,3,3,nan,ok,\n"
        "repeat,3,3,6.0,failed,record() repeats the parameter turn\n"
    )
    printed = capsys.readouterr()
    assert "6 runs: 2 ok, 2 failed, 1 killed, 1 timed out" in printed.out
    kept = sorted(Path("faults.failed").iterdir())
    assert len(kept) == 4
    for path in kept:
        assert f"its notebook is {path}" in printed.err
    raised = nbformat.read(kept[0], as_version=4)
    errors = [out for cell in raised.cells for out in cell.get("outputs", ())]
    assert errors[-1].ename == "ValueError"

    # Again: what was settled stays, what the machine may have caused is tried again.
    stored = Path("faults-ad-hoc.rows.jsonl").read_text().splitlines()
    assert faults("fault=none,raise,kill,hang,diverge,repeat", "turn=3") == 1
    again = Path("faults-ad-hoc.rows.jsonl").read_text().splitlines()
    assert again[: len(stored)] == stored
    tried = [json.loads(line)["parameters"]["fault"] for line in again[len(stored) :]]
    assert sorted(tried) == ["hang", "kill"]


def test_a_grid_file_makes_its_table_and_is_not_run_twice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = "chapters/sweeps/descent.toml"
    assert main([grid]) == 0
    table = Path("chapters/sweeps/descent.csv")
    frame = read_rows(table)
    assert list(frame["learning_rate"]) == [0.1, 0.1, 1.0, 1.0, 40.0, 40.0]
    assert list(frame["start"]) == [1, 2] * 3
    # Closed form: every step multiplies by 1 - 2 learning_rate.
    assert frame["final"][:4].tolist() == pytest.approx(
        [0.8**300, 2 * 0.8**300, 1.0, 2.0], rel=1e-6
    )
    assert frame["final"][4:].isna().all()
    row = json.loads(
        Path("chapters/sweeps/descent.rows.jsonl").read_text().split("\n")[0]
    )
    assert set(row) == {field for field in Row.__dataclass_fields__}
    assert row["versions"] == runs.versions()
    assert row["seconds"] > 0

    text = table.read_text()
    table.unlink()
    with monkeypatch.context() as patched:
        patched.setattr(drive, "run", lambda _: pytest.fail("a run was repeated"))
        assert main([grid]) == 0
        assert table.read_text() == text

    # A changed line of code runs all again; a changed text or page-only cell does not.
    notebook = nbformat.read("chapters/descent.ipynb", as_version=4)
    notebook.cells[0].source += " More text."
    notebook.cells[3].source += "  # another remark"
    nbformat.write(notebook, "chapters/descent.ipynb")
    plan = drive.plan_from_file(Path(grid))
    with Store(plan.store) as store:
        known = store.rows()
    assert all(task.key in known for task in drive.tasks_of(plan, drive.Settings()))
    notebook.cells[2].source += "\nx = 0"
    nbformat.write(notebook, "chapters/descent.ipynb")
    plan = drive.plan_from_file(Path(grid))
    assert not any(task.key in known for task in drive.tasks_of(plan, drive.Settings()))


def test_smoke_runs_its_part_and_leaves_the_table_alone(
    folder: Path, capsys: Any
) -> None:
    table = Path("chapters/sweeps/descent.csv")
    table.write_text("as it was\n")
    assert main(["chapters/sweeps/descent.toml", "--smoke", "--keep", "kept"]) == 0
    assert table.read_text() == "as it was\n"
    assert "descent: 1 runs: 1 ok" in capsys.readouterr().out
    (kept,) = Path("kept").iterdir()
    cells = nbformat.read(kept, as_version=4).cells
    assert [cell.metadata.tags for cell in cells] == [
        ["parameters"],
        ["injected-parameters"],
        [],
    ]


def test_a_run_works_in_the_folder_of_its_chapter_and_strings_stay_strings(
    folder: Path,
) -> None:
    parameters = 'label: str = "x"\ntimes: float = 1.0'
    cells = [
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_code_cell(
            "from pathlib import Path\nfrom shared.record import record\n"
            "record(said=label, kind=type(times).__name__, place=Path.cwd().name)"
        ),
    ]
    nbformat.write(new_notebook(cells=cells), "chapters/echo.ipynb")
    tricky = [
        "__import__('os').makedirs('harm')",
        "1e-3",
        '"; import os #',
        "{label}",
    ]
    grid = Path("chapters/sweeps/echo.toml")
    grid.write_text(f"[grid]\nlabel = {json.dumps(tricky)}\ntimes = [2, inf]\n")
    assert main([str(grid)]) == 0
    frame = read_rows(grid.with_suffix(".csv"))
    assert list(frame["said"]) == [text for text in tricky for _ in range(2)]
    assert set(frame["kind"]) == {"float"}
    assert set(frame["place"]) == {"chapters"}
    assert not list(folder.rglob("harm"))


# --------------------------------------------------------------------------------------
# Without kernels
# --------------------------------------------------------------------------------------


class Waiting(Executor):
    """Runs tasks only when nothing else can happen, the last one first."""

    def __init__(self, outcome_of: Callable[[runs.Task], runs.Outcome]) -> None:
        self.outcome_of = outcome_of
        self.most_at_once = 0
        self._tasks: list[tuple[Future, runs.Task]] = []

    def submit(self, _: object, task: runs.Task) -> Future:
        """Take a task."""
        future = Future()
        self._tasks.append((future, task))
        self.most_at_once = max(self.most_at_once, len(self._tasks))
        return future

    def finish_one(self) -> None:
        """Run the last task."""
        future, task = self._tasks.pop()
        try:
            future.set_result(self.outcome_of(task))
        except RuntimeError as error:
            future.set_exception(error)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Waiting]:
    def make(outcome_of: Callable[[runs.Task], runs.Outcome]) -> Waiting:
        executor = Waiting(outcome_of)
        real_wait = drive.wait

        def finish_one_and_wait(*arguments: object, **options: object) -> tuple:
            executor.finish_one()
            return real_wait(*arguments, **options)

        monkeypatch.setattr(drive, "wait", finish_one_and_wait)
        return executor

    return make


def measured(task: runs.Task) -> runs.Outcome:
    recorded = {"twice": 2 * task.parameters["start"]}
    row = Row(task.key, task.parameters, recorded, "ok", "", 0.1, {})
    return runs.Outcome(row, "")


def test_rows_stand_in_the_order_of_the_grid_whatever_came_first(
    folder: Path, waiting: Callable
) -> None:
    plan = drive.plan_from_text(Path("chapters/descent.ipynb"), ["start=1:40"])
    executor = waiting(measured)
    rows = drive.sweep(plan, executor, 7, drive.Settings())
    assert [row.recorded["twice"] for row in rows] == list(range(2, 82, 2))
    assert list(read_rows(plan.table)["start"]) == list(range(1, 41))
    assert executor.most_at_once == 7
    stored = plan.store.read_text().splitlines()
    assert json.loads(stored[0])["parameters"]["start"] == 7


def test_a_run_that_is_lost_outside_its_kernel_is_a_row_too(
    folder: Path, waiting: Callable, capsys: Any
) -> None:
    def lose_the_second(task: runs.Task) -> runs.Outcome:
        if task.parameters["start"] == 2:
            raise RuntimeError("the worker is gone\nand so on")
        return measured(task)

    plan = drive.plan_from_text(Path("chapters/descent.ipynb"), ["start=1:3"])
    rows = drive.sweep(plan, waiting(lose_the_second), 2, drive.Settings())
    assert [row.status for row in rows] == ["ok", "killed", "ok"]
    assert rows[1].error == "RuntimeError: the worker is gone"
    assert "killed: start=2: RuntimeError" in capsys.readouterr().err


def test_the_key_tells_apart_what_can_change_a_result() -> None:
    def key(
        code: str = "a", value: Any = 1, shared: str = "s", numpy: str = "2"
    ) -> str:
        notebook = {"cells": [{"source": code}]}
        return runs.key_of(notebook, {"x": value, "y": 0}, shared, {"numpy": numpy})

    others = [
        key(code="b"),
        key(value=1.0),
        key(value=True),
        key(value="1"),
        key(value=float("nan")),
        key(shared="t"),
        key(numpy="3"),
    ]
    assert len({key(), *others}) == 8
    assert key(value=float("nan")) == key(value=float("nan"))
    notebook = {"cells": [{"source": "a"}]}
    turned = runs.key_of(notebook, {"y": 0, "x": 1}, "s", {"numpy": "2"})
    assert turned == key()


def test_a_changed_helper_changes_the_hash_of_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "shared"
    shutil.copytree(runs.SHARED, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(runs, "SHARED", copy)
    before = runs.shared_hash()
    assert runs.shared_hash() == before
    with open(copy / "probes.py", "a") as file:
        file.write("# changed\n")
    changed = runs.shared_hash()
    assert changed != before
    (copy / "probes.py").rename(copy / "gauges.py")
    assert runs.shared_hash() not in (before, changed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "there is no grid 'nowhere'"),
        (["chapters/sweeps/decsent.toml"], "did you mean 'descent.toml'"),
        (["chapters/descnet.ipynb", "start=1"], "did you mean 'descent.ipynb'"),
        (["chapters/descent.ipynb"], "at least one axis"),
        (["chapters/descent.ipynb", "strat=1"], "did you mean 'start'"),
        (["chapters/descent.ipynb", "start=-1"], "at least 0 and at most 1000"),
        (["chapters/descent.ipynb", "start=1", "--smoke"], "needs a grid file"),
        (["chapters/descent.ipynb", "start=1", "--out", "no/x.csv"], "cannot write"),
        (["chapters/descent.ipynb", "start=1", "--out", "chapters"], "cannot write"),
        (["start=1"], "the axis 'start=1' needs a notebook before it"),
        (
            ["chapters/descent.ipynb", "start=0:99", "steps=1:99"],
            "9900 runs, more than 2000; if they are meant, add --confirm 9900",
        ),
        (
            ["--out", "x.csv", *["chapters/sweeps/descent.toml"] * 2],
            "--out is for one sweep, not for 2",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    folder: Path, no_kernels: None, capsys: Any, words: list[str], message: str
) -> None:
    before = sorted(folder.rglob("*"))
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("words", [["--jobs", "0"], ["--timeout", "1.5"], ["--jbos"]])
def test_a_bad_option_is_refused(words: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert words[0] in capsys.readouterr().err


def test_one_bad_grid_of_several_stops_all(
    folder: Path, no_kernels: None, capsys: Any
) -> None:
    other = Path("chapters/sweeps/faults.toml")
    other.write_text("[grid]\nfualt = ['none']\n")
    assert main(["chapters/sweeps/descent.toml", str(other)]) == 2
    assert "did you mean 'fault'" in capsys.readouterr().err


def test_a_second_sweep_on_the_same_rows_is_refused(
    folder: Path, no_kernels: None, capsys: Any
) -> None:
    with Store(Path("descent-ad-hoc.rows.jsonl")):
        assert main(["chapters/descent.ipynb", "start=1"]) == 2
    assert "another sweep is writing" in capsys.readouterr().err


def test_a_failed_notebook_that_cannot_be_kept_says_so(
    folder: Path, waiting: Callable
) -> None:
    def failing(task: runs.Task) -> runs.Outcome:
        row = Row(task.key, task.parameters, {}, "failed", "it broke", 0.1, {})
        return runs.Outcome(row, "{}")

    Path("taken").write_text("a file where the folder should be")
    plan = drive.plan_from_text(Path("chapters/descent.ipynb"), ["start=1"])
    with pytest.raises(SweepError, match="cannot write in taken"):
        drive.sweep(plan, waiting(failing), 1, drive.Settings(keep=Path("taken")))
    assert len(plan.store.read_text().splitlines()) == 1


def test_help_shows_every_option_with_examples(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for option in ("jobs", "out", "keep", "timeout", "dask", "smoke", "confirm"):
        assert f"--{option}" in text
    assert "python -m shared.sweep chapters/vanishing_depth.ipynb depth=1,2,4" in text


def test_the_kernels_use_one_thread_unless_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # so that it is put back afterwards
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(drive, "run", measured)
    assert main(["chapters/descent.ipynb", "start=1"]) == 0
    assert os.environ["OMP_NUM_THREADS"] == "1"
