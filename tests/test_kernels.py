"""Warm kernels are as fresh as cold ones, and go when they should."""

import ast
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

from shared import kernels

SECONDS = 60
"""Patience for one answer; a loaded machine may be slow, a hang is a failure."""

NOTEBOOKS = Path(__file__).parent / "notebooks"


@contextmanager
def running(name: str, **options: Any) -> Iterator[tuple]:
    """Start a kernel, and end it however the test ends."""
    manager = KernelManager(kernel_name=name)
    manager.start_kernel(**options)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(client: BlockingKernelClient, code: str) -> list[dict[str, Any]]:
    """Run code in a kernel and return the messages it sent."""
    messages: list[dict[str, Any]] = []
    client.execute_interactive(code, timeout=SECONDS, output_hook=messages.append)
    return messages


def value(client: BlockingKernelClient, expression: str) -> Any:
    """Return the value of an expression in a kernel."""
    messages = run(client, f"print(repr({expression}))")
    texts = [m["content"]["text"] for m in messages if m["msg_type"] == "stream"]
    assert texts, [m["content"] for m in messages]
    return ast.literal_eval("".join(texts))


def gone(pid: int) -> bool:
    """Wait for a process to end; return whether it did."""
    give_up = time.monotonic() + SECONDS
    while time.monotonic() < give_up:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def warm() -> str:
    return kernels.warm_kernel()


needs_forks = pytest.mark.skipif(
    bool(kernels.why_not_to_fork()), reason="kernels are not forked here"
)

LEAVE_TRACES = """
import math, os, random, sys, builtins
import matplotlib, numpy as np, torch
left_behind = 1
builtins.left_behind = 1
math.pi = 3
torch.zeros = None
torch.manual_seed(7); np.random.seed(7); random.seed(7)
torch.set_default_dtype(torch.float64)
matplotlib.rcParams["lines.linewidth"] = 77
os.environ["LEFT_BEHIND"] = "1"
sys.path.append("/left_behind")
os.chdir("/")
"""

LOOK_AROUND = """{
    "global": "left_behind" in globals(),
    "builtin": hasattr(__import__("builtins"), "left_behind"),
    "patched": __import__("math").pi == 3 or __import__("torch").zeros is None,
    "torch dtype": str(__import__("torch").get_default_dtype()),
    "line width": __import__("matplotlib").rcParams["lines.linewidth"],
    "backend": __import__("matplotlib").get_backend().lower(),
    "variable": __import__("os").environ.get("LEFT_BEHIND"),
    "folder": __import__("os").getcwd(),
    "path": __import__("sys").path,
    "main": __import__("sys").modules["__main__"].__dict__ is globals(),
    "interrupts": str(__import__("signal").getsignal(2)),
    "daemon": __import__("multiprocessing").current_process().daemon,
}"""


@needs_forks
def test_nothing_leaks_and_a_warm_kernel_is_like_a_cold_one(
    warm: str, tmp_path: Path
) -> None:
    with running(warm, cwd=str(tmp_path)) as (_, client):
        before = value(client, LOOK_AROUND)
        run(client, LEAVE_TRACES)
        assert value(client, LOOK_AROUND) != before
    with running(warm, cwd=str(tmp_path)) as (_, client):
        assert value(client, LOOK_AROUND) == before
    with running("python3", cwd=str(tmp_path)) as (_, client):
        assert value(client, LOOK_AROUND) == before


@needs_forks
def test_every_kernel_is_a_process_that_draws_its_own_numbers(warm: str) -> None:
    draws = """(
        __import__("os").getpid(),
        __import__("random").random(),
        float(__import__("numpy").random.rand()),
        __import__("torch").rand(1).item(),
    )"""
    seen = []
    for _ in range(2):
        with running(warm) as (_, client):
            seen.append(value(client, draws))
    for first, second in zip(*seen, strict=True):
        assert first != second


@needs_forks
def test_torch_is_there_before_it_is_asked_for(warm: str) -> None:
    with running(warm) as (_, client):
        assert value(client, "'torch' in __import__('sys').modules")
        assert not value(client, "'shared.probes' in __import__('sys').modules")


@needs_forks
def test_what_is_preloaded_is_not_collected_again(warm: str) -> None:
    with running(warm) as (_, client):
        preloaded = value(client, "__import__('gc').get_freeze_count()")
        own = value(client, "len(__import__('gc').get_objects())")
    assert preloaded > 10 * own


