"""Each probe on a case whose answer is known without it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from shared.probes import (
    changed_by_update_predicted,
    gradient_norms,
    largest_curvature,
    projected_gradient,
    ratio_per_layer,
    saturated_share,
    ulp,
)


def with_gradient(values: list[float], dtype: torch.dtype) -> torch.Tensor:
    """Return a leaf with this gradient."""
    leaf = torch.zeros(len(values), dtype=dtype, requires_grad=True)
    leaf.grad = torch.tensor(values, dtype=dtype)
    return leaf


def test_gradient_norms() -> None:
    leaves = [
        with_gradient([3.0, -4.0], torch.float32),
        torch.zeros(2, requires_grad=True),
        with_gradient([0.0, 0.0], torch.float64),
    ]
    norms = gradient_norms(leaves)
    assert norms[0] == 5.0
    assert math.isnan(norms[1])
    assert norms[2] == 0.0


def test_norms_of_gradients_whose_squares_underflow() -> None:
    # The last is the smallest float32 there is.
    for size in (1e-25, 1e-38, 2**-149):
        leaf = with_gradient([size] * 4, torch.float32)
        assert leaf.grad.norm() == 0
        (norm,) = gradient_norms([leaf])
        assert norm / (2 * size) == pytest.approx(1, rel=1e-6)


def test_ratio_of_a_geometric_row() -> None:
    for ratio in (0.14, 1.0, 3.0):
        # The last layer is the largest one when the gradient vanishes.
        norms = [2.0 * ratio ** (7 - layer) for layer in range(8)]
        assert ratio_per_layer(norms) == pytest.approx(ratio, rel=1e-12)


def test_ratio_is_the_slope_of_a_fitted_line() -> None:
    norms = np.random.default_rng(0).uniform(0.1, 9, size=6)
    slope = np.polyfit(np.arange(6), np.log(norms), 1)[0]
    assert ratio_per_layer(norms.tolist()) == pytest.approx(math.exp(-slope))


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_ratio_without_an_answer(bad: float) -> None:
    assert math.isnan(ratio_per_layer([1.0, bad, 2.0]))


def test_ratio_of_one_layer() -> None:
    with pytest.raises(ValueError, match="at least two entries, not 1"):
        ratio_per_layer([1.0])


@pytest.mark.parametrize("kind", [nn.Sigmoid, nn.Tanh])
def test_saturated_share_counts_flat_units(kind: type[nn.Module]) -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)[:, None].requires_grad_()
    activation = kind()
    (slope,) = torch.autograd.grad(activation(x).sum(), x)
    for bound in (0.02, 0.1, 0.2):
        expected = (slope < bound).double().mean().item()
        assert 0 < expected < 1
        assert saturated_share(nn.Sequential(activation), x, bound) == expected


def test_saturated_share_counts_over_all_layers() -> None:
    first, second = nn.Linear(1, 3), nn.Linear(3, 1)
    with torch.no_grad():
        first.weight.fill_(0.0)
        first.bias.copy_(torch.tensor([0.0, 50.0, -50.0]))
        second.weight.fill_(0.0)
        second.bias.fill_(0.0)
    network = nn.Sequential(first, nn.Sigmoid(), nn.ReLU(), second, nn.Tanh())
    # Of three sigmoids two are flat; the tanh stands at 0, where it is steepest.
    assert saturated_share(network, torch.zeros(7, 1)) == 2 / 4


def test_saturated_share_leaves_the_network_alone() -> None:
    activation = nn.Sigmoid()
    network = nn.Sequential(nn.Linear(2, 2), activation)
    saturated_share(network, torch.zeros(1, 2))
    with pytest.raises(RuntimeError):
        saturated_share(network, torch.zeros(1, 3))
    assert not activation._forward_hooks
    assert all(p.grad is None for p in network.parameters())


def test_saturated_share_needs_something_to_measure() -> None:
    with pytest.raises(ValueError, match="no Sigmoid and no Tanh"):
        saturated_share(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.zeros(1, 2))


def test_projected_gradient_drops_what_points_out_of_the_box() -> None:
    x = torch.tensor([0.0, 0.0, 1.0, 1.0, 0.5, 0.0])
    gradient = torch.tensor([2.0, -2.0, 2.0, -2.0, 3.0, 0.0])
    # Descent moves against the gradient: at 0 a positive one points out.
    expected = torch.tensor([0.0, -2.0, 2.0, 0.0, 3.0, 0.0])
    assert torch.equal(projected_gradient(x, gradient, 0, 1), expected)


def test_projected_gradient_is_zero_where_clamped_descent_stops() -> None:
    goal = torch.tensor([-3.0, 0.4, 9.0, 1.0])
    x = torch.full((4,), 0.5)
    for _ in range(200):
        x = (x - 0.2 * (x - goal)).clamp(0, 1)
    left = projected_gradient(x, x - goal, 0, 1)
    assert left.abs().max() < 1e-6
    assert (x - goal).norm() > 8


@pytest.mark.parametrize(
    ("x", "gradient", "words"),
    [
        (torch.zeros(2), torch.zeros(3), r"shape of x, \(2,\), not \(3,\)"),
        (torch.tensor([0.0, 1.1]), torch.zeros(2), "x must be in the box"),
        (torch.tensor([math.nan]), torch.zeros(1), "x must be in the box"),
    ],
)
def test_projected_gradient_refuses(
    x: torch.Tensor, gradient: torch.Tensor, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        projected_gradient(x, gradient, 0, 1)


def wavy(x: torch.Tensor) -> torch.Tensor:
    """Return one loss a row, of no simple Hessian."""
    return (x.sin() * x.roll(1, -1)).sum(-1) + 0.3 * x.pow(4).sum(-1)


def test_largest_curvature_is_that_of_the_hessian() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    free = torch.rand(5, 6, generator=generator) < 0.7
    measured = largest_curvature(wavy, x, free, rounds=400)
    for row, can_move, value in zip(x, free, measured, strict=True):
        hessian = torch.autograd.functional.hessian(wavy, row)
        values = torch.linalg.eigvalsh(hessian[can_move][:, can_move])
        expected = values[values.abs().argmax()]
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_largest_curvature_keeps_the_sign() -> None:
    # Started at a corner of the eigenbasis, power iteration would never leave it.
    scales = torch.tensor([[-5.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
    ones = torch.ones(2, 2, dtype=torch.float64)
    curvature = largest_curvature(lambda x: (scales * x**2 / 2).sum(1), ones)
    np.testing.assert_allclose(curvature, [-5, 3], rtol=1e-12)


def test_largest_curvature_of_a_row_that_cannot_move() -> None:
    x = torch.ones(2, 3)
    free = torch.tensor([[True] * 3, [False] * 3])
    curvature = largest_curvature(lambda x: (x**2).sum(1), x, free)
    np.testing.assert_allclose(curvature, [2, 0], rtol=1e-6)


def test_largest_curvature_refuses() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"shape of x, \(2, 3\), not \(3,\)"):
        largest_curvature(wavy, x, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="rounds must be at least 1, not 0"):
        largest_curvature(wavy, x, rounds=0)


FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def values_of_every_size(dtype: torch.dtype) -> torch.Tensor:
    """Return values over the whole range, powers of two, subnormal ones and 0."""
    info = torch.finfo(dtype)
    generator = torch.Generator().manual_seed(0)
    low, high = math.log2(info.smallest_normal), math.log2(info.max)
    places = torch.rand(2000, generator=generator, dtype=torch.float64)
    sizes = torch.exp2(low + (high - 1 - low) * places)
    signs = torch.sign(torch.rand(2000, generator=generator, dtype=torch.float64) - 0.5)
    tiny = info.smallest_normal * info.eps
    powers = [2.0**k for k in range(-8, 9)] + [info.smallest_normal]
    special = [*powers, *(-p for p in powers), 0.0, tiny, 3 * tiny, -7 * tiny]
    return torch.cat((sizes * signs, torch.tensor(special, dtype=torch.float64))).to(
        dtype
    )


@pytest.mark.parametrize("dtype", FORMATS)
def test_ulp_is_the_distance_to_the_next_number(dtype: torch.dtype) -> None:
    x = values_of_every_size(dtype).abs()
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    following = (x.view(bits) + 1).view(dtype)
    assert torch.equal(ulp(x), following.double() - x.double())
    assert torch.equal(ulp(-x), ulp(x))


def test_ulp_of_what_is_not_finite() -> None:
    spacing = ulp(torch.tensor([math.inf, -math.inf, math.nan]))
    assert spacing[:2].tolist() == [math.inf, math.inf]
    assert spacing[2].isnan()


@pytest.mark.parametrize("dtype", FORMATS[:3])
def test_predicted_changes_are_those_of_the_addition(dtype: torch.dtype) -> None:
    x = values_of_every_size(dtype)
    # Halfway, just beside it, and quarters, which matter below a power of two.
    for share in (0.24, 0.25, 0.26, 0.49, 0.5, 0.51, 1.0):
        for sign in (-1, 1):
            update = sign * share * ulp(x)
            # Exact in float64: an independent rounding by the conversion itself.
            changed = (x.double() + update).to(dtype) != x
            assert torch.equal(changed_by_update_predicted(x, update), changed), share


def test_predicted_changes_in_float64() -> None:
    x = values_of_every_size(torch.float64)
    generator = torch.Generator().manual_seed(1)
    for share in (0.3, 0.5, 0.7):
        noise = torch.rand(len(x), generator=generator, dtype=torch.float64)
        update = (share + 0.1 * noise - 0.05) * ulp(x)
        for signed in (update, -update):
            assert torch.equal(changed_by_update_predicted(x, signed), x + signed != x)


def test_changes_that_cannot_be_predicted() -> None:
    with pytest.raises(ValueError, match="shape of x"):
        changed_by_update_predicted(torch.zeros(3), torch.zeros(2))
