"""Makes nbval compare figures too: `pytest -p tests.figure_guard --nbval ...`.

nbval compares text and skips images, so a figure could change, or vanish, unseen. This
plugin decodes the stored and the new image of each cell and compares their pixels.
"""

import base64
import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

# The parser of international addresses takes a second to import, in each process of
# pytest. What validates notebooks knows how to do without: they have no such addresses.
sys.modules.setdefault("rfc3987_syntax", None)

from nbval.plugin import IPyNbCell  # noqa: E402

GRAY_LEVELS = 40
"""A channel of a pixel may differ by this many of 255 levels."""

SHARE = 2e-5
"""Largest share of pixels that may differ by more: 10 pixels of a usual figure."""

SIZE_SLACK = 2
"""Pixels by which width and height may differ: the margins are cut to fit the text."""

MIME = "image/png"

Outputs = Sequence[Mapping[str, Any]]
ORIGINAL = pytest.StashKey[Any]()


def decode(png: str) -> np.ndarray:
    """Return a base64 PNG as gray levels 0 to 255, shape (height, width, 3), int16."""
    # Here, because the process that hands out the notebooks compares nothing.
    from matplotlib import image

    pixels = image.imread(io.BytesIO(base64.b64decode(png)), format="png")
    if pixels.ndim == 2:
        pixels = pixels[..., None].repeat(3, axis=-1)
    return np.rint(pixels[..., :3] * 255).astype(np.int16)


def differing_share(stored: np.ndarray, new: np.ndarray) -> float:
    """Return the share of pixels that the other image has not, nor next to them.

    Looking one pixel around makes a shift by a rounded margin count as no change.

    Args:
        stored: gray levels, shape (height, width, 3).
        new: the same, height and width may differ by a pixel or two.
    """
    height = min(len(stored), len(new))
    width = min(stored.shape[1], new.shape[1])
    stored, new = stored[:height, :width], new[:height, :width]
    differs = _sticks_out(stored, new) | _sticks_out(new, stored)
    return float(differs.mean())


def _sticks_out(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    from scipy.ndimage import maximum_filter, minimum_filter

    around = (3, 3, 1)
    darkest = minimum_filter(other, around) - GRAY_LEVELS
    brightest = maximum_filter(other, around) + GRAY_LEVELS
    return ((one < darkest) | (one > brightest)).any(axis=-1)


def complaint(stored: str, new: str) -> str:
    """Return in words how two base64 PNG images differ, nothing if they agree."""
    # Equal files are equal pictures: most are, and decoding takes a tenth of a second.
    if stored.strip() == new.strip():
        return ""
    before, after = decode(stored), decode(new)
    height, width = before.shape[:2]
    new_height, new_width = after.shape[:2]
    if max(abs(height - new_height), abs(width - new_width)) > SIZE_SLACK:
        return f"is {new_width} x {new_height} pixels, stored {width} x {height}"
    share = differing_share(before, after)
    if share > SHARE:
        return (
            f"differs from the stored one: {share:.3%} of the pixels are off by more "
            f"than {GRAY_LEVELS} of 255 gray levels, at most {SHARE:.3%} may be"
        )
    return ""


def complaints(new_outputs: Outputs, stored_outputs: Outputs) -> list[str]:
    """Return what is wrong with a cell's figures, one line each."""
    new, stored = _images(new_outputs), _images(stored_outputs)
    if len(new) != len(stored):
        return [f"makes {len(new)} figures, {len(stored)} are stored"]
    lines = []
    for place, (before, after) in enumerate(zip(stored, new, strict=True), 1):
        text = complaint(before, after)
        if text:
            lines.append(f"figure {place} {text}")
    return lines


def _images(outputs: Outputs) -> list[str]:
    return [
        output["data"][MIME] for output in outputs if MIME in output.get("data", {})
    ]


def pytest_configure(config: pytest.Config) -> None:
    """Put the comparison of images behind nbval's own, which returns True or False."""
    original = IPyNbCell.compare_outputs
    config.stash[ORIGINAL] = original

    def compare_outputs(
        cell: IPyNbCell, test: Outputs, ref: Outputs, *args: Any, **options: Any
    ) -> bool:
        if not original(cell, test, ref, *args, **options):
            return False
        lines = complaints(test, ref)
        cell.comparison_traceback += [f"cell {cell.cell_num}: {x}" for x in lines]
        return not lines

    IPyNbCell.compare_outputs = compare_outputs


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nbval as it was."""
    IPyNbCell.compare_outputs = config.stash[ORIGINAL]
