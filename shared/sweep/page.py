"""What a sweep needs to know of a chapter: its parameters, and the cells to run."""

import ast
import io
import math
import re
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from shared.record import Value
from shared.sweep.errors import SweepError, nearest_name

PARAMETERS_TAG = "parameters"
"""Tag of the one cell that declares a chapter's parameters."""

PAGE_ONLY_TAG = "page-only"
"""Tag of cells that draw, assert or tell, and that a sweep run leaves out."""

TYPES: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
"""Annotations that a parameter may have."""


@dataclass(frozen=True)
class Bounds:
    """The values that the comment behind a parameter allows."""

    lowest: float = -math.inf
    lowest_is_allowed: bool = True
    highest: float = math.inf
    highest_is_allowed: bool = True
    choices: tuple[str, ...] = ()

    def allow(self, value: Value) -> bool:
        """Return whether ``value`` is allowed; NaN is when no bound is given."""
        if self.choices:
            return str(value) in self.choices
        if isinstance(value, str | bool):
            return True
        if math.isnan(value):
            return self == Bounds()
        above = value > self.lowest or (self.lowest_is_allowed and value == self.lowest)
        below = value < self.highest or (
            self.highest_is_allowed and value == self.highest
        )
        return above and below

    def __str__(self) -> str:
        """Return the bounds as words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        words = []
        if self.lowest != -math.inf:
            words.append(f"{'at least' if self.lowest_is_allowed else 'above'}")
            words.append(f"{self.lowest:g}")
        if self.highest != math.inf:
            words.append("and" if words else "")
            words.append(f"{'at most' if self.highest_is_allowed else 'below'}")
            words.append(f"{self.highest:g}")
        return " ".join(filter(None, words)) or "any value"


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell."""

    name: str
    type_name: str
    """A key of `TYPES`."""
    default: Value
    bounds: Bounds

    def checked(self, value: Any) -> Value:  # noqa: ANN401  (checks any value)
        """Return ``value`` as this parameter's type.

        A whole number is accepted where a float is declared; nothing else is
        converted, and a string is only ever a string.

        Raises:
            SweepError: if the type is wrong or the value is not allowed.
        """
        wanted = TYPES[self.type_name]
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise SweepError(
                f"{self.name} must be of type {self.type_name}, "
                f"not the {type(value).__name__} {value!r}"
            )
        if not self.bounds.allow(value):
            nearest = nearest_name(str(value), self.bounds.choices)
            raise SweepError(
                f"{self.name} must be {self.bounds}, not {value!r}{nearest}"
            )
        return value

    def from_text(self, text: str) -> Value:
        """Return the value that ``text`` stands for, read as this parameter's type.

        Raises:
            SweepError: if it does not read as one, or the value is not allowed.
        """
        if self.type_name == "bool":
            values: dict[str, Value] = {"true": True, "false": False}
            if text.lower() not in values:
                raise SweepError(f"{self.name} must be true or false, not {text!r}")
            return values[text.lower()]
        try:
            return self.checked(TYPES[self.type_name](text))
        except SweepError:
            raise
        except ValueError:
            raise SweepError(
                f"{self.name} must be of type {self.type_name}, not {text!r}"
            ) from None


_NUMBER = r"[-+]?(?:inf|(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"
_INTERVAL = re.compile(rf"in ([\[(])\s*({_NUMBER})\s*,\s*({_NUMBER})\s*([\])])", re.I)
_FROM_TO = re.compile(rf"(?<![\w.])({_NUMBER}) to ({_NUMBER})(?![\w.])", re.I)
_BOUND = re.compile(rf"\b(above|at least|below|at most) ({_NUMBER})", re.I)
_CHOICES = re.compile(r"one of (.+)", re.I)


