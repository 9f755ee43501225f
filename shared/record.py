"""How a chapter hands its numbers to a sweep, and its verdicts to the claims page.

Each call shows its values in the page, rounded, and carries them in full in the
output's metadata, where the sweep reads them. The rounded text is what nbval compares
when it runs the notebook again.
"""

import math
import numbers
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from IPython.display import display

RECORD_KEY = "nothing_moves_record"
"""Key in an output's metadata under which the recorded values are kept."""

CLAIM_KEY = "nothing_moves_claim"
"""Key in an output's metadata under which a claim's verdict is kept."""

VERDICTS = ("true", "true with conditions", "misleading", "false", "not checkable")
"""The verdicts a claim can get."""

CLAIMS = Path(__file__).resolve().parent.parent / "chapters" / "claims.toml"
"""The one table of claims."""

Value = bool | int | float | str


def plain(name: str, value: Any) -> Value:  # noqa: ANN401  (checks any value)
    """Return ``value`` as a bool, int, float or str.

    Args:
        name: what the value is called, for the message.
        value: a Python, NumPy or PyTorch scalar, or a string.

    Raises:
        TypeError: if ``value`` is neither a scalar nor a string.
    """
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        size = value.numel() if hasattr(value, "numel") else value.size
        if size == 1:
            value = value.item()
    if isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError(
        f"{name} must be a bool, a number, a string or a tensor or array with one "
        f"element, not {type(value).__name__}: {value!r}"
    )


def rounded(value: Value) -> str:
    """Return ``value`` as text, floats to four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def record(**values: Any) -> None:  # noqa: ANN401  (checked by `plain`)
    """Hand this run's numbers to a sweep, and show them.

    NaN and infinity are results like any other.

    Args:
        **values: at least one bool, number or string by name.

    Raises:
        TypeError: if a value is neither a scalar nor a string.
        ValueError: if nothing is given.
    """
    if not values:
        raise ValueError("record() needs at least one value, as name=value")
    kept = {name: plain(name, value) for name, value in values.items()}
    width = max(map(len, kept))
    lines = [f"{name:<{width}} = {rounded(value)}" for name, value in kept.items()]
    _show("\n".join(lines), RECORD_KEY, kept)


@cache
def claims() -> dict[str, str]:
    """Return what the two articles say, in our words, by claim id."""
    tables = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))
    return {name: says for table in tables.values() for name, says in table.items()}


def record_verdict(claim: str, verdict: str, measured: str) -> None:
    """State what became of one claim of an article, and hand it to the claims page.

    Args:
        claim: the claim's id in chapters/claims.toml, such as ``"A28"``.
        verdict: one of `VERDICTS`.
        measured: the number that decides, in words that stand alone.

    Raises:
        ValueError: if the id, the verdict or the measurement is not as above.
    """
    if claim not in claims():
        raise ValueError(
            f"claim must be an id in {CLAIMS.name}, such as 'A28', not {claim!r}"
        )
    if verdict not in VERDICTS:
        raise ValueError(
            f"verdict must be one of {', '.join(VERDICTS)}, not {verdict!r}"
        )
    if not measured.strip():
        raise ValueError(f"measured must say what decides claim {claim}, not be empty")
    kept = {"claim": claim, "verdict": verdict, "measured": measured}
    text = f"{claim:<4} {claims()[claim]}\n     {verdict}: {measured}"
    _show(text, CLAIM_KEY, kept)


def _show(text: str, key: str, kept: Mapping[str, Value]) -> None:
    # JSON has no NaN and no infinity: these travel as the strings float() reads back.
    safe = {name: _json_safe(value) for name, value in kept.items()}
    display({"text/plain": text}, raw=True, metadata={key: safe})


def _json_safe(value: Value) -> Any:  # noqa: ANN401  (a JSON value)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    return value


def _from_json(value: Any) -> Value:  # noqa: ANN401  (a JSON value)
    return float(value["float"]) if isinstance(value, dict) else value


def _kept_in(notebook: Mapping[str, Any], key: str) -> Iterator[dict[str, Value]]:
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            kept = output.get("metadata", {}).get(key)
            if kept is not None:
                yield {name: _from_json(value) for name, value in kept.items()}


def recorded_values(notebook: Mapping[str, Any]) -> dict[str, Value]:
    """Return all values that an executed notebook recorded, later ones winning."""
    values: dict[str, Value] = {}
    for kept in _kept_in(notebook, RECORD_KEY):
        values.update(kept)
    return values


def recorded_verdicts(notebook: Mapping[str, Any]) -> list[dict[str, Value]]:
    """Return the claim verdicts that an executed notebook recorded, in order."""
    return list(_kept_in(notebook, CLAIM_KEY))
