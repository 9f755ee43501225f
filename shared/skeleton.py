"""What a new chapter starts with, under each heading: words for `new_chapter`.

The code runs as it stands, on the smallest descent there is, so that an author always
changes a page that works. Every "TODO" is a place to fill; the tests refuse a chapter
that has one left.
"""

from typing import NamedTuple


class Cell(NamedTuple):
    """One cell of the skeleton."""

    kind: str
    """``"markdown"`` or ``"code"``."""
    source: str
    """Text; ``SLUG`` and ``DASHED`` stand for the chapter's name."""
    tags: tuple[str, ...] = ()
    """Cell tags, for code only."""
    figure: str = ""
    """Last part of the figure's name, for a cell that draws one."""


def _text(source: str) -> Cell:
    return Cell("markdown", source)


CARD = {
    "What you see": "TODO: the symptom, in the reader's words, with a number.",
    "The measurement that proves it": "TODO: one number, and the value that decides.",
    "What it is not": "TODO: the look-alikes, and what sets each apart.",
    "The smallest repair": "TODO: one line of code, and what it does.",
    "The repair that only hides it": "TODO: what seems to help, and why it does not.",
    # `make execute` fills this one in.
    "Cost": "TODO",
}
"""Entries of the card, by field."""

_REPAIR = """\
repaired = descend(initial_input, 4 * learning_rate, steps)  # TODO: the right repair
wrong = descend(initial_input, learning_rate / 4, steps)  # TODO: a plausible wrong one
_, axes = plots.new_figure()
lines = {"failing": path, "repaired": repaired, "wrong repair": wrong}
plots.curves(axes[0], {n: (range(len(p)), p) for n, p in lines.items()})
_ = plots.name_axes(axes[0], "step", "x")"""

_REPRODUCE = """\
def descend(x: float, learning_rate: float, steps: int) -> list[float]:
    path = [x]
    for _ in range(steps):
        x = x - learning_rate * 2 * x  # TODO: the failing step
        path.append(x)
    return path


path = descend(initial_input, learning_rate, steps)
print(f"x after {steps} steps: {path[-1]:.4f}")"""

_DIAGNOSE = """\
def program(rate: float):
    x = torch.tensor([initial_input], requires_grad=True)
    optimizer = torch.optim.SGD([x], lr=rate)

    def step():  # TODO: the failing step
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        optimizer.step()
        return loss

    return {"step": step, "variables": x, "optimizer": optimizer}"""

_REPORT = """\
report = diagnose(**program(0.0))
repaired_report = diagnose(**program(learning_rate))
print(report)"""

_DIAGNOSED = """\
assert report.cause == Cause.lr_zero
assert repaired_report.healthy"""

_SWEEP = """\
rows = read_rows("SLUG")
_, axes = plots.new_figure()
predicted = [initial_input * (1 - 2 * rate) ** steps for rate in rows.learning_rate]
plots.measured_and_predicted(
    axes[0], rows.learning_rate, rows.last, rows.learning_rate, predicted
)
_ = plots.name_axes(axes[0], "learning rate", f"x after {steps} steps")"""


def _exercise(number: int, title: str, task: str) -> list[Cell]:
    label = f"ex-DASHED-{number}"
    return [
        _text(f"```{{exercise}} {title}\n:label: {label}\n\n{task}\n```"),
        _text(f"```{{solution-start}} {label}\n:class: dropdown\n```"),
        Cell("code", 'print("TODO: the solution")', ("page-only",)),
        _text("```{solution-end}\n```"),
    ]


