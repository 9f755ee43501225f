"""One call fixes every source of chance, and refuses what is no seed."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from shared.reproducible import reproducible


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Put back what `reproducible` sets in the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def drawn(seed: int) -> list[float]:
    """Return one number from each source of chance."""
    generator = reproducible(seed)
    return [
        random.random(),
        float(np.random.rand()),  # noqa: NPY002  (the generator that is seeded)
        torch.rand(1).item(),
        torch.rand(1, generator=generator).item(),
    ]


def test_every_source_follows_the_seed() -> None:
    first, again, other = drawn(7), drawn(7), drawn(8)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_generator_is_torchs_with_that_seed() -> None:
    expected = torch.rand(5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.rand(5, generator=reproducible(3)), expected)


def test_drawing_from_the_generator_leaves_the_global_one() -> None:
    reproducible(3)
    expected = torch.rand(1)
    torch.rand(100, generator=reproducible(3))
    assert torch.equal(torch.rand(1), expected)


def test_one_thread_and_deterministic_algorithms() -> None:
    torch.set_num_threads(2)
    reproducible()
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(5), np.uint8(5)])
def test_seeds_that_are_taken(seed: int) -> None:
    assert reproducible(seed).initial_seed() == int(seed)


@pytest.mark.parametrize("seed", [True, 1.0, "1", None, np.float64(1)])
def test_what_is_no_whole_number(seed: object) -> None:
    with pytest.raises(TypeError, match="seed must be a whole number"):
        reproducible(seed)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed must be in .*{seed}"):
        reproducible(seed)
