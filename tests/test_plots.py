"""Figures show the data they are given, and their text form tells when these change."""

import math
from collections.abc import Callable, Iterator

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from shared import plots


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    """Close what a test drew."""
    yield
    plt.close("all")


@pytest.fixture
def ax() -> Axes:
    """Return the axes of a figure in the book's style."""
    return plots.new_figure()[1][0]


X = np.array([1.0, 2.0, 4.0, 5.0, 7.0, 11.0])
Y = np.array([3.3, 1.7, 2.2, 9.1, 0.61, 4.4])


def test_colors_are_those_of_okabe_and_ito() -> None:
    published = {
        "#000000",
        "#E69F00",
        "#56B4E9",
        "#009E73",
        "#0072B2",
        "#D55E00",
        "#CC79A7",
    }
    # Their yellow is left out: it cannot be read on white.
    assert set(plots.PALETTE) == published


def test_no_style_is_told_by_its_color_alone() -> None:
    for styles in (plots.PALETTE, plots.LINE_STYLES, plots.MARKERS):
        assert len(set(styles)) == len(plots.PALETTE)


def test_new_figure() -> None:
    before = dict(mpl.rcParams)
    figure, axes = plots.new_figure(columns=3, rows=2, width=6, height=4)
    assert axes.shape == (6,)
    assert figure.get_size_inches().tolist() == [6, 4]
    assert dict(mpl.rcParams) == before
    # Opaque, so that it can be read on a dark page.
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert all(panel.get_facecolor() == (1, 1, 1, 1) for panel in axes)


def test_name_axes(ax: Axes) -> None:
    plots.curves(ax, {"falling": (X, Y)})
    assert plots.name_axes(ax, "step", "loss", "one run") is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss")
    assert ax.get_title("left") == "one run"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["falling"]


def test_name_axes_without_names_has_no_legend(ax: Axes) -> None:
    ax.plot(X, Y)
    assert plots.name_axes(ax, "step", "loss").get_legend() is None


def test_curves(ax: Axes) -> None:
    lines = {str(place): (X, Y + place) for place in range(9)}
    assert plots.curves(ax, lines, first_style=1) is ax
    for place, line in enumerate(ax.lines):
        np.testing.assert_array_equal(line.get_data(), (X, Y + place))
        style = (place + 1) % 7
        assert line.get_color() == plots.PALETTE[style]
        assert line.get_label() == str(place)
    assert [line.get_linestyle() for line in ax.lines[:3]] == ["--", "-.", ":"]


@pytest.mark.parametrize(
    ("log", "scales"),
    [
        ("", ("linear", "linear")),
        ("x", ("log", "linear")),
        ("y", ("linear", "log")),
        ("xy", ("log", "log")),
        ("yx", ("log", "log")),
    ],
)
def test_log(log: str, scales: tuple[str, str], ax: Axes) -> None:
    plots.curves(ax, {"a": (X, Y)}, log=log)
    assert (ax.get_xscale(), ax.get_yscale()) == scales
    plots.measured_and_predicted(ax, X, Y, X, Y, log=log)
    assert (ax.get_xscale(), ax.get_yscale()) == scales


@pytest.mark.parametrize("log", ["z", "log", "x y"])
def test_log_of_no_axis(log: str, ax: Axes) -> None:
    with pytest.raises(ValueError, match=f"log must be .*'{log}'"):
        plots.curves(ax, {"a": (X, Y)}, log=log)
    with pytest.raises(ValueError, match="log must be"):
        plots.measured_and_predicted(ax, X, Y, X, Y, log=log)


def test_measured_and_predicted(ax: Axes) -> None:
    dense = np.linspace(1, 11, 50)
    plots.measured_and_predicted(ax, X, Y, dense, dense**2, name="tanh", place=2)
    predicted, measured = ax.lines
    np.testing.assert_array_equal(predicted.get_data(), (dense, dense**2))
    np.testing.assert_array_equal(measured.get_data(), (X, Y))
    assert predicted.get_label() == "tanh, predicted"
    assert measured.get_label() == "tanh, measured"
    assert (predicted.get_marker(), measured.get_linestyle()) == ("None", "None")
    assert predicted.get_color() == measured.get_color() == plots.PALETTE[2]


def test_landscape_with_path(ax: Axes) -> None:
    plots.landscape_with_path(ax, X, Y, [1, 2, 3], [3, 2, 1])
    landscape, path, end = ax.lines
    np.testing.assert_array_equal(landscape.get_data(), (X, Y))
    np.testing.assert_array_equal(path.get_data(), ([1, 2, 3], [3, 2, 1]))
    np.testing.assert_array_equal(end.get_data(), ([3], [1]))


def bars_of(ax: Axes) -> np.ndarray:
    """Return the ends of the drawn intervals, shape (bars, 2)."""
    (bars,) = ax.containers[0].lines[2]
    return np.array([segment[:, 1] for segment in bars.get_segments()])


