"""The store loses nothing; the table holds what another run gives again."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from shared.sweep import read_rows
from shared.sweep.errors import SweepError
from shared.sweep.rows import Row, Store, table_frame, table_text, write_whole


def row_of(key: str, status: str = "ok", **recorded: object) -> Row:
    parameters = {"rate": 0.1, "kind": "tanh"}
    error = "" if status == "ok" else "it broke"
    return Row(key, parameters, recorded, status, error, 1.5, {"numpy": "2"})


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        row_of("a", loss=math.inf, steps=3, fell=True, name="3"),
        row_of("b", status="failed", loss=0.1 + 0.2),
    ]
    for row in rows:
        with Store(tmp_path / "rows.jsonl") as store:
            store.append(row)
    with Store(tmp_path / "rows.jsonl") as store:
        found = store.rows()
    assert list(found.values()) == rows
    assert [type(v) for v in found["a"].recorded.values()] == [float, int, bool, str]


def test_not_a_number_comes_back(tmp_path: Path) -> None:
    with Store(tmp_path / "rows.jsonl") as store:
        store.append(row_of("a", loss=math.nan))
        assert math.isnan(store.rows()["a"].recorded["loss"])


def test_the_later_of_two_rows_with_one_key_counts(tmp_path: Path) -> None:
    with Store(tmp_path / "rows.jsonl") as store:
        store.append(row_of("a", status="killed"))
        store.append(row_of("a", loss=1.0))
        assert list(store.rows()) == ["a"]
        assert store.rows()["a"].status == "ok"


def test_a_torn_last_line_is_removed_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with Store(path) as store:
        store.append(row_of("a", loss=1.0))
        store.append(row_of("b", loss=2.0))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(first, len(whole)):
        path.write_bytes(whole[:length])
        with Store(path) as store:
            assert list(store.rows()) == ["a"]
            store.append(row_of("c", loss=3.0))
            assert list(store.rows()) == ["a", "c"]


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for line in ("{}", "[]", "text", json.dumps({"key": "a", "speed": 1})):
        path.write_text(line + "\n")
        with Store(path) as store, pytest.raises(SweepError, match="line 1 of"):
            store.rows()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        Store(tmp_path / "rows.jsonl"),
        pytest.raises(SweepError, match="another sweep is writing"),
    ):
        Store(tmp_path / "rows.jsonl").__enter__()
    with Store(tmp_path / "rows.jsonl") as store:
        store.append(row_of("a"))


def test_a_store_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SweepError, match="cannot write"):
        Store(tmp_path / "nowhere" / "rows.jsonl").__enter__()


def test_a_full_disk_keeps_the_rows_so_far(tmp_path: Path) -> None:
    # A limit on the size of files stands in: like a full disk it takes part of a line.
    resource = pytest.importorskip("resource")
    path = tmp_path / "rows.jsonl"
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(path) as store:
        store.append(row_of("a", loss=1.0))
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, old[1]))
        try:
            with pytest.raises(SweepError, match="The rows so far are kept"):
                store.append(row_of("b", loss=2.0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert path.stat().st_size == size
        store.append(row_of("b", loss=2.0))
        assert list(store.rows()) == ["a", "b"]


def test_the_table_has_no_machine_facts_and_full_parameters() -> None:
    rows = [
        row_of("a", loss=0.1 + 0.2, steps=3),
        row_of("b", status="failed"),
        row_of("c", loss=math.nan, fell=True),
    ]
    assert table_text(["kind", "rate"], rows) == (
        "kind,rate,loss,steps,fell,status,error\n"
        "tanh,0.1,0.3,3,,ok,\n"
        "tanh,0.1,,,,failed,it broke\n"
        "tanh,0.1,nan,,True,ok,\n"
    )


def test_recorded_floats_tell_neighboring_float32_apart() -> None:
    import numpy as np

    values = np.float32([1.0, np.nextafter(np.float32(1), np.float32(2)), 1e-38, 0.1])
    rows = [row_of(str(place), x=float(x)) for place, x in enumerate(values)]
    frame = table_frame([], rows)
    assert (np.float32(frame["x"]) == values).all()


def test_rows_are_read_with_their_types(tmp_path: Path) -> None:
    path = tmp_path / "page.csv"
    path.write_text(
        "depth,rate,kind,loss,fell,note,status,error\n"
        "1,1e-3,NA,inf,True,,ok,\n"
        "2,1.0,None,,False,,failed,it broke\n"
    )
    frame = read_rows(path)
    assert frame["depth"].tolist() == [1, 2]
    assert frame["rate"].tolist() == [0.001, 1.0]
    assert frame["kind"].tolist() == ["NA", "None"]
    assert frame["loss"][0] == math.inf
    assert math.isnan(frame["loss"][1])
    assert frame["fell"].tolist() == [True, False]
    assert frame["fell"].dtype == bool
    assert frame["depth"].dtype == int
    assert frame["note"].tolist() == ["", ""]
    assert frame["error"].tolist() == ["", "it broke"]


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    (tmp_path / "page.csv").write_text("depth,status,error\n")
    frame = read_rows(tmp_path / "page.csv")
    assert list(frame.columns) == ["depth", "status", "error"]
    assert len(frame) == 0


def test_missing_rows_say_how_to_make_them() -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m shared.sweep no_such_page"):
        read_rows("no_such_page")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "page.csv"
    write_whole(path, "old\n")
    write_whole(path, "new\n")
    assert path.read_text() == "new\n"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(SweepError, match="cannot write"):
        write_whole(tmp_path / "nowhere" / "page.csv", "new\n")


def test_reading_rows_costs_a_chapter_no_notebook_machinery() -> None:
    code = (
        "import sys, shared.sweep; print({'nbformat', 'papermill'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert result.stdout == "set()\n", result.stderr
