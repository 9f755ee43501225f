"""Tests of shared.diagnose.copies: copies are exact, stay, and share few pieces."""

import pytest
import torch

from shared.diagnose.copies import PIECE, SMALL, Copies

FORMATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (7, 11, 13)])
def test_copies_are_exact_and_stay_when_the_tensor_changes(
    shape: tuple[int, ...],
) -> None:
    copies = Copies(most=10**6)
    made = []
    for dtype in FORMATS * 3:
        tensor = torch.randn(shape, dtype=torch.float64).to(dtype)
        made.append((copies.keep(tensor), tensor.clone()))
        tensor.zero_()
    for copy, expected in made:
        assert copy.dtype == expected.dtype
        assert copy.shape == expected.shape
        assert torch.equal(copy, expected)


def test_a_view_is_copied_as_it_is_seen() -> None:
    tensor = torch.arange(24.0).reshape(4, 6)
    assert torch.equal(Copies(most=100).keep(tensor.T[1:4:2]), tensor.T[1:4:2])


def test_many_copies_share_pieces_and_large_ones_do_not() -> None:
    copies = Copies(most=10**9)
    middling = [copies.keep(torch.full((2000,), float(k))) for k in range(3000)]
    pieces = {copy.untyped_storage().data_ptr() for copy in middling}
    assert len(pieces) <= 2 + 3000 * 8064 // PIECE
    assert all(torch.equal(c, torch.full((2000,), float(k))) for k, c in
               enumerate(middling))  # fmt: skip
    small = copies.keep(torch.ones(SMALL // 4))
    assert small.untyped_storage().nbytes() == SMALL
    large = copies.keep(torch.ones(PIECE))
    assert large.untyped_storage().nbytes() == 4 * PIECE


def test_an_equal_earlier_copy_is_returned_itself() -> None:
    copies = Copies(most=100)
    first = copies.keep(torch.ones(5))
    assert copies.keep(torch.ones(5), None, torch.zeros(5), first) is first
    # The same numbers in another format are another value.
    assert copies.keep(torch.ones(5, dtype=torch.float64), first) is not first
    assert copies.keep(torch.zeros(5), first) is not first


def test_of_a_large_tensor_evenly_spread_entries_are_kept() -> None:
    tensor = torch.arange(1000.0)
    kept = Copies(most=100).keep(tensor)
    assert torch.equal(kept, tensor[::10])
    assert torch.equal(Copies(most=300).keep(tensor), tensor[::4])