def test_shares_have_wilson_intervals(ax: Axes) -> None:
    successes, trials = [0, 3, 37, 200], [20, 60, 200, 200]
    plots.shares_with_intervals(ax, range(4), successes, trials, name="stuck")
    z = 1.959963984540054
    drawn = bars_of(ax)
    for k, n, share, (low, high) in zip(
        successes, trials, ax.lines[0].get_ydata(), drawn, strict=True
    ):
        p = k / n
        assert share == p
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
        assert low == pytest.approx(center - half, abs=1e-9)
        assert high == pytest.approx(center + half, abs=1e-9)


def test_shares_are_joined_by_a_line_unless_told(ax: Axes) -> None:
    plots.shares_with_intervals(ax, [1, 2], [1, 2], [3, 3], name="in order")
    plots.shares_with_intervals(ax, [1, 2], [1, 2], [3, 3], name="loose", line=False)
    styles = [drawn.lines[0].get_linestyle() for drawn in ax.containers]
    assert styles == ["-", "None"]


def test_shares_need_a_count_of_trials_each(ax: Axes) -> None:
    with pytest.raises(ValueError, match="shorter"):
        plots.shares_with_intervals(ax, range(2), [1, 2], [3], name="stuck")


def test_middles_with_ranges(ax: Axes) -> None:
    plots.middles_with_ranges(ax, X, Y, Y - 0.1, Y + 0.3, name="seeds", log="x")
    np.testing.assert_array_equal(ax.lines[0].get_data(), (X, Y))
    np.testing.assert_allclose(bars_of(ax), np.stack((Y - 0.1, Y + 0.3), 1))
    assert ax.get_xscale() == "log"


def test_points_are_drawn_without_a_line(ax: Axes) -> None:
    plots.points(ax, X, Y, name="images", log="y", place=1)
    (drawn,) = ax.lines
    np.testing.assert_array_equal(drawn.get_data(), (X, Y))
    assert (drawn.get_linestyle(), drawn.get_label()) == ("None", "images")
    assert (drawn.get_color(), drawn.get_marker()) == (plots.PALETTE[1], "s")
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")


@pytest.mark.parametrize(("below", "above"), [(-0.1, 0.1), (0.1, -0.1)])
def test_ranges_enclose_their_middle(below: float, above: float, ax: Axes) -> None:
    with pytest.raises(ValueError, match="must enclose"):
        plots.middles_with_ranges(ax, X, Y, Y - below, Y + above, name="seeds")


def test_outcome_map_gives_each_outcome_its_color(ax: Axes) -> None:
    outcome = np.array([[0, 1, 2], [2, 1, 0]])
    plots.outcome_map(ax, [0, 1, 2], [0, 1], outcome, ["a", "b", "c"])
    ax.figure.canvas.draw()
    (mesh,) = ax.collections
    drawn = [to_hex(color).upper() for color in mesh.get_facecolors()]
    assert drawn == [plots.PALETTE[place] for place in outcome.ravel()]
    bar = ax.figure.axes[1]
    assert [text.get_text() for text in bar.get_yticklabels()] == ["a", "b", "c"]


def test_outcome_map_shows_its_key_unless_told(ax: Axes) -> None:
    outcome = [[0, 1], [1, 0]]
    plots.outcome_map(ax, [0, 1], [0, 1], outcome, ["a", "b"], key=False)
    assert len(ax.figure.axes) == 1


def test_outcome_map_has_a_name_for_each_outcome(ax: Axes) -> None:
    with pytest.raises(ValueError, match="outcome must be in 0 to 1"):
        plots.outcome_map(ax, [0, 1], [0, 1], [[0, 1], [1, 2]], ["a", "b"])


def test_a_share_is_out_of_at_least_one_trial(ax: Axes) -> None:
    with pytest.raises(ValueError, match="trials must be at least 1"):
        plots.shares_with_intervals(ax, [1, 2], [0, 3], [0, 5], name="x")


def test_outcome_map_has_no_more_outcomes_than_colors(ax: Axes) -> None:
    with pytest.raises(ValueError, match="at most 7, not 8"):
        plots.outcome_map(ax, [0, 1], [0, 1], np.zeros((2, 2)), list("abcdefgh"))


def test_picture_keeps_the_gray_scale(ax: Axes) -> None:
    # Without limits a dark image would be stretched to full contrast.
    plots.picture(ax, np.full((8, 8), 0.25), "a digit")
    (image,) = ax.images
    assert image.get_clim() == (0, 1)
    assert image.get_array().shape == (8, 8)
    assert not ax.axison


# --------------------------------------------------------------------------------------
# The text form
# --------------------------------------------------------------------------------------


def text_of(figure: Figure) -> str:
    """Return a figure's text form, and close the figure."""
    plt.close(figure)
    return repr(figure)


def line(x: np.ndarray, y: np.ndarray) -> str:
    figure, (ax,) = plots.new_figure()
    plots.curves(ax, {"loss": (x, y)})
    return text_of(figure)


