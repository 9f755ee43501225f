"""The same runs on a Dask cluster: notebook and rows travel, no files are shared."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from shared.sweep.errors import SweepError
from shared.sweep.runs import shared_hash, versions

CONNECT_SECONDS = 10
"""A scheduler that does not answer by then counts as unreachable."""


def what_decides_results() -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return what must be the same on every machine: `shared`'s code and releases."""
    return shared_hash(), tuple(versions().items())


@contextmanager
def dask_executor(address: str) -> Iterator[tuple[Executor, int]]:
    """Connect to a cluster; yield an executor and how many runs it makes at a time.

    Args:
        address: of the scheduler, such as ``tcp://host:8786``.

    Raises:
        SweepError: if Dask is missing, the cluster cannot be reached or has no
            workers, or a worker has other code or releases than this machine.
    """
    try:
        from distributed import Client
    except ImportError:
        raise SweepError("--dask needs the package distributed") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SweepError(f"cannot reach a cluster at {address!r}: {error}") from None
    with client:
        threads = client.nthreads()
        if not threads:
            raise SweepError(f"the cluster at {address} has no workers")
        here = what_decides_results()
        for worker, there in client.run(what_decides_results).items():
            if tuple(there) != here:
                raise SweepError(
                    f"worker {worker} has another `shared` or other releases than "
                    "this machine: its rows would not be comparable"
                )
        # Equal tasks are not merged: a run that is asked for is made.
        yield client.get_executor(pure=False), sum(threads.values())
