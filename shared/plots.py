"""One named function per kind of figure; each takes ``ax`` and returns it.

Colors are those of Okabe and Ito (2008), which people with any color vision can tell
apart, and every color comes with a line style or marker of its own. Figures have an
opaque white ground, so that they read the same on a dark page.

A figure made by `new_figure` describes the data it shows as text. Notebooks store that
text beside the image, and nbval compares it: a figure whose data change fails the
tests, as a printed number would.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatterSciNotation, LogLocator
from numpy.typing import ArrayLike
from scipy.stats import binomtest

BLACK = "#000000"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", BLACK)
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
SUPERSCRIPTS = str.maketrans("-−0123456789", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_DECADES_WITH_MINOR = 3.5
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "image.cmap": "cividis",
}


class DescribedFigure(Figure):
    """A figure whose text form lists the data it shows."""

    def __repr__(self) -> str:
        return describe(self)


def new_figure(
    columns: int = 1, rows: int = 1, *, width: float = 7.0, height: float = 3.4
) -> tuple[Figure, np.ndarray]:
    """Return a figure in the book's style and its axes as a flat array.

    Args:
        columns: panels side by side.
        rows: panels on top of each other.
        width: inches; 7 fills the text column.
        height: inches, of the whole figure.
    """
    # Loads the backend, which makes notebooks show every figure. Loaded inside the
    # context, that setting would be undone after the first one.
    plt.draw_if_interactive()
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(width, height),
            squeeze=False,
            layout="constrained",
            FigureClass=DescribedFigure,
        )
    for ax in axes.ravel():
        for spine in ax.spines.values():
            # The ticks beside it take more room, and asking it asks all of them again.
            spine.set_in_layout(False)
    return figure, axes.ravel()


def name_axes(ax: Axes, x: str, y: str, title: str = "") -> Axes:
    """Label both axes, give the panel a short title and show the legend, if any."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if title:
        _set_title(ax, title, fontsize=10, loc="left")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=9)
    return ax


def curves(
    ax: Axes,
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    log: str = "",
    first_style: int = 0,
) -> Axes:
    """Draw named lines, each with a color and a line style of its own.

    Args:
        ax: where to draw.
        lines: x and y values by the name that the legend shows.
        log: which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.
        first_style: place in the palette of the first line.
    """
    for place, (name, (x, y)) in enumerate(lines.items(), first_style):
        style = place % len(PALETTE)
        ax.plot(
            np.asarray(x),
            np.asarray(y),
            color=PALETTE[style],
            linestyle=LINE_STYLES[style],
            linewidth=1.8,
            label=name,
        )
    return _set_log(ax, log)


def measured_and_predicted(
    ax: Axes,
    x: ArrayLike,
    measured: ArrayLike,
    predicted_x: ArrayLike,
    predicted: ArrayLike,
    *,
    name: str = "",
    log: str = "",
    place: int = 0,
) -> Axes:
    """Draw measurements as markers and the closed form as a line through them.

    Args:
        ax: where to draw.
        x: where it was measured.
        measured: what was measured, same length as ``x``.
        predicted_x: points of the closed form, usually denser.
        predicted: values of the closed form, same length as ``predicted_x``.
        name: what is shown, if the panel shows several; ends up in the legend.
        log: which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.
        place: place in the palette.
    """
    prefix = f"{name}, " if name else ""
    color = PALETTE[place % len(PALETTE)]
    ax.plot(
        np.asarray(predicted_x),
        np.asarray(predicted),
        color=color,
        linestyle=LINE_STYLES[place % len(LINE_STYLES)],
        linewidth=1.3,
        label=f"{prefix}predicted",
    )
    ax.plot(
        np.asarray(x),
        np.asarray(measured),
        color=color,
        linestyle="none",
        marker=MARKERS[place % len(MARKERS)],
        markersize=5,
        label=f"{prefix}measured",
    )
    return _set_log(ax, log)


