"""The figure guard on synthetic images, and inside a real nbval run."""

import base64
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
from matplotlib import image
from nbclient import NotebookClient
from nbformat import NotebookNode, v4
from nbval.plugin import get_sanitize_patterns

from shared import plots
from tests import figure_guard

ROOT = Path(__file__).resolve().parent.parent

# A figure whose text form is always the same, so that only the pixels can tell.
MUTE = """
from IPython.display import display
from shared import plots

def draw(factor, label="curve"):
    figure, axes = plots.new_figure(width=5)
    axes[0].set_ylim(0, 2)
    plots.curves(axes[0], {label: ([0, 1, 2], [0.5 * factor, factor, 1.5 * factor])})
    plots.name_axes(axes[0], "step", "loss")
    figure.__class__.__repr__ = lambda figure: "a figure"
"""


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    image.imsave(file, pixels.astype(np.uint8), format="png")
    return base64.b64encode(file.getvalue()).decode()


def white(height: int = 200, width: int = 300) -> np.ndarray:
    return np.full((height, width, 3), 255)


def with_line(row: int, gray: int = 0, **size: int) -> np.ndarray:
    pixels = white(**size)
    pixels[row : row + 4] = gray
    return pixels


def test_decode_returns_the_gray_levels_that_were_written() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3))
    np.testing.assert_array_equal(figure_guard.decode(png(pixels)), pixels)


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (with_line(100), "unchanged"),
        (with_line(101), "moved by one pixel"),
        (with_line(100, gray=figure_guard.GRAY_LEVELS), "as gray as is allowed"),
        (with_line(100, height=202, width=298), "margins cut two pixels otherwise"),
    ],
)
def test_small_differences_are_no_complaint(new: np.ndarray, why: str) -> None:
    assert figure_guard.complaint(png(with_line(100)), png(new)) == "", why


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (white(), "differs"),
        (with_line(106), "differs"),
        (with_line(100, gray=figure_guard.GRAY_LEVELS + 1), "differs"),
        (with_line(100, height=203), "300 x 203 pixels, stored 300 x 200"),
        (with_line(100, width=303), "303 x 200 pixels, stored 300 x 200"),
    ],
)
def test_other_differences_are_named(new: np.ndarray, expected: str) -> None:
    assert expected in figure_guard.complaint(png(with_line(100)), png(new))


def test_the_share_counts_what_vanished_and_what_appeared() -> None:
    # Two lines of 4 rows; of each the rows that touch like pixels do not count twice.
    share = figure_guard.differing_share(with_line(20), with_line(60))
    assert share == pytest.approx(8 / 200)


def test_a_color_counts_though_its_mean_gray_is_the_same() -> None:
    red, green = white(), white()
    red[50:60] = (200, 0, 0)
    green[50:60] = (0, 200, 0)
    assert "differs" in figure_guard.complaint(png(red), png(green))


def test_one_marker_moved_and_one_digit_changed_are_seen() -> None:
    def drawn(y: float, title: str) -> str:
        figure, axes = plots.new_figure()
        axes[0].set(xlim=(0, 10), ylim=(0, 10))
        axes[0].plot(range(10), [1, 2, 3, 4, y, 6, 7, 8, 9, 9], "o", markersize=5)
        plots.name_axes(axes[0], "x", "y", title)
        file = io.BytesIO()
        figure.savefig(file, format="png", bbox_inches="tight")
        return base64.b64encode(file.getvalue()).decode()

    reference = drawn(5.0, "limit 0.25")
    assert figure_guard.complaint(reference, drawn(5.0, "limit 0.25")) == ""
    assert "differs" in figure_guard.complaint(reference, drawn(5.4, "limit 0.25"))
    assert "differs" in figure_guard.complaint(reference, drawn(5.0, "limit 0.28"))


@pytest.fixture(scope="module")
def nbval_says(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return nbval's words on each cell of a notebook that was tampered with.

    One notebook and one run for all cases: starting kernels is what takes the time.
    """
    cases = (
        "unchanged",
        "data changed",
        "image replaced",
        "image stripped",
        "image added",
        "text changed",
    )
    sources = [MUTE, *("draw(1)" for _ in cases), 'draw(1, label="other")']
    notebook = v4.new_notebook(cells=[v4.new_code_cell(text) for text in sources])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()

    names = ("set-up", *cases, "other")
    cell = dict(zip(names, notebook.cells, strict=True))
    cell["data changed"].source = "draw(1.05)"
    image_of_other = cell["other"].outputs[0].data[figure_guard.MIME]
    cell["image replaced"].outputs[0].data[figure_guard.MIME] = image_of_other
    del cell["image stripped"].outputs[0].data[figure_guard.MIME]
    # The texts agree; only one of the two images is not stored.
    cell["image added"].source = "draw(1); draw(1)"
    cell["image added"].outputs.append(
        v4.new_output("display_data", {"text/plain": "a figure"})
    )
    cell["text changed"].outputs[0].data["text/plain"] = "another figure"
    return dict(zip(names, run_nbval(notebook, tmp_path_factory), strict=True))


def run_nbval(notebook: NotebookNode, folders: pytest.TempPathFactory) -> Iterator[str]:
    """Yield for each cell in order "PASSED", or the report of its failure."""
    path = folders.mktemp("notebook") / "page.ipynb"
    nbformat.write(notebook, path)
    command = [sys.executable, "-m", "pytest", "-p", "tests.figure_guard", "--nbval"]
    options = ["--nbval-current-env", "--nbval-sanitize-with", "tests/nbval.cfg"]
    run = subprocess.run(
        [*command, *options, "--verbose", "--color=no", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    for place in range(len(notebook.cells)):
        outcome = re.search(rf"::Cell {place} (PASSED|FAILED)", run.stdout)
        assert outcome, run.stdout + run.stderr
        report = re.search(
            rf"^_+ .*Cell {place} _+$(.*?)^[_=]", run.stdout, re.M | re.S
        )
        yield report[1] if report else outcome[1]


@pytest.mark.parametrize("case", ["set-up", "unchanged", "other"])
def test_nbval_passes_what_is_unchanged(nbval_says: dict[str, str], case: str) -> None:
    assert nbval_says[case] == "PASSED"


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("data changed", r"cell 2: figure 1 differs .* at most 0\.002% may be"),
        ("image replaced", r"cell 3: figure 1 (differs|is)"),
        ("image stripped", r"cell 4: makes 1 figures, 0 are stored"),
        ("image added", r"cell 5: makes 2 figures, 1 are stored"),
        ("text changed", r"mismatch 'text/plain'"),
    ],
)
def test_nbval_fails_what_was_changed(
    nbval_says: dict[str, str], case: str, expected: str
) -> None:
    assert re.search(expected, nbval_says[case]), nbval_says[case]


def test_the_sanitizer_hides_addresses_and_nothing_else() -> None:
    config = (ROOT / "tests/nbval.cfg").read_text("ascii")
    ((pattern, replacement),) = get_sanitize_patterns(config)
    assert re.sub(pattern, replacement, "<map at 0x7f3a>") == "<map at ADDRESS>"
    for kept in ("0.0159532", "loss at 0.5", "0x7f is 127"):
        assert re.sub(pattern, replacement, kept) == kept
