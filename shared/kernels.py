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
import gc
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
import time
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client import AsyncKernelClient, BlockingKernelClient
from jupyter_client.client import KernelClient
from jupyter_client.provisioning import LocalProvisioner
from jupyter_core.utils import ensure_async, run_sync

WARM_KERNEL = "warm"
"""Name of the kernelspec that uses `WarmProvisioner`."""

KERNELSPEC = {
    # The command of an ordinary kernel, for where there is no forking. Nobody asks a
    # chapter's kernel for its history, whose data base takes time to open, and its log
    # would tell of every kernel that is ended.
    "argv": [
        "python",
        "-m",
        "ipykernel_launcher",
        "-f",
        "{connection_file}",
        "--HistoryManager.enabled=False",
        "--IPKernelApp.log_level=50",
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
    # What a kernel loads while it starts.
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.logger",
    "IPython.extensions.storemagic",
    "tornado.platform.asyncio",
    # What chapters import, and what torch loads with its first optimizer.
    "torch",
    "torch._dynamo",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "pandas",
    "scipy.stats",
    "scipy.optimize",
    "sklearn.datasets",
    # What reads the rows of a sweep.
    "nbformat",
    "shared.first_figure",
)
"""What the fork server imports.

Nothing of `shared` that a chapter uses: an edited helper must count, so only
`first_figure`, which no chapter imports. Nothing of `matplotlib_inline`: it looks for
its kernel when it is imported.
"""

INLINE_FIGURES = "module://matplotlib_inline.backend_inline"

POLL_SECONDS = 0.005
"""How often a kernel that was told to end is asked whether it has."""

END_SECONDS = 1.0
"""A killed kernel has ended by then; jupyter_client goes on waiting if it has not."""

REMOVALS = 10
"""How often a kernel that loses its driver tries to remove its folder."""

LISTEN_SECONDS = 30.0
"""A kernel that has no sockets by then is left to its client's own patience."""

ANSWER_SECONDS = 0.1
"""A new kernel that has not answered by then is asked again."""


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
    command = [
        sys.executable,
        "-c",
        "import json, sys; print(json.dumps(sys.path[1:]))",
    ]
    return json.loads(subprocess.check_output(command, text=True))


class WarmProvisioner(LocalProvisioner):
    """Starts a kernel as a fork of a warm process, for jupyter_client."""

    _sockets: Path | None = None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Choose the transport before the connection file is written."""
        manager = self.parent
        if sys.platform == "win32":
            kwargs.setdefault("transport_encryption", "required")
        elif self._sockets is None and manager is not None:
            # A Unix socket's path is limited to about 100 characters: a short folder,
            # and one that only its owner may enter.
            self._sockets = Path(tempfile.mkdtemp(prefix="kernel-"))
            manager.transport = "ipc"
            manager.ip = str(self._sockets / "s")
            if not manager.connection_file:
                manager.connection_file = str(self._sockets / "connection.json")
        if manager is not None:
            manager.client_factory = PROMPT_CLIENTS.get(
                manager.client_factory, manager.client_factory
            )
        return await super().pre_launch(**kwargs)

    async def launch_kernel(
        self,
        cmd: list[str],
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Fork a kernel, or start an ordinary one where that is impossible."""
        reason = why_not_to_fork()
        if reason:
            _say_once(reason)
            return await super().launch_kernel(cmd, **kwargs)
        folder = str(kwargs.get("cwd") or Path.cwd())
        environment = dict(kwargs.get("env") or os.environ)
        self.process = _ForkedProcess(cmd, folder, environment, self._sockets)
        self.pid = self.process.pid
        # Its own group, by the first thing it does; until then signals go to it alone.
        self.pgid = self.pid
        self.cwd = folder
        await self._until_listening()
        return self.connection_info

    async def _until_listening(self) -> None:
        """Wait until the kernel has made its last socket, or has ended.

        A client that connects too early tries again only after 0.1 s or more.
        """
        last = Path(f"{self.connection_info['ip']}-{self.connection_info['hb_port']}")
        give_up = time.monotonic() + LISTEN_SECONDS
        while not last.exists() and await self.poll() is None:
            if time.monotonic() > give_up:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def kill(self, restart: bool = False) -> None:
        """End the kernel at once, and return when it has ended."""
        await super().kill(restart)
        # jupyter_client would look every 0.1 s.
        give_up = time.monotonic() + END_SECONDS
        while await self.poll() is None and time.monotonic() < give_up:
            await asyncio.sleep(POLL_SECONDS)

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
        self,
        cmd: Sequence[str],
        folder: str,
        environment: Mapping[str, str],
        sockets: Path | None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        # The command is that of an ordinary kernel; what follows its module counts.
        arguments = list(cmd[cmd.index("ipykernel_launcher") + 1 :])
        # Daemonic, so that a driver that ends without care takes its kernels along.
        self._process: BaseProcess = context.Process(
            target=_be_a_kernel,
            args=(arguments, folder, dict(environment), _fresh_path(), sockets),
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
# Clients that do not wait longer than they must
# --------------------------------------------------------------------------------------


async def _until_ready(client: KernelClient, timeout: float | None = None) -> None:
    """Wait until a kernel answers and its output reaches the client.

    jupyter_client's own function ends with 0.2 s of silence. This one ends when the
    message has arrived that closes the answer: no earlier output can follow it.

    Raises:
        RuntimeError: if the kernel dies, or is not ready within ``timeout`` seconds.
    """
    give_up = time.monotonic() + (float("inf") if timeout is None else timeout)
    while True:
        request = client.kernel_info()
        try:
            reply = await _next(client.shell_channel, request, "kernel_info_reply")
            await _next(client.iopub_channel, request, "status", "idle")
        except Empty:
            if not await client._async_is_alive():
                raise RuntimeError(
                    "Kernel died before replying to kernel_info"
                ) from None
            if time.monotonic() > give_up:
                raise RuntimeError(f"Kernel not ready in {timeout} seconds") from None
        else:
            client._handle_kernel_info_reply(reply)
            return


async def _next(
    channel: Any,  # noqa: ANN401  (jupyter_client names no common class)
    request: str,
    kind: str,
    state: str | None = None,
) -> dict[str, Any]:
    """Return the next message of a kind that answers a request, dropping others."""
    while True:
        message = await ensure_async(channel.get_msg(timeout=ANSWER_SECONDS))
        if message["parent_header"].get("msg_id") != request:
            continue
        if message["msg_type"] == kind and (
            state is None or message["content"]["execution_state"] == state
        ):
            return message


class PromptAsyncClient(AsyncKernelClient):
    """The client of papermill and nbclient."""

    wait_for_ready = _until_ready


class PromptBlockingClient(BlockingKernelClient):
    """The client of nbval."""

    wait_for_ready = run_sync(_until_ready)


PROMPT_CLIENTS = {
    AsyncKernelClient: PromptAsyncClient,
    BlockingKernelClient: PromptBlockingClient,
}
"""What stands in for jupyter_client's own clients of a warm kernel."""


# --------------------------------------------------------------------------------------
# In the forked process
# --------------------------------------------------------------------------------------


def _be_a_kernel(
    arguments: Sequence[str],
    folder: str,
    environment: Mapping[str, str],
    path: Sequence[str],
    sockets: Path | None,
) -> None:
    """Turn this process into what ``python -m ipykernel_launcher`` starts."""
    os.setsid()
    # Half a million objects of the preloaded packages are never garbage: a collection
    # would visit them all, and copy the memory they share with the server.
    gc.freeze()
    threading.Thread(target=_end_with_parent, args=(sockets,), daemon=True).start()
    # Unlike other processes of multiprocessing a kernel may have children.
    multiprocessing.current_process().daemon = False
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.environ.setdefault("MPLBACKEND", INLINE_FIGURES)
    sys.argv[:] = ["ipykernel_launcher", *arguments]
    sys.path[:] = path
    _undo_what_importing_early_changed()
    # Nobody steps through a chapter's kernel, and the debugger takes time to load.
    sys.modules.setdefault("debugpy", None)

    from ipykernel.kernelapp import IPKernelApp

    parent = f"--IPKernelApp.parent_handle={os.getppid()}"
    IPKernelApp.launch_instance([*arguments, parent])


def _end_with_parent(sockets: Path | None) -> None:
    """End this process when the one that asked for it is gone, however it went."""
    wait_for_any([multiprocessing.parent_process().sentinel])
    # Again, because a kernel that is still starting makes files there meanwhile.
    for _ in range(REMOVALS):
        if sockets and sockets.exists():
            shutil.rmtree(sockets, ignore_errors=True)
    os._exit(1)


def _undo_what_importing_early_changed() -> None:
    """Do again what the preloaded packages do on import, for this process."""
    loaded = sys.modules
    if "matplotlib" in loaded:
        # It reads the variable when it is imported, which was in the server.
        loaded["matplotlib"].rcParams["backend"] = os.environ["MPLBACKEND"]
    # Otherwise every kernel would draw the same numbers without asking for it.
    random.seed()
    if "numpy" in loaded:
        loaded["numpy"].random.seed()
    if "torch" in loaded:
        loaded["torch"].seed()


if __name__ == "__main__":
    print(f"The warm kernel is installed: {install()}")
