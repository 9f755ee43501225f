"""Grids: which runs a sweep makes, read from a TOML file or from the command line."""

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.record import Value
from shared.sweep.errors import SweepError, nearest_name
from shared.sweep.page import Parameter

SECTIONS = ("grid", "zip", "smoke", "again")
"""Tables that a grid file may have."""

SIGNIFICANT_DIGITS = 6
"""Inner points of a range are rounded to so many digits, so that they read well."""

MOST_POINTS = 100_000
"""No axis has more: a slip of the keyboard must not fill the memory."""

Run = dict[str, Value]
"""The parameters of one run."""


@dataclass(frozen=True)
class Factor:
    """Axes that move together: one axis, or all those under ``[zip]``."""

    names: tuple[str, ...]
    points: tuple[tuple[Value, ...], ...]
    """One entry a point, with a value for each name."""


@dataclass(frozen=True)
class Grid:
    """The product of factors, the last one moving fastest."""

    factors: tuple[Factor, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """Return the names of all axes, in order."""
        return tuple(name for factor in self.factors for name in factor.names)

    def __len__(self) -> int:
        """Return the number of runs."""
        return math.prod(len(factor.points) for factor in self.factors)

    def runs(self) -> list[Run]:
        """Return the parameters of every run, in order."""
        products = itertools.product(*(factor.points for factor in self.factors))
        return [
            dict(zip(self.axes, itertools.chain(*point), strict=True))
            for point in products
        ]


def read_tables(path: Path) -> dict[str, Any]:
    """Return the tables of a grid file.

    Raises:
        SweepError: if it is missing, is not TOML (with the line), or has a table that
            is not one of `SECTIONS`.
    """
    if not path.is_file():
        known = [other.name for other in path.parent.glob("*.toml")]
        raise SweepError(f"there is no grid {path}{nearest_name(path.name, known)}")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SweepError(f"{path} is not TOML: {error}") from None
    for name, table in tables.items():
        if name not in SECTIONS or not isinstance(table, dict):
            raise SweepError(
                f"{path} may have the tables {', '.join(SECTIONS)}, not {name!r}"
                + nearest_name(name, SECTIONS)
            )
    return tables


def grid_from_tables(
    tables: Mapping[str, Any], parameters: Mapping[str, Parameter]
) -> Grid:
    """Return the grid of ``[grid]`` and ``[zip]``.

    Args:
        tables: as `read_tables` returns them.
        parameters: those of the chapter.

    Raises:
        SweepError: if an axis is unknown, empty, given twice or holds a value that
            its parameter does not allow.
    """
    single = tables.get("grid", {})
    together = tables.get("zip", {})
    for name in single:
        if name in together:
            raise SweepError(f"axis {name!r} stands in [grid] and in [zip]")
    axes = {
        name: axis_values(name, entry, parameters)
        for name, entry in [*single.items(), *together.items()]
    }
    if not axes:
        raise SweepError("a grid needs at least one axis under [grid] or [zip]")
    factors = [
        Factor((name,), tuple((value,) for value in axes[name])) for name in single
    ]
    if together:
        factors.append(_zipped({name: axes[name] for name in together}))
    return Grid(tuple(factors))


def _zipped(axes: Mapping[str, Sequence[Value]]) -> Factor:
    lengths = {name: len(values) for name, values in axes.items()}
    if len(set(lengths.values())) > 1:
        raise SweepError(
            "axes under [zip] must be of equal length, not "
            + ", ".join(f"{name}: {length}" for name, length in lengths.items())
        )
    return Factor(tuple(axes), tuple(zip(*axes.values(), strict=True)))


def smoke_grid(
    grid: Grid, table: Mapping[str, Any], parameters: Mapping[str, Parameter]
) -> Grid:
    """Return the part of a grid that ``[smoke]`` picks.

    An axis named there keeps the values given; any other keeps its first.

    Raises:
        SweepError: if a named axis or value is not in the grid.
    """
    for name in table:
        if name not in grid.axes:
            raise SweepError(
                f"[smoke] names {name!r}, which is not an axis of the grid: "
                + ", ".join(grid.axes)
                + nearest_name(name, grid.axes)
            )
    picked = {
        name: axis_values(name, entry, parameters) for name, entry in table.items()
    }
    return Grid(tuple(_picked(factor, picked) for factor in grid.factors))


def _picked(factor: Factor, picked: Mapping[str, Sequence[Value]]) -> Factor:
    named = [name for name in factor.names if name in picked]
    if not named:
        return Factor(factor.names, factor.points[:1])
    for name in named:
        column = [point[factor.names.index(name)] for point in factor.points]
        for value in picked[name]:
            if value not in column:
                raise SweepError(
                    f"[smoke] asks for {name} = {value!r}, not in the grid"
                )
    points = [
        point
        for point in factor.points
        if all(point[factor.names.index(name)] in picked[name] for name in named)
    ]
    if not points:
        raise SweepError(f"[smoke] leaves no point of {', '.join(factor.names)}")
    return Factor(factor.names, tuple(points))


def one_run(
    table: Mapping[str, Any], parameters: Mapping[str, Parameter], section: str
) -> Run:
    """Return the single set of parameters that a table such as ``[again]`` gives.

    Raises:
        SweepError: if a name is unknown or a value is not allowed.
    """
    run = {}
    for name, value in table.items():
        run[name] = _known(name, parameters, f"[{section}]").checked(value)
    return run


def grid_from_text(words: Sequence[str], parameters: Mapping[str, Parameter]) -> Grid:
    """Return the grid of words such as ``depth=1,2,4`` and ``seed=0:20``.

    Args:
        words: one axis each: ``name=a,b,c``, ``name=0:20`` (whole numbers, both ends),
            ``name=0:1:5`` (points between two ends) or ``name=1e-3:1:7log``.
        parameters: those of the chapter; their types say how a word is read.

    Raises:
        SweepError: if an axis is unknown, empty, given twice or holds a value that
            its parameter does not allow.
    """
    axes: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise SweepError(f"an axis must be like name=1,2,4, not {word!r}")
        if name in axes:
            raise SweepError(f"axis {name!r} is given twice")
        axes[name] = _entry_from_text(_known(name, parameters, "the grid"), text)
    return grid_from_tables({"grid": axes}, parameters)


def _entry_from_text(parameter: Parameter, text: str) -> Any:  # noqa: ANN401
    """Return an axis in words as the list or table that TOML would hold."""
    if parameter.type_name in ("int", "float") and ":" in text:
        ends, scale = text.split(":"), "linear"
        if ends[-1].endswith("log"):
            ends[-1], scale = ends[-1].removesuffix("log"), "log"
        try:
            first, last, *points = map(_number, ends)
        except ValueError:
            raise SweepError(
                f"the range of {parameter.name!r} must be like 0:20, 0:1:5 or "
                f"1e-3:1:7log, not {text!r}"
            ) from None
        table = {"from": first, "to": last}
        return {**table, "points": points[0], "scale": scale} if points else table
    return [parameter.from_text(part) for part in text.split(",") if part]


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def axis_values(
    name: str,
    entry: Any,  # noqa: ANN401  (checks any value)
    parameters: Mapping[str, Parameter],
) -> list[Value]:
    """Return the values of one axis, checked against its parameter.

    Args:
        name: the axis.
        entry: a list of values, or a table ``{from, to}`` of whole numbers, or
            ``{from, to, points, scale}`` with the scale "linear" or "log".
        parameters: those of the chapter.

    Raises:
        SweepError: if the axis is unknown or empty, repeats a value or holds one that
            its parameter does not allow.
    """
    parameter = _known(name, parameters, "the grid")
    if isinstance(entry, dict):
        entry = _range(name, entry)
    if not isinstance(entry, list):
        raise SweepError(
            f"axis {name!r} must be a list of values or a table {{from, to}}, "
            f"not {entry!r}"
        )
    values = [parameter.checked(value) for value in entry]
    if not values:
        raise SweepError(f"axis {name!r} is empty: it needs at least one value")
    for place, value in enumerate(values):
        # repr tells NaN from NaN not, which == would.
        if repr(value) in map(repr, values[:place]):
            raise SweepError(f"axis {name!r} holds {value!r} twice")
    return values


def _known(name: str, parameters: Mapping[str, Parameter], where: str) -> Parameter:
    if name not in parameters:
        raise SweepError(
            f"{where} names {name!r}, which is not a parameter of the chapter: "
            + ", ".join(parameters)
            + nearest_name(name, parameters)
        )
    return parameters[name]


def _range(name: str, table: Mapping[str, Any]) -> list[Value]:
    allowed = ("from", "to", "points", "scale")
    for key in table:
        if key not in allowed:
            raise SweepError(
                f"the range of {name!r} may have {', '.join(allowed)}, not {key!r}"
                + nearest_name(key, allowed)
            )
    missing = [key for key in ("from", "to") if key not in table]
    if missing:
        raise SweepError(f"the range of {name!r} lacks {' and '.join(missing)}")
    first, last = table["from"], table["to"]
    for key in ("from", "to"):
        if isinstance(table[key], bool) or not isinstance(table[key], int | float):
            raise SweepError(f"{key} of {name!r} must be a number, not {table[key]!r}")
        if not math.isfinite(table[key]):
            raise SweepError(f"{key} of {name!r} must be finite, not {table[key]!r}")
    if not first < last:
        raise SweepError(f"the range of {name!r} must rise, not go {first} to {last}")
    if "points" in table:
        points, scale = table["points"], table.get("scale", "linear")
        return _spaced(name, first, last, points, scale)
    if "scale" in table:
        raise SweepError(f"the range of {name!r} has a scale and lacks points")
    if not (isinstance(first, int) and isinstance(last, int)):
        raise SweepError(
            f"the range of {name!r} must go from whole number to whole number, "
            f"or say how many points it has, not {first} to {last}"
        )
    if last - first >= MOST_POINTS:
        raise SweepError(
            f"the range of {name!r} has {last - first + 1} points, "
            f"more than {MOST_POINTS}"
        )
    return list(range(first, last + 1))


def _spaced(
    name: str,
    first: float,
    last: float,
    points: Any,  # noqa: ANN401  (checks any value)
    scale: Any,  # noqa: ANN401  (checks any value)
) -> list[Value]:
    whole = isinstance(points, int) and not isinstance(points, bool)
    if not whole or not 2 <= points <= MOST_POINTS:
        raise SweepError(
            f"points of {name!r} must be a whole number from 2 to {MOST_POINTS}, "
            f"not {points!r}"
        )
    if scale not in ("linear", "log"):
        raise SweepError(f"scale of {name!r} must be linear or log, not {scale!r}")
    if scale == "log" and first <= 0:
        raise SweepError(f"a log range of {name!r} must start above 0, not at {first}")
    shares = [place / (points - 1) for place in range(1, points - 1)]
    if scale == "log":
        inner = [first * (last / first) ** share for share in shares]
    else:
        inner = [first + (last - first) * share for share in shares]
    rounded = [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in inner]
    return [float(first), *rounded, float(last)]
