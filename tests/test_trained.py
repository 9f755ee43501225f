"""The kept classifiers classify, and come from the code that is said to make them."""

import pytest
import torch

from shared.data import digits
from shared.trained import KINDS, SEEDS, train, trained, untrained


def accuracy(network: torch.nn.Module) -> float:
    data = digits(next(network.parameters()).dtype)
    right = network(data.test_inputs).argmax(1) == data.test_targets
    return right.double().mean().item()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kept_network_classifies(kind: str) -> None:
    for seed in SEEDS:
        assert accuracy(trained(kind, seed)) > 0.94


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_frozen_and_differ_by_seed(kind: str) -> None:
    first, second = trained(kind, 0), trained(kind, 1)
    assert not any(p.requires_grad for p in first.parameters())
    assert not torch.equal(first[1].weight, second[1].weight)


def test_float64_has_the_same_weights() -> None:
    single, double = trained("kinked"), trained("kinked", dtype=torch.float64)
    for a, b in zip(single.parameters(), double.parameters(), strict=True):
        assert b.dtype == torch.float64
        assert torch.equal(a.double(), b)


def test_training_makes_what_is_kept() -> None:
    """Training again gives another processor's digits, but the same network."""
    again, kept = train("kinked", 0, steps=1000), trained("kinked", 0)
    ours = torch.cat([p.detach().flatten().float() for p in again.parameters()])
    theirs = torch.cat([p.flatten() for p in kept.parameters()])
    assert torch.corrcoef(torch.stack((ours, theirs)))[0, 1] > 0.99


def test_training_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    train("smooth", 0, steps=1)
    assert torch.equal(before, torch.get_rng_state())


def test_smooth_has_no_kink_and_kinked_has() -> None:
    """Along a line the gradient of a smooth network changes little by little."""
    data = digits(torch.float64)
    place = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    line = data.test_inputs[:1] + place * (data.test_inputs[1:2] - data.test_inputs[:1])
    jumps = {}
    for kind in KINDS:
        x = line.clone().requires_grad_()
        scores = trained(kind, dtype=torch.float64)(x)[:, 0]
        (gradient,) = torch.autograd.grad(scores.sum(), x)
        jumps[kind] = gradient.diff(dim=0).norm(dim=1).max().item()
    assert jumps["kinked"] > 100 * jumps["smooth"]


def test_bad_input_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="kind must be one of smooth, kinked"):
        untrained("round")
    with pytest.raises(ValueError, match="kind must be one of smooth, kinked"):
        trained("round")
    with pytest.raises(ValueError, match="seed must be 0 to 4, not 5"):
        trained("smooth", 5)
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        train("smooth", 0, steps=0)
