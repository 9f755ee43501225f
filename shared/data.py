"""Real data that ships with scikit-learn: nothing is ever downloaded."""

from typing import NamedTuple

import torch
from sklearn import datasets


class Split(NamedTuple):
    """Examples to learn from and examples to judge by."""

    train_inputs: torch.Tensor
    """Shape (train examples, features)."""
    train_targets: torch.Tensor
    """Shape (train examples,)."""
    test_inputs: torch.Tensor
    """Shape (test examples, features)."""
    test_targets: torch.Tensor
    """Shape (test examples,)."""


def digits(dtype: torch.dtype = torch.float32, test_share: float = 0.2) -> Split:
    """Return the 1797 handwritten digits of 8x8 pixels, scaled to [0, 1].

    The examples are shuffled once, the same way on every call, whatever the seed of
    the run: a seed is there to vary the network, not the question.

    Args:
        dtype: floating type of the inputs; targets are int64 class numbers 0 to 9.
        test_share: share of the examples kept for testing, in (0, 1).

    Raises:
        ValueError: if ``test_share`` leaves one side empty.
    """
    images = datasets.load_digits()
    inputs = torch.tensor(images.data / 16, dtype=dtype)
    return _split(inputs, torch.tensor(images.target), test_share)


def diabetes(dtype: torch.dtype = torch.float32, test_share: float = 0.2) -> Split:
    """Return the 442 diabetes patients: 10 standardized features, standardized target.

    The mean square of the target is 1, so a model that always answers the mean has a
    loss of 1.

    Args:
        dtype: floating type of inputs and targets.
        test_share: share of the examples kept for testing, in (0, 1).

    Raises:
        ValueError: if ``test_share`` leaves one side empty.
    """
    patients = datasets.load_diabetes()
    inputs = torch.tensor(patients.data, dtype=torch.float64)
    targets = torch.tensor(patients.target, dtype=torch.float64)
    inputs, targets = _standardized(inputs), _standardized(targets)
    return _split(inputs.to(dtype), targets.to(dtype), test_share)


def breast_cancer(
    dtype: torch.dtype = torch.float32,
    test_share: float = 0.2,
    *,
    standardized: bool = True,
) -> Split:
    """Return the 569 breast tumors: 30 features, target 1 for benign, 0 for malignant.

    Args:
        dtype: floating type of the inputs; targets are int64, 0 or 1.
        test_share: share of the examples kept for testing, in (0, 1).
        standardized: give each feature mean 0 and variance 1. The raw features differ
            in size by a factor of a hundred thousand.

    Raises:
        ValueError: if ``test_share`` leaves one side empty.
    """
    tumors = datasets.load_breast_cancer()
    inputs = torch.tensor(tumors.data, dtype=torch.float64)
    if standardized:
        inputs = _standardized(inputs)
    return _split(inputs.to(dtype), torch.tensor(tumors.target), test_share)


def _standardized(values: torch.Tensor) -> torch.Tensor:
    """Return values with mean 0 and variance 1 over the first dimension."""
    return (values - values.mean(0)) / values.std(0, correction=0)


def _split(inputs: torch.Tensor, targets: torch.Tensor, test_share: float) -> Split:
    examples = len(inputs)
    if not (0 < test_share < 1 and 0 < round(test_share * examples) < examples):
        raise ValueError(
            f"test_share must leave examples on both sides of {examples}, "
            f"so be in (0, 1), not {test_share}"
        )
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(0))
    test_examples = round(test_share * examples)
    test, train = order[:test_examples], order[test_examples:]
    return Split(inputs[train], targets[train], inputs[test], targets[test])
