"""Rules about the inputs of a network: their scale, and whose targets they meet."""

import math
from collections.abc import Iterator

import torch

from shared.diagnose.causes import Cause
from shared.diagnose.observation import Observation, helps
from shared.diagnose.repairs import Standardized, standardized
from shared.diagnose.report import Evidence, Finding, Proof
from shared.diagnose.targets import are_classes, base_loss
from shared.diagnose.watch import Level

SHUFFLES = 60

NEAR = 0.7
"""Distance of the nearest inputs over the usual one, above which there are none."""

RIDGE = 1.0
"""Strength of the ridge, in squared lengths of an input: fits few targets exactly."""

WILD = 18.0
"""Root mean square of a column from which inputs are on an odd scale."""


def inputs(seen: Observation) -> Iterator[Finding]:
    """Standardize inputs on an odd scale, and look whether the step then learns."""
    calls = [m for m in seen.records[0].modules if m.input_scale is not None]
    if seen.module is None or not calls:
        return
    largest, small_columns = calls[0].input_scale
    if 1e-2 < largest < WILD and small_columns < 0.25:
        return
    module = calls[0].module
    proof = seen.prove("inputs standardized", Standardized(module), steps=16)
    if not _learns_now(proof):
        both = Standardized(module, targets=True)
        proof = seen.prove("inputs and targets standardized", both, steps=16)
        if not _learns_relatively(proof):
            return
    yield _unnormalised(largest, small_columns, proof)


def saturates_by_scale(seen: Observation) -> Iterator[Finding]:
    """Standardize large inputs, and look whether the flat part is left by that alone.

    It is asked where an activation is saturated: the inputs are what saturates it.
    """
    calls = [m for m in seen.records[0].modules if m.input_scale is not None]
    if seen.module is None or not calls or calls[0].input_scale[0] < WILD:
        return
    repair = Standardized(calls[0].module)
    record = seen.trials.run(1, Level.EVERYTHING, repair)[0]
    if any(p.facts.get("flat", 0.0) > 0.5 for p in record.passages):
        return
    proof = seen.prove("inputs standardized", repair, steps=16)
    if proof is None:
        return
    left = [losses[-1] / losses[0] for losses in (proof.without, proof.with_repair)]
    if left[1] < min(left[0], 0.97):
        yield _unnormalised(*calls[0].input_scale, proof)


def _unnormalised(largest: float, small_columns: float, proof: Proof | None) -> Finding:
    return Finding(
        Cause.unnormalised_data,
        0.9,
        (
            Evidence(
                "largest root mean square of a column of the inputs", largest, "about 1"
            ),
            Evidence(
                "share of columns that spread less than a hundredth of the widest",
                small_columns,
                "below 0.25",
            ),
        ),
        (),
        "The inputs are on scales that one learning rate cannot serve: the same loop "
        "learns when each column is standardized.",
        "x = (x - x_train.mean(0)) / x_train.std(0)  # with the training set's numbers",
        proof,
    )


def _learns_now(proof: Proof | None) -> bool:
    """Whether standardizing leaves clearly less of the loss."""
    if proof is None:
        return False
    ends = proof.without[-1], proof.with_repair[-1]
    if not math.isfinite(ends[0]):
        return helps(proof)
    # From a start that is far off, both losses are small beside the first one.
    return ends[1] < (0.7 if helps(proof, 0.02) else 0.1) * ends[0]


def _learns_relatively(proof: Proof | None) -> bool:
    """Whether, on the scale of its own start, the loss falls only when standardized."""
    if proof is None or not math.isfinite(proof.with_repair[-1]):
        return False
    left = [losses[-1] / losses[0] for losses in (proof.without, proof.with_repair)]
    return left[1] < 0.8 and not left[0] < 0.95


