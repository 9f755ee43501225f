"""Fresh kernels forked from a process that has already imported torch.

Starting a kernel and importing torch, matplotlib and the rest takes several seconds;
a copy of a process that has done so takes milliseconds. The kernel named ``warm`` does
that: its provisioner, jupyter_client's plug-in point, asks the fork server of Python's
`multiprocessing` for a process instead of starting a new interpreter. The server runs
no chapter code itself, so every kernel is as fresh as the server was: nothing that one
run does is seen by the next.

Notebooks go on naming ``python3``; papermill, nbval and `shared.notebooks` choose
``warm`` when they run. Kernels talk over Unix sockets in a private folder. Where
forking is impossible an ordinary kernel is started, and a warning says so once.
"""

import asyncio
import functools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from jupyter_client.provisioning import LocalProvisioner

WARM_KERNEL = "warm"
"""Name of the kernelspec that uses `WarmProvisioner`."""

KERNELSPEC = {
    # The command of an ordinary kernel, for where there is no forking. Nobody asks a
    # chapter's kernel for its history, and the data base of it takes time to open.
    "argv": [
        "python",
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
        "--HistoryManager.enabled=False",
    ],
    "display_name": "Python 3 (warm)",
    "language": "python",
    "metadata": {
        "kernel_provisioner": {"provisioner_name": "warm-provisioner"},
        "supported_encryption": ["curve"],
    },
}
"""What jupyter_client reads about the kernel; pyproject.toml names the provisioner."""

PRELOADED = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "numpy",
    "torch",
    "matplotlib.pyplot",
    "pandas",
    "scipy.stats",
    "sklearn.datasets",
)
"""What the fork server imports. Nothing of `shared`: an edited helper must count."""

INLINE_FIGURES = "module://matplotlib_inline.backend_inline"

POLL_SECONDS = 0.005
"""How often a kernel that was told to end is asked whether it has."""


def install() -> Path:
    """Write the kernelspec into the running Python environment, and return its file.

    Raises:
        OSError: if the environment is not writable.
    """
    folder = Path(sys.prefix, "share", "jupyter", "kernels", WARM_KERNEL)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kernel.json"
    text = json.dumps(KERNELSPEC, indent=1) + "\n"
    if not path.is_file() or path.read_text() != text:
        # Two processes may do this at once: neither may read half a file.
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    return path


def warm_kernel() -> str:
    """Return the name of the warm kernel, after making sure that it is installed.

    Raises:
        OSError: if it is not and the environment is not writable.
    """
    install()
    return WARM_KERNEL


def why_not_to_fork() -> str:
    """Return why kernels cannot be forked here; empty if they can."""
    if sys.platform in ("win32", "darwin"):
        return f"forking a process that has loaded torch is not safe on {sys.platform}"
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "this Python has no fork server"
    if multiprocessing.current_process().daemon:
        return "this is a daemonic process, which may not have children"
    return ""


@functools.cache
def _say_once(reason: str) -> None:
    logging.getLogger(__name__).warning(
        "Kernels start cold, which is slower: %s.", reason
    )


@functools.cache
def _fresh_path() -> list[str]:
    """Return ``sys.path`` as a new interpreter has it, without its first entry."""
    command = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.path[1:]))"]
    return json.loads(subprocess.check_output(command, text=True))


class WarmProvisioner(LocalProvisioner):
    """Starts a kernel as a fork of a warm process (jupyter_client's provisioner API)."""

    _sockets: Path | None = None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Choose the transport before the connection file is written."""
        manager = self.parent
        if sys.platform == "win32":
            kwargs.setdefault("transport_encryption", "required")
        elif self._sockets is None and manager is not None:
            # A Unix socket's path is limited to about 100 characters: a short folder.
            self._sockets = Path(tempfile.mkdtemp(prefix="kernel-"))
            manager.transport = "ipc"
            manager.ip = str(self._sockets / "s")
        return await super().pre_launch(**kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        """Fork a kernel, or start an ordinary one where that is impossible."""
        reason = why_not_to_fork()
        if reason:
            _say_once(reason)
            return await super().launch_kernel(cmd, **kwargs)
        folder = str(kwargs.get("cwd") or Path.cwd())
        environment = dict(kwargs.get("env") or os.environ)
        self.process = _ForkedProcess(cmd, folder, environment)
        self.pid = self.process.pid
        # Its own group, by the first thing it does; until then signals go to it alone.
        self.pgid = self.pid
        self.cwd = folder
        return self.connection_info

    async def wait(self) -> int | None:
        """Wait until the kernel has ended, and return its exit code."""
        while self.process and await self.poll() is None:
            await asyncio.sleep(POLL_SECONDS)
        return await super().wait()

    async def cleanup(self, restart: bool = False) -> None:
        """Remove the folder of the sockets, unless they are used again."""
        if self._sockets and not restart:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        await super().cleanup(restart)


class _ForkedProcess:
    """A forked kernel with those methods of `subprocess.Popen` that are needed."""

    stdin = stdout = stderr = None

    def __init__(
        self, cmd: Sequence[str], folder: str, environment: Mapping[str, str]
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        # The command is that of an ordinary kernel; what follows its module counts.
        arguments = list(cmd[cmd.index("ipykernel_launcher") + 1 :])
        # Daemonic, so that a driver that ends without care takes its kernels along.
        self._process: BaseProcess = context.Process(
            target=_be_a_kernel,
            args=(arguments, folder, dict(environment), _fresh_path()),
            daemon=True,
        )
        with _main_module_hidden():
            self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.exitcode

    def wait(self) -> int | None:
        """Wait until it has ended, and return the exit code."""
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


_starting = threading.Lock()


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep multiprocessing from running the program's main module in the kernel.

    A process of multiprocessing imports what its parent was started with, for example
    all of pytest. A kernel has a main module of its own.
    """
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


# --------------------------------------------------------------------------------------
# In the forked process
# --------------------------------------------------------------------------------------


def _be_a_kernel(
    arguments: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    path: Sequence[str],
) -> None:
    """Turn this process into what ``python -m ipykernel_launcher`` starts."""
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Unlike other processes of multiprocessing a kernel may have children.
    multiprocessing.current_process().daemon = False
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.setdefault("MPLBACKEND", INLINE_FIGURES)
    sys.argv[:] = ["ipykernel_launcher", *arguments]
    sys.path[:] = path
    _undo_what_importing_early_changed()

    from ipykernel.kernelapp import IPKernelApp

    parent = f"--IPKernelApp.parent_handle={os.getppid()}"
    IPKernelApp.launch_instance([*arguments, parent])


def _end_with_parent() -> None:
    """End this process when the one that asked for it is gone, however it went."""
    wait_for_any([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _undo_what_importing_early_changed() -> None:
    """Do again what the preloaded packages do on import, for this process."""
    import matplotlib
    import numpy as np

    # matplotlib reads the variable when it is imported, which was in the server.
    matplotlib.rcParams["backend"] = os.environ["MPLBACKEND"]
    # Otherwise every kernel would draw the same numbers without asking for it.
    np.random.seed()  # noqa: NPY002  (the global generator is the point)
    random.seed()


if __name__ == "__main__":
    print(f"The warm kernel is installed: {install()}")