def landscape_with_path(
    ax: Axes, x: ArrayLike, y: ArrayLike, path_x: ArrayLike, path_y: ArrayLike
) -> Axes:
    """Draw a one-dimensional landscape and the points a descent visited on it."""
    ax.plot(np.asarray(x), np.asarray(y), color="#888888", linewidth=1.2)
    path_x, path_y = np.asarray(path_x), np.asarray(path_y)
    ax.plot(
        path_x,
        path_y,
        color=PALETTE[0],
        marker="o",
        markersize=3.5,
        linewidth=0.8,
        label="descent",
    )
    ax.plot(
        path_x[-1:],
        path_y[-1:],
        color=PALETTE[1],
        marker="X",
        markersize=9,
        linestyle="none",
        label="stops here",
    )
    return ax


def shares_with_intervals(
    ax: Axes,
    x: ArrayLike,
    successes: Sequence[int],
    trials: Sequence[int],
    *,
    name: str,
    line: bool = True,
    place: int = 0,
) -> Axes:
    """Draw shares with their 95 % Wilson intervals.

    Args:
        ax: where to draw.
        x: horizontal positions.
        successes: how often it happened, one count per position.
        trials: out of how many, one count per position.
        name: legend entry.
        line: join the shares by a line.
        place: place in the palette.

    Raises:
        ValueError: if a share is out of no trials.
    """
    if min(trials) < 1:
        raise ValueError(f"trials must be at least 1 each, not {list(trials)}")
    shares, low, high = [], [], []
    for happened, tried in zip(successes, trials, strict=True):
        share = happened / tried
        interval = binomtest(happened, tried).proportion_ci(method="wilson")
        shares.append(share)
        # Round-off can put an end of the interval on the wrong side of 0 % or 100 %.
        low.append(min(interval.low, share))
        high.append(max(interval.high, share))
    return middles_with_ranges(
        ax, x, shares, low, high, name=name, line=line, place=place
    )


def middles_with_ranges(
    ax: Axes,
    x: ArrayLike,
    middle: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    name: str,
    line: bool = True,
    log: str = "",
    place: int = 0,
) -> Axes:
    """Draw one value per position with a bar from the lowest to the highest.

    Args:
        ax: where to draw.
        x: horizontal positions.
        middle: for example medians over seeds, same length as ``x``.
        low: lower ends of the bars, at most ``middle``.
        high: upper ends of the bars, at least ``middle``.
        name: legend entry.
        line: join the values by a line.
        log: which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.
        place: place in the palette.

    Raises:
        ValueError: if a bar does not contain its value.
    """
    middle, low, high = np.asarray(middle), np.asarray(low), np.asarray(high)
    if not (np.all(low <= middle) and np.all(middle <= high)):
        raise ValueError("low and high must enclose middle at every position")
    ax.errorbar(
        np.asarray(x),
        middle,
        yerr=[middle - low, high - middle],
        color=PALETTE[place % len(PALETTE)],
        linestyle=LINE_STYLES[place % len(LINE_STYLES)] if line else "none",
        marker=MARKERS[place % len(MARKERS)],
        markersize=5,
        linewidth=1.2,
        capsize=3,
        label=name,
    )
    return _set_log(ax, log)


def points(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    *,
    name: str,
    log: str = "",
    place: int = 0,
) -> Axes:
    """Draw many measurements as small markers, so pale that crowds look darker.

    Args:
        ax: where to draw.
        x: horizontal positions.
        y: values, same length as ``x``.
        name: legend entry.
        log: which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.
        place: place in the palette.
    """
    ax.plot(
        np.asarray(x),
        np.asarray(y),
        color=PALETTE[place % len(PALETTE)],
        linestyle="none",
        marker=MARKERS[place % len(MARKERS)],
        markersize=3.5,
        alpha=0.5,
        label=name,
    )
    return _set_log(ax, log)


