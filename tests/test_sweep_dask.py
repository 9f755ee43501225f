"""A sweep on a Dask cluster: equal rows, and a killed worker's runs done again."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import LocalCluster

from shared.kernels import why_not_to_fork
from shared.sweep import cluster, drive
from shared.sweep.__main__ import main

NOTEBOOKS = Path(__file__).parent / "notebooks"
SECONDS = 120
"""Patience; a loaded machine may be slow, a hang is a failure."""

pytestmark = pytest.mark.skipif(bool(why_not_to_fork()), reason="needs fork")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Start two worker processes of one thread each."""
    settings = {
        # A daemonic worker may not start kernels as its children.
        "distributed.worker.daemon": False,
        "temporary-directory": str(tmp_path_factory.mktemp("dask")),
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            worker_dashboard_address=None,
        ) as running,
    ):
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move to a folder with the notebooks."""
    shutil.copytree(NOTEBOOKS, tmp_path / "chapters")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rows_of_a_cluster_are_those_of_this_machine(
    workers: LocalCluster, folder: Path
) -> None:
    words = ["chapters/faults.ipynb", "fault=none,raise,diverge", "turn=0:1"]
    here = main([*words, "--out", "here.csv"])
    there = main([*words, "--out", "there.csv", "--dask", workers.scheduler_address])
    assert here == there == 1
    assert Path("there.csv").read_text() == Path("here.csv").read_text()
    assert len(list(Path("faults.failed").iterdir())) == 2


def test_runs_of_a_killed_worker_are_done_elsewhere(
    workers: LocalCluster, folder: Path
) -> None:
    store = folder / "rows.rows.jsonl"
    victim = next(iter(workers.workers.values())).pid

    def kill_when_rows_come() -> None:
        give_up = time.monotonic() + SECONDS
        while not store.exists() or store.read_text().count("\n") < 4:
            if time.monotonic() > give_up:
                return
            time.sleep(0.01)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill_when_rows_come)
    killer.start()
    words = ["chapters/descent.ipynb", "start=1:30", "steps=1", "--out", "rows.csv"]
    code = main([*words, "--dask", workers.scheduler_address])
    killer.join()
    assert code == 0
    assert store.read_text().count("\n") == 30
    assert not Path(f"/proc/{victim}").exists()


def test_a_cluster_that_cannot_be_reached_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(drive, "run", lambda _: pytest.fail("a run was started"))
    for address in ("tcp://127.0.0.1:9", "nonsense://here"):
        words = ["chapters/descent.ipynb", "start=1", "--dask", address]
        assert main(words) == 2
        assert f"cannot reach a cluster at '{address}'" in capsys.readouterr().err


def test_a_worker_with_other_code_is_refused(
    workers: LocalCluster, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(cluster, "shared_hash", lambda: "another")
    words = ["chapters/descent.ipynb", "start=1", "--dask", workers.scheduler_address]
    assert main(words) == 2
    assert "has another `shared` or other releases" in capsys.readouterr().err