def pairing(seen: Observation) -> Iterator[Finding]:
    """Give targets that have nothing to do with the inputs they are paired with.

    It is asked last: no trial can prove it, and what keeps a network from learning
    makes any targets look like these.
    """
    pair = _compared(seen)
    change = seen.metric_change
    if change is not None and change[1] > change[0]:
        return
    if pair is None or not any(seen.moves) or seen.fall > 0.6:
        return
    x, y = pair
    if x.dim() < 2 or len(x) != len(y) or len(x) < 60 or not x.is_floating_point():
        return
    if y.numel() > 4 * len(y) or seen.progress[1] < 0.85 * base_loss(y):
        return
    if y.unique().numel() < 2 or not _has_neighbors(x):
        return
    agreement = _neighbor_agreement(x, y)
    explained = _explained_linearly(x, y)
    if any(found > chance for found, chance in (agreement, explained)):
        return
    yield Finding(
        Cause.labels_misaligned,
        0.6,
        (
            Evidence(
                "agreement of targets with those of the nearest inputs",
                agreement[0],
                f"above {agreement[1]:.2g}, what shuffled targets reach",
            ),
            Evidence(
                "share of the targets' variance that a linear fit explains",
                explained[0],
                f"above {explained[1]:.2g}, what shuffled targets reach",
            ),
            Evidence(
                "loss after the watched steps",
                seen.progress[1],
                f"below {base_loss(y):.3g}, the loss without looking at the inputs",
            ),
        ),
        (),
        "Similar inputs have targets no more alike than shuffled ones, and a linear "
        "fit explains no more of them: the targets do not belong to these inputs.",
        "order = torch.randperm(len(x))\nx, y = x[order], y[order]  # one order for "
        "both",
    )


def _compared(seen: Observation) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the named batch, or the inputs and targets that were seen in the steps."""
    if seen.batch is not None:
        x, y = seen.batch
        both = isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)
        return (x.detach(), y.detach()) if both else None
    alone = all(
        len(r.modules) == 1 and r.modules[0].module is seen.module
        for r in seen.detailed
    )
    pairs = [r.pairs[0] for r in seen.detailed if r.pairs] if alone else []
    shapes = {(x.shape[1:], y.shape[1:]) for x, y in pairs}
    if len(shapes) != 1:
        return None
    if len(pairs) > 1 and torch.equal(pairs[0][0], pairs[1][0]):
        return pairs[0]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def _has_neighbors(x: torch.Tensor) -> bool:
    """Whether inputs have others clearly nearer than most: else none is alike.

    Random numbers in many columns are all equally far apart, and what such inputs are
    paired with cannot be told from noise.
    """
    rows = standardized(x[:512].double().reshape(min(len(x), 512), -1))
    distance = torch.cdist(rows, rows)
    usual = distance[~torch.eye(len(rows), dtype=torch.bool)].median()
    distance.fill_diagonal_(math.inf)
    nearest = distance.topk(5, largest=False).values.mean(dim=1).median()
    return bool(nearest < NEAR * usual)


def _neighbor_agreement(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Return how well near inputs' targets agree, and the level of shuffled ones."""
    x, y = _rows(x, y, 512)
    distance = torch.cdist(x, x)
    distance.fill_diagonal_(math.inf)
    near = distance.topk(5, largest=False).indices
    targets = _shuffled(y)
    if are_classes(y):
        same = (targets[:, near] == targets[:, :, None]).all(dim=-1)
        return _beside_chance(same.double().mean(dim=(1, 2)))
    error = (targets[:, near].mean(dim=2) - targets).square().mean(dim=(1, 2))
    return _beside_chance(-error / y.var().clamp_min(1e-12))


def _explained_linearly(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Return the share of variance that ridge regression explains, and by chance."""
    classes = are_classes(y)
    x, y = _rows(x, y, 1024)
    if classes:
        kinds = y.unique(dim=0)
        y = (y[:, None] == kinds[None]).all(dim=-1).double()
    targets = _shuffled(y - y.mean(dim=0))
    products = x @ x.T
    ridge = RIDGE * products.diagonal().mean() * torch.eye(len(x), dtype=x.dtype)
    fitted = torch.linalg.solve(products + ridge, products)
    left = (targets - fitted @ targets).square().sum(dim=(1, 2))
    return _beside_chance(1 - left / targets[0].square().sum().clamp_min(1e-12))


def _rows(
    x: torch.Tensor, y: torch.Tensor, limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first rows of both, inputs standardized, as flat float64."""
    x = standardized(x[:limit].double().reshape(min(len(x), limit), -1))
    return x, y[:limit].double().reshape(len(x), -1)


def _shuffled(y: torch.Tensor) -> torch.Tensor:
    """Return targets as they are, then shuffled: shape (1 + SHUFFLES, *y.shape)."""
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(y), generator=generator) for _ in range(SHUFFLES)]
    return y[torch.stack([torch.arange(len(y)), *orders])]


def _beside_chance(found: torch.Tensor) -> tuple[float, float]:
    """Return the first number, and what the others, by chance, do not exceed."""
    shuffled = found[1:]
    return float(found[0]), float(shuffled.mean() + 3 * shuffled.std())