def outcome_map(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    outcome: ArrayLike,
    names: Sequence[str],
    *,
    key: bool = True,
) -> Axes:
    """Draw which outcome each point of a grid ends in, one color per outcome.

    Args:
        ax: where to draw.
        x: grid positions along the horizontal axis, shape (columns,).
        y: grid positions along the vertical axis, shape (rows,).
        outcome: place in ``names``, shape (rows, columns).
        names: what the outcomes are called, at most as many as the palette has.
        key: show the names beside the panel; one of several panels is enough.

    Raises:
        ValueError: if there are more names than colors, or an outcome without a name.
    """
    if not np.isin(np.asarray(outcome), np.arange(len(names))).all():
        raise ValueError(f"outcome must be in 0 to {len(names) - 1}, a place in names")
    if len(names) > len(PALETTE):
        raise ValueError(f"names must have at most {len(PALETTE)}, not {len(names)}")
    colors = ListedColormap(PALETTE[: len(names)])
    norm = BoundaryNorm(np.arange(-0.5, len(names)), len(names))
    mesh = ax.pcolormesh(
        np.asarray(x), np.asarray(y), np.asarray(outcome), cmap=colors, norm=norm
    )
    mesh.set_rasterized(True)
    if key:
        bar = ax.figure.colorbar(mesh, ax=ax, ticks=np.arange(len(names)))
        bar.ax.set_yticklabels(names, fontsize=9)
    ax.grid(False)
    return ax


def picture(ax: Axes, pixels: ArrayLike, title: str) -> Axes:
    """Draw one gray image with values in [0, 1] and no axes.

    Args:
        ax: where to draw.
        pixels: shape (rows, columns).
        title: short, above the image.
    """
    ax.imshow(np.asarray(pixels), cmap="gray", vmin=0, vmax=1)
    _set_title(ax, title, fontsize=9)
    ax.set_axis_off()
    return ax


def _set_title(ax: Axes, title: str, **look: Any) -> None:  # noqa: ANN401
    """Set a title at the panel's upper edge.

    Told where, matplotlib does not look through all ticks for some above the panel.
    """
    ax.set_title(title, y=1.0, **look)


def _set_log(ax: Axes, log: str) -> Axes:
    if not set(log) <= {"x", "y"}:
        raise ValueError(f"log must be '', 'x', 'y' or 'xy', not {log!r}")
    for letter in log:
        axis = ax.xaxis if letter == "x" else ax.yaxis
        ax.set(**{f"{letter}scale": "log"})
        axis.set_major_formatter(PowersAsText())
        axis.set_minor_formatter(PowersAsText(labelOnlyBase=False))
        axis.set_minor_locator(MinorTicksOfFewDecades(subs="auto"))
    return ax


