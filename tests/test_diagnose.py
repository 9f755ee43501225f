"""`diagnose` on every case, what it leaves as it was, and what it refuses.

`python tests/confusion.py` prints the same cases as one table.
"""

import itertools
import json
import math
import random
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shared.diagnose import Cause, Evidence, Finding, Note, Proof, Report, diagnose
from shared.diagnose.diagnosis import StepError
from shared.diagnose.repairs import RightUpdate
from shared.diagnose.report import WIDTH
from shared.diagnose.state import Snapshot
from shared.diagnose.trials import Trials
from shared.diagnose.watch import Level, StepWatch
from tests.confusion import NO_ALARM, outcome, sides
from tests.diagnose_cases.program import Case, Program, all_cases

CHAPTERS = Path(__file__).parent.parent / "chapters"
CASES = all_cases()

LEAST_SHARE = 0.98
MOST_ALARMS = 0

KNOWN_MISSES: dict[str, str] = {
    "gradient_from_one_random_direction": "a note, at_minimum: no lower mean loss",
}
"""Faulty cases whose cause is not the first named, and what is said instead."""

KNOWN_ALARMS: dict[str, str] = {}
"""Twins and healthy cases with an alarm, and which."""


# -- The cases ------------------------------------------------------------------------


PROGRAMS = [(case, side) for case in CASES for side in sides(case)]


@pytest.mark.parametrize(
    ("case", "side"), PROGRAMS, ids=[f"{case.name}-{side}" for case, side in PROGRAMS]
)
def test_case(case: Case, side: str) -> None:
    said = outcome(case, side)
    assert said.crash is None
    known = KNOWN_MISSES if side == "faulty" else KNOWN_ALARMS
    if case.name in known:
        assert not said.right(), "found by now: take it off the list"
    else:
        assert said.right(), f"{case.cause} expected, said: {said}"


def test_every_cause_has_two_cases() -> None:
    count = defaultdict(int)
    for case in CASES:
        count[case.cause] += 1
    assert {cause for cause in Cause if count[cause] < 2} == set()
    assert count[Cause.healthy] >= 20


def test_lists_of_what_is_known_name_cases() -> None:
    faulty = {case.name for case in CASES if case.cause is not Cause.healthy}
    assert set(KNOWN_MISSES) <= faulty
    assert set(KNOWN_ALARMS) <= {case.name for case in CASES}


def test_totals() -> None:
    faulty = [case for case in CASES if case.cause is not Cause.healthy]
    assert 1 - len(KNOWN_MISSES) / len(faulty) >= LEAST_SHARE
    assert len(KNOWN_ALARMS) <= MOST_ALARMS


# -- All is put back ------------------------------------------------------------------