def log_line(x: np.ndarray, y: np.ndarray) -> str:
    figure, (ax,) = plots.new_figure()
    plots.curves(ax, {"loss": (x, 10.0 ** (-5 * y))}, log="y")
    return text_of(figure)


def markers(x: np.ndarray, y: np.ndarray) -> str:
    figure, (ax,) = plots.new_figure()
    plots.measured_and_predicted(ax, x, y, [0, 12], [0, 10])
    return text_of(figure)


def ranges(x: np.ndarray, y: np.ndarray) -> str:
    figure, (ax,) = plots.new_figure()
    plots.middles_with_ranges(ax, x, y, y - 1, y + 1, name="seeds")
    return text_of(figure)


def scatter(x: np.ndarray, y: np.ndarray) -> str:
    figure, (ax,) = plots.new_figure()
    ax.scatter(x, y)
    return text_of(figure)


def bars(x: np.ndarray, y: np.ndarray) -> str:
    figure, (ax,) = plots.new_figure()
    ax.bar(x, y)
    return text_of(figure)


DRAWN = pytest.mark.parametrize(
    "draw", [line, log_line, markers, ranges, scatter, bars]
)
Draw = Callable[[np.ndarray, np.ndarray], str]


@DRAWN
@pytest.mark.parametrize("place", range(len(X)))
def test_a_changed_or_moved_value_shows(draw: Draw, place: int) -> None:
    for change in (0.8, 1.25):
        factor = np.ones_like(X)
        factor[place] = change
        assert draw(X, Y * factor) != draw(X, Y)
        assert draw(X * factor, Y) != draw(X, Y)


@DRAWN
def test_swapped_values_show(draw: Draw) -> None:
    for first in range(len(X)):
        for second in range(first):
            order = np.arange(len(X))
            order[[first, second]] = second, first
            assert draw(X, Y[order]) != draw(X, Y)


@DRAWN
def test_a_missing_value_and_a_lost_one_show(draw: Draw) -> None:
    assert draw(X[:-1], Y[:-1]) != draw(X, Y)
    if draw is not ranges:  # an interval without a middle is refused
        missing = Y.copy()
        missing[3] = np.nan
        assert draw(X, missing) != draw(X, Y)


@DRAWN
def test_the_last_digits_do_not_show(draw: Draw) -> None:
    assert draw(X * (1 + 1e-12), Y * (1 - 1e-12)) == draw(X, Y)


def test_maps_and_images_show_their_values() -> None:
    def draw(values: np.ndarray) -> str:
        figure, (left, right) = plots.new_figure(columns=2)
        plots.outcome_map(left, range(3), range(2), values, list("abc"))
        plots.picture(right, values / 2, "image")
        return text_of(figure)

    values = np.array([[0, 1, 2], [2, 1, 0]])
    for place in range(6):
        changed = values.copy()
        changed.flat[place] = (changed.flat[place] + 1) % 3
        texts = zip(draw(changed).splitlines(), draw(values).splitlines(), strict=True)
        # Both the map's line and the image's.
        assert sum(one != other for one, other in texts) == 2
    assert draw(values[::-1]) != draw(values)


def test_words_are_part_of_the_text_form(ax: Axes) -> None:
    plots.curves(ax, {"falling": (X, Y)}, log="y")
    plots.name_axes(ax, "step", "loss", "one run")
    ax.text(1, 1, "here")
    text = repr(ax.figure)
    for word in (
        "Panel 1: one run",
        "step (linear)",
        "loss (log)",
        "'falling'",
        "here",
    ):
        assert word in text


def test_the_text_form_names_no_machine(ax: Axes) -> None:
    plots.curves(ax, {"falling": (X, Y)})
    assert "0x" not in repr(ax.figure)


def test_a_panel_without_data() -> None:
    figure, _ = plots.new_figure(columns=2)
    assert repr(figure).count("untitled") == 2


@pytest.mark.parametrize(
    ("largest", "minor"), [(1e2, True), (1e9, False)], ids=["few", "many"]
)
def test_a_log_axis_has_minor_ticks_only_where_decades_are_few(
    largest: float, minor: bool
) -> None:
    _, axes = plots.new_figure()
    ax = plots.curves(axes[0], {"a": ([1.0, largest], [1.0, largest])}, log="xy")
    assert (len(ax.xaxis.get_minorticklocs()) > 0) == minor
    assert (len(ax.yaxis.get_minorticklocs()) > 0) == minor


@pytest.mark.parametrize(
    ("ends", "label"),
    [((1e-6, 1e-2), "10⁻³"), ((1.0, 1e4), "10²"), ((2.0, 5.0), "3 × 10⁰")],
)
def test_labels_of_a_log_axis_are_text_and_not_formulas(
    ends: tuple[float, float], label: str
) -> None:
    figure, axes = plots.new_figure()
    ax = plots.curves(axes[0], {"a": (ends, ends)}, log="x")
    figure.draw_without_rendering()
    labels = [
        text.get_text()
        for text in ax.get_xticklabels() + ax.get_xticklabels(minor=True)
    ]
    assert label in labels
    assert not any("$" in text for text in labels)