def test_figures_are_shown(warm: str) -> None:
    with running(warm) as (_, client):
        for _ in range(2):
            messages = run(client, "import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
            shown = [m["content"]["data"] for m in messages if "data" in m["content"]]
            assert [sorted(data) for data in shown] == [["image/png", "text/plain"]]


@needs_forks
def test_the_environment_and_the_folder_are_those_of_the_run(
    warm: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "GIVEN": "for this run"}
    with running(warm, cwd=str(tmp_path), env=environment) as (_, client):
        assert value(client, "__import__('os').getcwd()") == str(tmp_path)
        assert value(client, "__import__('os').environ['GIVEN']") == "for this run"


@needs_forks
def test_a_kernel_may_start_processes_itself(warm: str) -> None:
    pool = '__import__("multiprocessing").get_context("fork").Pool(1)'
    with running(warm) as (_, client):
        assert value(client, f"{pool}.map(abs, [-1])") == [1]


@needs_forks
def test_kernels_talk_in_a_private_folder_that_is_removed(warm: str) -> None:
    with running(warm) as (manager, _):
        info = manager.get_connection_info()
        folder = Path(info["ip"]).parent
        assert info["transport"] == "ipc"
        others = stat.S_IRWXG | stat.S_IRWXO
        assert folder.stat().st_mode & others == 0
        assert Path(manager.connection_file).parent == folder
        pid = manager.provisioner.pid
    assert not folder.exists()
    assert gone(pid)


@needs_forks
def test_a_cell_can_be_interrupted(warm: str) -> None:
    with running(warm) as (manager, client):
        # With stop_on_error a kernel refuses, for a moment, whatever follows an error.
        loop = "print('looping', flush=True)\nwhile True: pass"
        client.execute(loop, stop_on_error=False)
        while client.get_iopub_msg(timeout=SECONDS)["msg_type"] != "stream":
            pass
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=SECONDS)
        assert reply["content"]["ename"] == "KeyboardInterrupt"
        assert value(client, "1 + 1") == 2


@needs_forks
def test_a_restarted_kernel_has_forgotten(warm: str) -> None:
    with running(warm) as (manager, client):
        run(client, "kept = 1")
        first = value(client, "__import__('os').getpid()")
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=SECONDS)
        assert value(client, "'kept' in globals()") is False
        assert value(client, "__import__('os').getpid()") != first


@needs_forks
def test_a_dead_kernel_is_noticed(warm: str) -> None:
    with running(warm) as (manager, client):
        os.kill(value(client, "__import__('os').getpid()"), signal.SIGKILL)
        give_up = time.monotonic() + SECONDS
        while manager.is_alive() and time.monotonic() < give_up:
            time.sleep(0.01)
        assert not manager.is_alive()


DRIVER = """
import json, time
from jupyter_client.manager import KernelManager
from shared import kernels
kernels.PRELOADED = kernels.PRELOADED[:2]  # enough for this test, and quick
manager = KernelManager(kernel_name=kernels.warm_kernel())
manager.start_kernel()
print(json.dumps([manager.provisioner.pid, manager.ip]), flush=True)
time.sleep(600)
"""


@needs_forks
def test_a_kernel_ends_with_a_driver_that_is_killed() -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE)
    try:
        pid, sockets = json.loads(driver.stdout.readline())
    finally:
        driver.kill()
        driver.communicate()
    assert gone(pid)
    assert not Path(sockets).parent.exists()


def test_where_forking_is_impossible_a_cold_kernel_starts_and_that_is_said_once(
    warm: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "why_not_to_fork", lambda: "this is a test")
    caplog.set_level(logging.WARNING, logger="shared.kernels")
    for _ in range(2):
        with running(warm) as (manager, client):
            assert value(client, "__import__('os').getppid()") == os.getpid()
            assert manager.get_connection_info()["transport"] == "ipc"
    assert [record.getMessage() for record in caplog.records] == [
        "Kernels start cold, which is slower: this is a test."
    ]


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_nothing_is_forked_on_other_systems(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert platform in kernels.why_not_to_fork()


def test_the_kernelspec_is_found_and_written_once(warm: str) -> None:
    path = kernels.install()
    written = path.stat().st_mtime_ns
    assert kernels.install().stat().st_mtime_ns == written
    spec = KernelSpecManager().get_kernel_spec(warm)
    chosen = spec.metadata["kernel_provisioner"]
    assert chosen["provisioner_name"] == "warm-provisioner"
    assert list(path.parent.iterdir()) == [path]


def test_nbval_compares_in_a_warm_kernel(warm: str, tmp_path: Path) -> None:
    cells = [
        nbformat.v4.new_code_cell(
            "import os, sys\nprint('torch' in sys.modules)",
            execution_count=1,
            outputs=[nbformat.v4.new_output("stream", name="stdout", text=text)],
        )
        for text in ("True\n", "something else\n")
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, tmp_path / "page.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval"]
    command += ["--nbval-kernel-name", warm, "-q", str(tmp_path / "page.ipynb")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "1 failed, 1 passed" in result.stdout, result.stdout + result.stderr
