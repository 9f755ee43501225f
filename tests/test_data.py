"""The data are whole, scaled as promised, and the same whatever the seed."""

from collections.abc import Callable

import pytest
import torch
from sklearn import datasets

from shared.data import Split, breast_cancer, diabetes, digits


def rows(split: Split) -> list[tuple[float, ...]]:
    """Return all examples of a split, input and target together, sorted."""
    inputs = torch.cat((split.train_inputs, split.test_inputs)).double()
    targets = torch.cat((split.train_targets, split.test_targets)).double()
    return sorted(map(tuple, torch.cat((inputs, targets[:, None]), 1).tolist()))


def test_digits_are_all_there_once() -> None:
    images = datasets.load_digits()
    pairs = zip(images.data / 16, images.target, strict=True)
    expected = sorted((*map(float, pixels), float(target)) for pixels, target in pairs)
    assert rows(digits(torch.float64)) == expected


def test_digits_shapes_and_types() -> None:
    split = digits()
    assert split.train_inputs.shape == (1438, 64)
    assert split.test_inputs.shape == (359, 64)
    assert split.train_inputs.dtype == torch.float32
    assert split.train_targets.dtype == torch.int64
    assert split.train_inputs.min() == 0
    assert split.train_inputs.max() == 1
    # Shuffled: each side has every class, in about its share.
    assert split.test_targets.bincount(minlength=10).min() > 20


def test_diabetes_is_standardized() -> None:
    split = diabetes(torch.float64)
    inputs = torch.cat((split.train_inputs, split.test_inputs))
    targets = torch.cat((split.train_targets, split.test_targets))
    assert inputs.shape == (442, 10)
    for values in (*inputs.T, targets):
        assert values.mean().item() == pytest.approx(0, abs=1e-12)
        assert (values**2).mean().item() == pytest.approx(1, abs=1e-12)


def test_diabetes_keeps_inputs_and_targets_together() -> None:
    patients = datasets.load_diabetes()
    split = diabetes(torch.float64)
    body_mass = torch.cat((split.train_inputs, split.test_inputs))[:, 2]
    target = torch.cat((split.train_targets, split.test_targets))
    expected = torch.tensor(patients.data[:, 2] @ patients.target)
    scale = torch.tensor(patients.data[:, 2]).std(correction=0)
    scale = scale * torch.tensor(patients.target).std(correction=0)
    # The features that scikit-learn hands out have mean 0 already.
    torch.testing.assert_close(body_mass @ target, expected / scale)


def test_breast_cancer_raw_is_all_there_once() -> None:
    tumors = datasets.load_breast_cancer()
    pairs = zip(tumors.data, tumors.target, strict=True)
    expected = sorted((*map(float, row), float(target)) for row, target in pairs)
    assert rows(breast_cancer(torch.float64, standardized=False)) == expected


def test_breast_cancer_is_standardized() -> None:
    split = breast_cancer(torch.float64)
    raw = breast_cancer(torch.float64, standardized=False)
    inputs = torch.cat((split.train_inputs, split.test_inputs))
    assert inputs.shape == (569, 30)
    for values in inputs.T:
        assert values.mean().item() == pytest.approx(0, abs=1e-12)
        assert (values**2).mean().item() == pytest.approx(1, abs=1e-12)
    # The same tumors in the same order, so that the two can be compared.
    both = torch.stack((split.train_inputs[:, 3], raw.train_inputs[:, 3]))
    assert torch.corrcoef(both)[0, 1].item() == pytest.approx(1)
    assert split.train_targets.equal(raw.train_targets)


@pytest.mark.parametrize("load", [digits, diabetes, breast_cancer])
def test_the_split_depends_on_no_seed_and_draws_from_none(
    load: Callable[..., Split],
) -> None:
    torch.manual_seed(1)
    first = load()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn
    torch.manual_seed(2)
    for one, other in zip(first, load(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("share", "test_examples"), [(0.1, 44), (0.5, 221)])
def test_share(share: float, test_examples: int) -> None:
    split = diabetes(test_share=share)
    assert len(split.test_inputs) == len(split.test_targets) == test_examples
    assert len(split.train_inputs) == 442 - test_examples


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, 1e-6, float("nan")])
@pytest.mark.parametrize("load", [digits, diabetes, breast_cancer])
def test_a_share_that_empties_a_side(load: Callable[..., Split], share: float) -> None:
    with pytest.raises(ValueError, match="test_share must leave"):
        load(test_share=share)