SECTIONS: dict[str, list[Cell]] = {
    "Parameters": [
        _text("Change a value, then run all cells."),
        Cell(
            "code",
            "learning_rate: float = 0.1  # step size; above 0\n"
            "initial_input: float = 1.0  # start of the descent; any number\n"
            "steps: int = 20  # updates; at least 1\n"
            "seed: int = 0  # of every random draw; at least 0",
            ("parameters",),
        ),
        Cell(
            "code",
            "import torch\n\n"
            "from shared import plots\n"
            "from shared.diagnose import Cause, diagnose\n"
            "from shared.record import record, record_verdict\n"
            "from shared.reproducible import reproducible\n"
            "from shared.sweep import read_rows\n\n"
            "generator = reproducible(seed)",
        ),
    ],
    "The claim": [
        _text(
            "TODO: what the source says, in your words, with its id (A1, B1, ...).\n\n"
            "Predict before you look: TODO: one question that has a number as answer."
        )
    ],
    "Reproduce": [
        _text("TODO: the smallest thing that fails; the loop in at most 15 lines."),
        Cell("code", _REPRODUCE),
    ],
    "Measure": [
        _text("TODO: the signature of the failure, in numbers that are printed."),
        Cell("code", "record(last=path[-1])"),
    ],
    "Why": [
        _text("TODO: the mathematics, and a closed form that predicts the number."),
        Cell(
            "code",
            "predicted = initial_input * (1 - 2 * learning_rate) ** steps\n"
            'print(f"predicted {predicted:.4f}, measured {path[-1]:.4f}")\n'
            "assert abs(predicted - path[-1]) < 1e-9",
            ("page-only",),
        ),
    ],
    "Repair": [
        _text("TODO: {numref}`fig-DASHED-repair` shows both repairs on the same axes."),
        Cell("code", _REPAIR, ("page-only",), "repair"),
    ],
    "For real": [
        _text("TODO: the same failure on a real model or real data."),
        Cell("code", 'print("TODO: the measurement")', ("page-only",)),
    ],
    "Sweep": [
        _text(
            "TODO: what was varied. {numref}`fig-DASHED-sweep` shows the committed "
            "rows ({download}`the file <sweeps/SLUG.csv>`) and the closed form."
        ),
        Cell("code", _SWEEP, ("page-only",), "sweep"),
    ],
    "Diagnose it": [
        _text("TODO: the failing step is handed to `diagnose`. Predict what it names."),
        Cell("code", _DIAGNOSE, ("page-only",)),
        Cell("code", _REPORT, ("page-only",)),
        Cell("code", _DIAGNOSED, ("page-only", "hide-input")),
    ],
    "Exercises": [
        *_exercise(
            1, "Break it yourself", "TODO: a healthy loop; introduce the fault."
        ),
        *_exercise(2, "Name the failure", "TODO: a log; which failure is it, and why?"),
        *_exercise(3, "One step further", "TODO: a change of a parameter; predict it."),
    ],
    "Verdict": [
        # One call for each claim that the chapter tests.
        Cell(
            "code",
            'record_verdict("A1", "true", "TODO: the number that decides")',
            ("page-only",),
        ),
        _text(
            "TODO: the verdict in a sentence, with the number.\n\n"
            "**Not to be confused with.** TODO: the look-alikes.\n\n"
            "**References.** TODO: {cite:t}`KEY`, with the entry in `references.bib`."
        ),
    ],
}
"""The cells under each second-level heading."""

GRID = """\
# TODO: why these values.
[grid]
learning_rate = {from = 1e-3, to = 1.0, points = 7, scale = "log"}

# A small grid, for a quick look.
[smoke]
learning_rate = [1e-2, 1e-1]

# One other set of values at which `make test` runs the whole page.
[again]
seed = 1
"""
"""The sweep's grid."""

NEXT_STEPS = """\
Wrote {notebook} and {grid}.
What remains:
  1. Fill every TODO in both files (`make lab` opens the notebook).
  2. make sweep ONLY={slug}
  3. make execute ONLY={slug}
  4. Add `- file: chapters/{slug}` to _toc.yml.
  5. Add what a reader sees to chapters/symptoms.toml.
  6. Add a line to CHANGELOG.md.
  7. make test
CONTRIBUTING.md says what the tests ask of a chapter."""
"""What `make chapter` prints."""
