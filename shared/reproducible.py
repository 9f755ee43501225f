"""One call at the top of a notebook that makes its numbers the same tomorrow."""

import random

import numpy as np
import torch

LARGEST_SEED = 2**32 - 1
"""NumPy's legacy generator takes seeds up to this one."""


def reproducible(seed: int = 0) -> torch.Generator:
    """Fix every source of chance in this process and return a generator.

    Seeds Python, NumPy and PyTorch, keeps PyTorch on one thread and asks it for
    deterministic algorithms. One thread, because the order in which partial sums
    are added changes the last digits: the same seed on two threads is another run.

    Args:
        seed: a whole number in [0, 2**32 - 1].

    Returns:
        A CPU generator with that seed, to hand to every function that draws.

    Raises:
        TypeError: if ``seed`` is not a whole number.
        ValueError: if ``seed`` is out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed must be a whole number, not {seed!r}")
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be in [0, {LARGEST_SEED}], not {seed}")
    seed = int(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (seeds libraries that still use it)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    return torch.Generator().manual_seed(seed)