Things = dict[str, Any]


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs of 32 rows, and a class for each."""
    x = torch.randn(32, 6)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def network(*extra: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), *extra, nn.ReLU(), nn.Linear(12, 3))


def trainer(
    model: nn.Module, optimizer: torch.optim.Optimizer, after: Callable = lambda: None
) -> Callable[[], torch.Tensor]:
    """Return an ordinary training step."""
    x, y = data()

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        after()
        return loss

    return step


def adam() -> tuple[Program, Things]:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    program = Program(trainer(model, optimizer), model, optimizer)
    return program, {"model": model, "optimizer": optimizer}


def momentum() -> tuple[Program, Things]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    program = Program(trainer(model, optimizer), model, optimizer)
    return program, {"model": model, "optimizer": optimizer}


def batch_norm_and_dropout() -> tuple[Program, Things]:
    model = network(nn.BatchNorm1d(12), nn.Dropout(0.3))
    model[1].register_buffer("seen", torch.zeros(3), persistent=False)
    model[2].eval()  # one of them only: the mode of each is its own
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train = trainer(model, optimizer)

    def step() -> torch.Tensor:
        model.train(not model[2].training)
        model[1].seen += torch.rand(3)
        return train()

    return Program(step, model, optimizer), {"model": model, "optimizer": optimizer}


def lbfgs() -> tuple[Program, Things]:
    x = torch.randn(5, requires_grad=True)
    optimizer = torch.optim.LBFGS([x], lr=0.05, max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (x**4).sum() + (x[1:] - x[:-1]).square().sum()
        loss.backward()
        return loss

    program = Program(lambda: optimizer.step(closure), x, optimizer)
    return program, {"x": x, "optimizer": optimizer}


def gan() -> tuple[Program, Things]:
    makes, judges = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 8), nn.Tanh())
    head = nn.Linear(8, 1)
    of_judge = torch.optim.Adam([*judges.parameters(), *head.parameters()], lr=2e-3)
    of_maker = torch.optim.Adam(makes.parameters(), lr=2e-3)
    criterion = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(16, 1), torch.zeros(16, 1)

    def step() -> float:
        fake, real = makes(torch.randn(16, 2)), torch.randn(16, 2) + 2
        of_judge.zero_grad()
        loss = criterion(head(judges(real)), ones)
        (loss + criterion(head(judges(fake.detach())), zeros)).backward()
        of_judge.step()
        of_maker.zero_grad()
        loss = criterion(head(judges(fake)), ones)
        loss.backward()
        of_maker.step()
        return loss.item()

    things = {"makes": makes, "judges": judges, "head": head}
    optimizers = {"of_judge": of_judge, "of_maker": of_maker}
    return Program(step, makes, of_maker), things | optimizers


def loader() -> tuple[Program, Things]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    own = torch.Generator().manual_seed(5)
    batches = itertools.cycle(
        DataLoader(TensorDataset(*data()), batch_size=8, shuffle=True, generator=own)
    )

    def step() -> torch.Tensor:
        x, y = next(batches)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    things = {"model": model, "optimizer": optimizer}
    return Program(step, model, optimizer), things


def own_generators() -> tuple[Program, Things]:
    weights = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=0.05)
    of_torch = torch.Generator().manual_seed(3)
    of_numpy, of_python = np.random.default_rng(4), random.Random(5)

    def step() -> torch.Tensor:
        x = torch.randn(16, 4, generator=of_torch)
        noise = of_numpy.normal() + of_python.random() + random.random()
        noise += np.random.rand() + torch.rand(()).item()  # noqa: NPY002
        optimizer.zero_grad()
        loss = (x @ weights - x.sum(1) + 0.01 * noise).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    things = {"weights": weights, "optimizer": optimizer, "of_torch": of_torch}
    things |= {"of_numpy": of_numpy, "of_python": of_python}
    return Program(step, [weights], optimizer), things


def scheduler() -> tuple[Program, Things]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    average = torch.optim.swa_utils.AveragedModel(model)

    def after() -> None:
        schedule.step()
        average.update_parameters(model)

    things = {"model": model, "optimizer": optimizer, "average": average}
    program = Program(trainer(model, optimizer, after), model, optimizer)
    return program, things | {"schedule": schedule}


def mixed_precision() -> tuple[Program, Things]:
    model, (x, y) = network(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=4)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    things = {"model": model, "optimizer": optimizer, "scaler": scaler}
    return Program(step, model, optimizer), things


def by_hand() -> tuple[Program, Things]:
    x = torch.randn(6, requires_grad=True)
    velocity, counts, history = torch.zeros(6), {"calls": 0}, []
    calls = 0

    def step() -> float:
        nonlocal calls, velocity
        calls += 1
        counts["calls"] += 2
        loss = (x - 1).square().sum() / (1 + 0.01 * calls)
        x.grad = None
        loss.backward()
        velocity = 0.8 * velocity + x.grad
        history.append(velocity)
        with torch.no_grad():
            x.sub_(0.02 * velocity)
        return loss.item()

    return Program(step, {"x": x}), {"x": x, "counts": counts, "history": history}


def raises_between() -> tuple[Program, Things]:
    """Raise on some calls after the backward pass, before the update."""
    model = network(nn.BatchNorm1d(12))
    x, y = data()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    calls = 0

    def step() -> torch.Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x + 0.1 * torch.randn(32, 6)), y)
        loss.backward()
        if calls % 6 == 4:
            raise RuntimeError(f"call {calls}")
        optimizer.step()
        return loss

    return Program(step, model, optimizer), {"model": model, "optimizer": optimizer}


PUT_BACK = (
    adam,
    momentum,
    batch_norm_and_dropout,
    lbfgs,
    gan,
    loader,
    own_generators,
    scheduler,
    mixed_precision,
    by_hand,
    raises_between,
)


def bits(tensor: torch.Tensor) -> tuple:
    """Return what a tensor is, bit for bit."""
    plain = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return str(tensor.dtype), tuple(tensor.shape), plain.numpy().tobytes()


def picture(value: Any, seen: tuple[int, ...] = ()) -> Any:
    """Return everything that an object holds, in values that can be compared."""
    if isinstance(value, torch.Tensor):
        leaf = value.is_leaf or value.retains_grad
        grad = value.grad if leaf else None
        kept = None if grad is None else (id(grad), bits(grad))
        return bits(value), value.data_ptr(), value.requires_grad, kept
    if isinstance(value, torch.Generator):
        return bits(value.get_state())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if id(value) in seen:
        return "seen"
    seen = (*seen, id(value))
    if isinstance(value, dict):
        return [(str(k) if not isinstance(k, torch.Tensor) else id(k),
                 picture(v, seen)) for k, v in value.items()]  # fmt: skip
    if isinstance(value, (list, tuple, set)):
        return [picture(one, seen) for one in value]
    if isinstance(value, (nn.Module, torch.optim.Optimizer)) or (
        type(value).__module__.startswith("torch") and hasattr(value, "__dict__")
    ):
        return type(value).__name__, picture(vars(value), seen)
    return value if isinstance(value, (int, float, str)) else id(value)


def closure_of(step: Callable) -> dict[str, Any]:
    """Return the variables of a step, but for iterators: those move on by design."""
    cells = zip(step.__code__.co_freevars, step.__closure__ or (), strict=True)
    found = {name: cell.cell_contents for name, cell in cells}
    return {
        name: value for name, value in found.items() if not hasattr(value, "__next__")
    }


def patchable() -> list[tuple[int, str, int]]:
    """Return everything of torch that could be patched, and the state of its hooks."""
    spaces: list[type | ModuleType] = [
        torch,
        torch.Tensor,
        torch.autograd,
        torch.autograd.graph,
        torch.nn.functional,
        torch._tensor,
        *(kind for kind in vars(nn).values() if isinstance(kind, type)),
        *(kind for kind in vars(torch.optim).values() if isinstance(kind, type)),
    ]
    found = [
        (id(space), name, id(value))
        for space in spaces
        for name, value in vars(space).items()
        if callable(value)
    ]
    for space in map(
        sys.modules.get, ("torch.nn.modules.module", "torch.optim.optimizer")
    ):
        for name, value in vars(space).items():
            if name.startswith("_global") and hasattr(value, "__len__"):
                found.append((id(space), name, len(value)))
    modes = torch._C._len_torch_function_stack(), torch.is_grad_enabled()
    found += [(0, "modes", hash((*modes, torch.get_default_dtype())))]
    return [*found, (0, "stdout", id(sys.stdout)), (0, "w", len(warnings.filters))]


def generators() -> tuple:
    """Return the states of the global random generators."""
    of_numpy = np.random.get_state()  # noqa: NPY002
    return bits(torch.get_rng_state()), repr(of_numpy), random.getstate()


def started(
    make: Callable[[], tuple[Program, Things]], steps: int
) -> tuple[Program, Things]:
    """Build a program and run its first steps."""
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    program, things = make()
    losses(program, steps)
    return program, things


def losses(program: Program, steps: int) -> list[float | str]:
    """Return what some steps give: losses, or the words of an exception."""
    found: list[float | str] = []
    for _ in range(steps):
        try:
            loss = program.step()
            found.append(loss.item() if isinstance(loss, torch.Tensor) else loss)
        except RuntimeError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("make", PUT_BACK, ids=lambda make: make.__name__)
def test_all_is_put_back(
    make: Callable[[], tuple[Program, Things]], steps: int
) -> None:
    program, things = started(make, steps)
    untouched = losses(program, 20)
    assert len(set(untouched)) > 10

    program, things = started(make, steps)
    program_step = program.step
    before = (picture(things), picture(closure_of(program_step)), patchable())
    random_before = generators()
    try:
        report = diagnose(**program.arguments())
    except StepError:
        assert make is raises_between
    else:
        assert report.steps_run > 3 or make is raises_between
    assert generators() == random_before
    after = (picture(things), picture(closure_of(program_step)), patchable())
    assert after[0] == before[0]
    assert after[1] == before[1]
    assert after[2] == before[2]
    assert losses(program, 20) == untouched


def test_all_is_put_back_when_interrupted() -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    train = trainer(model, optimizer)
    calls = 0

    def step() -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = train()
        if calls == 3:
            raise KeyboardInterrupt
        return loss

    before = picture([model, optimizer]), patchable(), generators()
    with pytest.raises(KeyboardInterrupt):
        diagnose(step, model, optimizer)
    assert (picture([model, optimizer]), patchable(), generators()) == before
    assert calls == 0


# -- What is refused ------------------------------------------------------------------


def good(**changed: Any) -> dict[str, Any]:
    """Return the arguments for a step that learns, some exchanged."""
    x = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return {"step": step, "variables": x, "optimizer": optimizer} | changed


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"step": 3}, TypeError, "step must be a function, not int"),
        (
            {"step": lambda x, y: x},
            TypeError,
            "step must take no arguments; it needs x, y. Hand in lambda: step(x, y)",
        ),
        ({"step": lambda: None}, StepError, "number, not None"),
        (
            {"step": lambda: torch.ones(3)},
            StepError,
            "step must return the loss, a tensor with one entry or a number, not a "
            "tensor of shape (3,)",
        ),
        ({"step": lambda: "0.3 nats"}, StepError, "number, not str"),
        ({"variables": []}, ValueError, "at least one tensor; it is empty"),
        ({"variables": {}}, ValueError, "at least one tensor; it is empty"),
        ({"variables": nn.ReLU()}, ValueError, "at least one tensor; it is empty"),
        (
            {"variables": 7},
            TypeError,
            "variables must be an nn.Module, a tensor, or a list or dict of tensors, "
            "not int",
        ),
        (
            {"variables": [torch.ones(2), 2.0]},
            TypeError,
            "variables['[1]'] must be a tensor, not float",
        ),
        (
            {"variables": {"codes": torch.arange(3)}},
            ValueError,
            "variables['codes'] must hold floating-point numbers, not torch.int64",
        ),
        (
            {"variables": torch.ones(0)},
            ValueError,
            "variables['x'] must have entries; it is empty",
        ),
        (
            {"optimizer": "adam"},
            TypeError,
            "optimizer must be a torch.optim.Optimizer or None, not str",
        ),
        (
            {"batch": [1, 2, 3]},
            TypeError,
            "batch must be a pair (inputs, targets), not [1, 2, 3]",
        ),
        ({"batch": 5}, TypeError, "batch must be a pair (inputs, targets), not 5"),
        ({"metric": 0.9}, TypeError, "metric must be a function, not float"),
        ({"loss_fn": "mse"}, TypeError, "loss_fn must be a function, not str"),
        ({"objective": 1}, TypeError, "objective must be a function, not int"),
    ],
)
def test_refuses(changed: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        diagnose(**good(**changed))
    message = str(caught.value)
    assert words in message
    assert "\n" not in message


def test_a_step_that_raises_is_named_with_its_exception() -> None:
    def step() -> float:
        return 1 / 0

    with pytest.raises(StepError, match="call 1 raised ZeroDivisionError") as e:
        diagnose(**good(step=step))
    assert isinstance(e.value.__cause__, ZeroDivisionError)
    assert "\n" not in str(e.value)


def test_the_watch_does_not_take_its_own_looks_for_the_step() -> None:
    x = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)

    def step() -> torch.Tensor:
        loss = x.square().sum()
        loss.backward()  # never cleared: the watch looks at what is left over
        optimizer.step()
        return loss

    watch = StepWatch(step, [x])
    records = [watch.run(Level.EVERYTHING) for _ in range(2)]
    assert records[1].backwards[0].left_over == [True]
    assert [p.name for p in records[1].passages] == ["square", "sum"]
    assert records[1].gradient_copied == 0
    assert records[1].gradient_edits == []


def test_every_trial_is_given_the_same_batches() -> None:
    batches = iter(range(100))
    x = torch.zeros(1, requires_grad=True)

    def step() -> float:
        return float(next(batches))

    snapshot = Snapshot([step], [x])
    trials = Trials(step, [x], snapshot, most_steps=20)
    assert trials.losses(3) == [0.0, 1.0, 2.0]
    assert trials.losses(5) == [0.0, 1.0, 2.0, 3.0, 4.0]
    snapshot.close()
    # The reader's loop is handed the batches of the trials again, then the next ones.
    assert [step() for _ in range(7)] == [float(k) for k in range(7)]


OPTIMIZERS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.01},
    "AdamW": {"lr": 0.01, "weight_decay": 0.5},
    "RMSprop": {"lr": 0.01, "alpha": 0.9, "momentum": 0.5},
    "Adagrad": {"lr": 0.1},
    "Adadelta": {"lr": 1.0, "rho": 0.8},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "Adamax": {"lr": 0.01},
    "Rprop": {"lr": 0.01},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_right_update_of_a_right_step_is_its_own(name: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(40, 5), torch.randn(40, 1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = getattr(torch.optim, name)(model.parameters(), **OPTIMIZERS[name])

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    variables = list(model.parameters())
    snapshot = Snapshot([step], variables)
    trials = Trials(step, variables, snapshot, most_steps=100)
    plain = trials.losses(6)
    repair = RightUpdate(variables, range(4), optimizer)
    assert trials.losses(6, repair) == pytest.approx(plain, rel=1e-6)
    assert plain[0] != plain[-1]
    snapshot.close()


@pytest.mark.parametrize("name", ["image_rebound_by_clamp", "pruning_mask_inverted"])
def test_a_cause_whose_repair_does_not_help_loses_its_place(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    findings = diagnose(**case.build(False, 0).arguments()).findings
    shaken = [f for f in findings if f.proof is not None and not f.proof.holds]
    assert shaken
    assert findings[-len(shaken) :] == tuple(shaken)
    assert all(f.confidence <= 0.5 for f in shaken)
    assert all("Tried, and no better: " in str(f) for f in shaken)


PROVED_ONCE_NAMED = {
    "adapter_with_two_zero_factors": "a random move of 0.1 sizes, once",
    "receiver_halfway_between_antennas": "a random move of 0.1 sizes, once",
    "spot_drawn_far_from_the_target": "a start at the lowest point tried",
    "sigmoid_output_from_wide_init": "variables a tenth as large",
    "layers_in_plain_list": "the unlisted ones trained, too",
    "objective_ignores_argument": "the variable in its copy's place",
    "hidden_layer_with_negative_bias": "leaky rectifier (slope 0.1)",
}
"""Cases whose cause is named without a trial of its repair, and the trial made then."""


@pytest.mark.parametrize("name", PROVED_ONCE_NAMED)
def test_a_named_cause_is_proved_where_its_repair_follows_from_it(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    finding = diagnose(**case.build(False, 0).arguments()).findings[0]
    assert finding.cause is case.cause
    assert finding.proof is not None
    assert finding.proof.repair == PROVED_ONCE_NAMED[name]
    assert finding.proof.holds


@pytest.mark.parametrize(
    ("without", "with_repair", "holds"),
    [
        ((1.0, 1.0), (1.0, 0.5), True),
        ((1.0, 1.0), (1.0, 1.0), False),
        ((1.0, 0.5), (1.0, 0.6), False),
        ((1.0, math.nan), (1.0, 2.0), True),
        ((1.0, math.inf), (1.0, math.nan), False),
        ((1.0, 0.5), (1.0, math.nan), False),
        ((-1.0, -1.0), (-1.0, -3.0), True),
    ],
)
def test_proof_holds_where_the_loss_ends_lower(
    without: tuple[float, ...], with_repair: tuple[float, ...], holds: bool
) -> None:
    assert Proof("repair", without, with_repair).holds == holds


def test_an_iterator_without_batches() -> None:
    batches = iter([])
    with pytest.raises(StepError, match="step must run at least once"):
        diagnose(**good(step=lambda: next(batches)))


def not_a_number() -> Report:
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=0.1)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = x.sqrt().sum()
        loss.backward()
        optimizer.step()
        return loss

    return diagnose(step, x, optimizer)


def test_nan_from_the_start_is_a_finding() -> None:
    assert not_a_number().cause is Cause.nan_gradient


# -- The report -----------------------------------------------------------------------


def rate_of_zero() -> Report:
    """Return the report of a step that cannot move."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return diagnose(trainer(model, optimizer), model, optimizer)


