"""Landscapes against autograd, finite differences and simulated descents."""

import math

import pytest
import torch

from shared import objectives as o

FLOAT = torch.float64


def descend(gradient: float, learning_rate: float, curvature: float, k: int) -> float:
    """Return the gradient of ``curvature x^2 / 2`` after ``k`` steps of descent."""
    x = gradient / curvature
    for _ in range(k):
        x -= learning_rate * curvature * x
    return curvature * x


@pytest.mark.parametrize("curvature", [0.3, 2.0, 40.0])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 1.3, 1.99, 2.01])
def test_contraction_is_the_factor_of_one_step(curvature: float, share: float) -> None:
    rate = share / curvature
    measured = abs(descend(7.0, rate, curvature, 1) / 7.0)
    assert o.contraction(rate, curvature) == pytest.approx(measured, rel=1e-12)


def test_contraction_of_an_ascent_is_above_1() -> None:
    assert o.contraction(-0.1, 2.0) == pytest.approx(1.2)


@pytest.mark.parametrize("curvature", [0.3, 2.0, 394.8])
def test_largest_stable_learning_rate_separates_fates(curvature: float) -> None:
    limit = o.largest_stable_learning_rate(curvature)
    assert abs(descend(1.0, 0.999 * limit, curvature, 20_000)) < 1e-8
    assert abs(descend(1.0, 1.001 * limit, curvature, 20_000)) > 1e8
    assert o.contraction(limit, curvature) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_curvature_must_be_positive(bad: float) -> None:
    with pytest.raises(ValueError, match="curvature must be above 0"):
        o.contraction(0.1, bad)
    with pytest.raises(ValueError, match="curvature must be above 0"):
        o.largest_stable_learning_rate(bad)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.8, 0.97, 0.9993])
@pytest.mark.parametrize("tolerance", [1e-6, 3e-4, 0.7])
@pytest.mark.parametrize("first", [10.0, -2.3, 0.5])
def test_steps_are_those_of_a_loop(rate: float, tolerance: float, first: float) -> None:
    k, gradient = 0, abs(first)
    while gradient >= tolerance:
        k, gradient = k + 1, gradient * rate
    assert o.steps_until_gradient_below(tolerance, first, rate) == k


@pytest.mark.parametrize(
    ("base", "power"), [(0.5, 10), (0.1, 3), (0.03, 3), (0.03, 24), (0.25, 20)]
)
def test_a_gradient_equal_to_the_tolerance_is_not_below_it(
    base: float, power: int
) -> None:
    # The logarithms of such powers round to either side of a whole number.
    tolerance = base**power
    assert o.steps_until_gradient_below(tolerance, 1.0, base) == power + 1
    assert o.steps_until_gradient_below(0.5, -0.5, base) == 1


@pytest.mark.parametrize(
    ("first", "rate", "expected"),
    [(1e-7, 0.5, 0.0), (0.0, 2.0, 0.0), (1.0, 1.0, math.inf), (1.0, 1.5, math.inf)],
)
def test_steps_at_the_ends(first: float, rate: float, expected: float) -> None:
    assert o.steps_until_gradient_below(1e-6, first, rate) == expected


def test_one_step_suffices_when_it_lands_on_the_minimum() -> None:
    assert o.steps_until_gradient_below(1e-6, 5.0, 0.0) == 1.0


def test_steps_for_a_factor_next_to_1_come_back() -> None:
    steps = o.steps_until_gradient_below(1e-6, 1.0, 1 - 2**-53)
    assert steps == pytest.approx(math.log(1e6) * 2**53, rel=1e-9)


@pytest.mark.parametrize(
    ("tolerance", "rate", "words"),
    [
        (0.0, 0.5, "tolerance must be above 0"),
        (math.nan, 0.5, "tolerance must be above 0"),
        (1e-6, -0.1, "rate must be at least 0"),
        (1e-6, math.nan, "rate must be at least 0"),
    ],
)
def test_steps_refuse(tolerance: float, rate: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        o.steps_until_gradient_below(tolerance, 1.0, rate)


# --------------------------------------------------------------------------------------
# Rastrigin
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "value"),
    [
        ([0.0], 0.0),
        ([3.0], 9.0),
        ([0.5], 20.25),
        ([0.25], 10.0625),
        ([1.0, -2.0, 0.5], 1 + 4 + 20.25),
    ],
)
def test_rastrigin_values(x: list[float], value: float) -> None:
    found = o.rastrigin(torch.tensor(x, dtype=FLOAT))
    assert found.item() == pytest.approx(value, abs=1e-12)


def test_rastrigin_keeps_the_leading_dimensions() -> None:
    points = torch.zeros(4, 5, 3)
    assert o.rastrigin(points).shape == (4, 5)
    assert o.rastrigin_gradient(points).shape == (4, 5, 3)


def test_rastrigin_gradient_and_curvature() -> None:
    x = torch.linspace(-5, 5, 37, dtype=FLOAT).requires_grad_()
    (slope,) = torch.autograd.grad(o.rastrigin(x[:, None]).sum(), x, create_graph=True)
    torch.testing.assert_close(o.rastrigin_gradient(x), slope)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    closed = [o.rastrigin_curvature(value) for value in x.tolist()]
    torch.testing.assert_close(torch.tensor(closed, dtype=FLOAT), bend)


def test_the_basin_edge_separates_where_small_steps_end() -> None:
    edge = o.rastrigin_basin_edge()
    assert 0.5 < edge < 0.51
    top = torch.tensor([edge], dtype=FLOAT)
    assert o.rastrigin_gradient(top).item() == pytest.approx(0, abs=1e-9)
    assert o.rastrigin_curvature(edge) < 0
    x = torch.tensor([[edge - 1e-6], [edge + 1e-6], [-edge + 1e-6]], dtype=FLOAT)
    for _ in range(2000):
        x = x - 1e-3 * o.rastrigin_gradient(x)
    ends = o.rastrigin(x)
    assert ends[0] < 1e-9
    assert 0.9 < ends[1] < 1.1
    assert ends[2] < 1e-9


# --------------------------------------------------------------------------------------
# Himmelblau
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("xy", "value"),
    [((3, 2), 0), ((0, 0), 170), ((1, 2), 68), ((-1, 3), 50), ((2, -1), 80)],
)
def test_himmelblau_values(xy: tuple[int, int], value: int) -> None:
    assert o.himmelblau(torch.tensor(xy, dtype=FLOAT)).item() == value


def test_himmelblau_derivatives() -> None:
    points = torch.tensor([[0.3, -1.2], [3.1, 2.2], [-2.0, 4.0]], dtype=FLOAT)
    leaves = points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(o.himmelblau(leaves).sum(), leaves)
    torch.testing.assert_close(o.himmelblau_gradient(points), slope)
    bends = [torch.autograd.functional.hessian(o.himmelblau, p) for p in points]
    torch.testing.assert_close(o.himmelblau_hessian(points), torch.stack(bends))


def test_himmelblau_minima() -> None:
    minima = o.himmelblau_minima()
    # Published to six decimals (Himmelblau 1972).
    published = [
        (3.0, 2.0),
        (-2.805118, 3.131312),
        (-3.779310, -3.283186),
        (3.584428, -1.848126),
    ]
    torch.testing.assert_close(
        minima, torch.tensor(published, dtype=FLOAT), rtol=0, atol=1e-6
    )
    assert o.himmelblau(minima).max() < 1e-24
    assert torch.linalg.eigvalsh(o.himmelblau_hessian(minima)).min() > 0