def bounds_in(comment: str) -> Bounds:
    """Return the bounds that the comment behind a parameter states.

    Understood are ``above 0``, ``at least 1``, ``below 1``, ``at most 10`` and two of
    them together, ``in [0, 1)``, ``0 to 100`` (both included) and
    ``one of sigmoid, tanh, relu``. A comment without any of these allows everything.
    """
    if found := _CHOICES.search(comment):
        words = re.split(r",| or ", found[1].split(";")[0])
        choices = (word.strip().strip("\"'`.") for word in words)
        return Bounds(choices=tuple(filter(None, choices)))
    if found := _INTERVAL.search(comment):
        low, high = float(found[2]), float(found[3])
        return Bounds(low, found[1] == "[", high, found[4] == "]")
    if found := _FROM_TO.search(comment):
        return Bounds(float(found[1]), True, float(found[2]), True)
    stated: dict[str, Any] = {}
    for words, number in _BOUND.findall(comment):
        words = words.lower()
        side = "lowest" if words in ("above", "at least") else "highest"
        stated[side] = float(number)
        stated[f"{side}_is_allowed"] = words.startswith("at")
    return Bounds(**stated)


def load(path: Path) -> NotebookNode:
    """Return the notebook at ``path``.

    Raises:
        SweepError: if it is missing or is no notebook; names its nearest neighbor.
    """
    if not path.is_file():
        folder = path.parent
        known = [other.name for other in folder.glob("*.ipynb")]
        raise SweepError(f"there is no notebook {path}{nearest_name(path.name, known)}")
    try:
        return nbformat.read(path, as_version=4)
    # A file of another kind makes nbformat stumble in more ways than it declares.
    except (ValueError, nbformat.ValidationError, TypeError, LookupError) as error:
        raise SweepError(f"{path} is not a notebook: {error}") from None


def tags(cell: Mapping[str, Any]) -> list[str]:
    """Return a cell's tags."""
    return cell["metadata"].get("tags", [])


def parameters_of(notebook: NotebookNode, name: str) -> dict[str, Parameter]:
    """Return the parameters that a notebook declares, in its order.

    Nothing is executed: values are read as Python literals.

    Args:
        notebook: the chapter.
        name: what to call it in messages.

    Raises:
        SweepError: if there is not exactly one parameters cell, or a line of it is
            not ``name: type = value`` with a plain value of that type.
    """
    cells = [cell for cell in notebook.cells if PARAMETERS_TAG in tags(cell)]
    if len(cells) != 1:
        raise SweepError(
            f"{name} must have one cell tagged {PARAMETERS_TAG!r}, not {len(cells)}"
        )
    source = cells[0].source
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise SweepError(
            f"the parameters cell of {name} is not Python: {error}"
        ) from None
    comments = _comments(source)
    found = {}
    for statement in statements:
        line = comments.get(statement.end_lineno or 0, "")
        parameter = _parameter(statement, line, name)
        found[parameter.name] = parameter
    return found


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}


def _parameter(statement: ast.stmt, comment: str, notebook: str) -> Parameter:
    text = ast.unparse(statement)
    form = f"every line of the parameters cell of {notebook} must be name: type = value"
    if not (
        isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(statement.annotation, ast.Name)
        and statement.value is not None
    ):
        raise SweepError(f"{form}, not {text!r}")
    type_name = statement.annotation.id
    if type_name not in TYPES:
        raise SweepError(f"{form} with a type of {', '.join(TYPES)}, not {text!r}")
    try:
        default = ast.literal_eval(statement.value)
    except ValueError:
        raise SweepError(f"{form} with a plain value, not {text!r}") from None
    parameter = Parameter(statement.target.id, type_name, default, bounds_in(comment))
    parameter.checked(default)
    return parameter


def for_sweep(notebook: NotebookNode) -> NotebookNode:
    """Return the part of a notebook that a sweep runs, without stored outputs.

    Text cells and cells tagged ``page-only`` are left out.
    """
    cells = []
    for cell in notebook.cells:
        if cell.cell_type != "code" or PAGE_ONLY_TAG in tags(cell):
            continue
        kept = nbformat.v4.new_code_cell(cell.source, metadata={"tags": tags(cell)})
        kept.id = cell.get("id", kept.id)
        cells.append(kept)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