@pytest.mark.parametrize("make", [rate_of_zero, not_a_number])
def test_report_as_a_dict_is_plain(make: Callable[[], Report]) -> None:
    report = make()
    plain = report.to_dict()
    text = json.dumps(plain)
    assert json.dumps(json.loads(text)) == text
    assert plain["cause"] == report.cause == plain["findings"][0]["cause"]
    assert plain["healthy"] is False
    assert plain["findings"][0]["chapter"] == report.cause.chapter
    if make is rate_of_zero:
        assert json.loads(text) == plain


def test_healthy_report() -> None:
    report = diagnose(**good())
    assert report.healthy
    assert report.cause is None
    plain = report.to_dict()
    assert (plain["cause"], plain["healthy"], plain["findings"]) == (None, True, [])
    assert json.loads(json.dumps(plain)) == plain
    assert str(report).startswith("No alarm")


def test_report_as_text_says_all() -> None:
    report = rate_of_zero()
    (finding,) = report.findings
    text = " ".join(str(report).split())
    assert finding.cause == "lr_zero"
    assert finding.cause in text
    assert finding.evidence
    for item in finding.evidence:
        assert item.name in text
        assert item.expected in text
    for line in finding.repair.splitlines():
        for part in line.split("  # "):
            assert part.strip() in text
    assert f"Chapter: {finding.chapter}" in text
    assert finding.proof is not None
    assert str(finding.proof) in text
    assert finding.proof.with_repair[-1] < finding.proof.without[-1]


@pytest.mark.parametrize("cause", sorted({c.cause for c in CASES} - {Cause.healthy}))
def test_report_as_text_fits_the_page(cause: Cause) -> None:
    case = next(case for case in CASES if case.cause == cause)
    text = str(diagnose(**case.build(False, 0).arguments()))
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []


def test_every_alarm_has_a_chapter_that_exists() -> None:
    for cause in Cause:
        if cause not in NO_ALARM:
            assert cause.chapter, cause
            assert (CHAPTERS / f"{cause.chapter}.ipynb").is_file(), cause


def test_report_as_html_escapes() -> None:
    tag = "<b>&"
    finding = Finding(
        Cause.lr_zero,
        1.0,
        (Evidence(tag, tag, tag),),
        (tag,),
        tag,
        tag,
        Proof(tag, (1.0, 1.0), (1.0, 0.5)),
    )
    report = Report((finding,), (Note(tag),), (1.0,), 3, (tag,))
    page = report._repr_html_()
    # Three of the evidence, the variable, explanation, repair, proof, note, left out.
    assert page.count("&lt;b&gt;&amp;") == 9
    assert tag not in page
    assert str(finding.cause) in page
    assert finding.chapter in page
