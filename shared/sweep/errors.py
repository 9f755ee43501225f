"""What a sweep says when its input is bad. Light, because chapters import it."""

import difflib
from collections.abc import Iterable


class SweepError(ValueError):
    """Bad input to a sweep, found before anything ran, or rows that cannot be kept."""


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