class PowersAsText(LogFormatterSciNotation):
    """Labels of a log axis in plain characters: 10⁻³ and not its formula.

    Setting a formula costs a hundred times more than setting text, and a figure with
    two log axes has dozens, each set again whenever the figure is laid out.
    """

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of the tick at ``x``, empty if it has none."""
        label = super().__call__(x, pos)
        formula = re.fullmatch(r"\$\\mathdefault\{(.*)\}\$", label)
        if not formula:
            return label
        text = re.sub(
            r"\^\{(.*?)\}",
            lambda power: power[1].translate(SUPERSCRIPTS),
            formula[1],
        )
        return text.replace(r"\times", " × ")


class MinorTicksOfFewDecades(LogLocator):
    """Minor ticks for a log axis of few decades; on a longer one they only crowd."""

    def tick_values(self, vmin: float, vmax: float) -> ArrayLike:
        """Return the places of the minor ticks between two values."""
        if min(vmin, vmax) <= 0 or abs(np.log10(vmax / vmin)) > MOST_DECADES_WITH_MINOR:
            return np.empty(0)
        return super().tick_values(vmin, vmax)


# --------------------------------------------------------------------------------------
# The text form of a figure
# --------------------------------------------------------------------------------------


def describe(figure: Figure) -> str:
    """Return what a figure shows as text: labels, and for each artist its data.

    Each series is given by its length and by six numbers to three significant
    digits, one of them weighted by position, so that a changed, moved or swapped value
    shows, and a change in the sixteenth digit does not.
    """
    lines = []
    for place, ax in enumerate(figure.axes, 1):
        title = ax.get_title("left") or ax.get_title()
        lines.append(
            f"Panel {place}: {title or 'untitled'}; x: {ax.get_xlabel() or 'unnamed'} "
            f"({ax.get_xscale()}); y: {ax.get_ylabel() or 'unnamed'} "
            f"({ax.get_yscale()})"
        )
        lines += [f"  {text}" for text in _describe_artists(ax)]
    return "\n".join(lines)


def _describe_artists(ax: Axes) -> list[str]:
    texts = [
        f"line {_name(line)}: {_points(ax, *line.get_data())}" for line in ax.lines
    ]
    for collection in ax.collections:
        if isinstance(collection, QuadMesh):
            texts.append(f"map: {_numbers(collection.get_array())}")
            continue
        if isinstance(collection, PathCollection):
            points = np.asarray(collection.get_offsets())
        else:
            # Filled areas and the bars of intervals: what counts is their corners.
            corners = [path.vertices for path in collection.get_paths()]
            points = np.concatenate(corners) if corners else np.empty((0, 2))
        if len(points):
            named = _name(collection)
            texts.append(f"points {named}: {_points(ax, points[:, 0], points[:, 1])}")
    texts += [f"image: {_numbers(image.get_array())}" for image in ax.images]
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    if bars:
        lefts = [bar.get_x() for bar in bars]
        texts.append(f"bars: {_points(ax, lefts, [bar.get_height() for bar in bars])}")
    texts += [f"note: {text.get_text()}" for text in ax.texts]
    return texts


def _name(artist: mpl.artist.Artist) -> str:
    label = str(artist.get_label())
    return "unnamed" if label.startswith("_") else f"'{label}'"


def _points(ax: Axes, x: ArrayLike, y: ArrayLike) -> str:
    x_text = _numbers(x, logarithmic=ax.get_xscale() == "log")
    y_text = _numbers(y, logarithmic=ax.get_yscale() == "log")
    return f"x {x_text}; y {y_text}"


def _numbers(values: ArrayLike, *, logarithmic: bool = False) -> str:
    flat = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan).ravel()
    finite = flat[np.isfinite(flat)]
    if not finite.size:
        return f"n={flat.size}, none finite"
    weights = np.linspace(0, 1, flat.size)[np.isfinite(flat)]
    mean, weighted = finite.mean(), (finite * weights).mean()
    if logarithmic and finite.min() > 0:
        # Where small values are as visible as large ones they must count as much.
        logs = np.log(finite)
        mean, weighted = np.exp(logs.mean()), np.exp((logs * weights).mean())
    numbers = (finite[0], finite[-1], finite.min(), finite.max(), mean, weighted)
    if not logarithmic:
        # On a linear axis a billionth of the largest value is round-off.
        noise = 1e-9 * np.abs(finite).max()
        numbers = tuple(0.0 if abs(number) <= noise else number for number in numbers)
    missing = (
        f" ({flat.size - finite.size} not finite)" if finite.size < flat.size else ""
    )
    # Round numbers of a regular grid sit on the border between two roundings, where
    # the last bit decides. A nudge of four millionths moves the border away from them.
    texts = [f"{number * (1 + 4e-6):.3g}" for number in numbers]
    names = ("first", "last", "min", "max", "mean", "weighted")
    pairs = ", ".join(f"{n} {t}" for n, t in zip(names, texts, strict=True))
    return f"n={flat.size}{missing}, {pairs}"
