"""The rows of a sweep: a working store that loses none, and the published table.

Two files, with two purposes:

- The **store**, ``<slug>.rows.jsonl``, has one line a finished run with all that is
  known of it: key, parameters, recorded values, status, error, seconds, versions. A
  line is appended and forced to the disk as soon as its run ends. It stays on the
  machine that made it (git ignores it) and lets a sweep go on where it stopped.
- The **table**, ``<slug>.csv``, is what is committed, drawn and downloaded. It is made
  from the store in the order of the grid, and holds only what another run gives
  again, so that its difference in git is a difference in the results.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pandas as pd

from shared.record import Value
from shared.sweep.errors import SweepError, nearest_name

SWEEPS = Path(__file__).resolve().parents[2] / "chapters" / "sweeps"
"""Where grids and tables are."""

SIGNIFICANT_DIGITS = 9
"""Recorded floats in a table have so many: what tells every float32 from the next."""

STATUSES = ("ok", "failed", "timed out", "killed")
"""How a run can end: as planned; in an exception; not in time; without its kernel."""

SETTLED = ("ok", "failed")
"""Runs that would end the same way again. The others are tried again next time."""


@dataclass(frozen=True)
class Row:
    """What is known of one run."""

    key: str
    """Hash of all that decides the result: see `shared.sweep.runs.key_of`."""
    parameters: dict[str, Value]
    recorded: dict[str, Value]
    """What the chapter handed to `shared.record.record`, also if it failed later."""
    status: str
    """One of `STATUSES`."""
    error: str
    """The kind of the exception and its first line; empty if there was none."""
    seconds: float
    versions: dict[str, str]


class Store:
    """An append-only file of rows with one writer at a time.

    Use it as a context manager. A line that a crash left incomplete is removed when
    the store is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "Store":
        """Open and lock the file.

        Raises:
            SweepError: if it cannot be written, or another sweep is writing it.
        """
        try:
            # Unbuffered: what a full disk refuses must not be tried again on closing.
            self._file = open(self.path, "a+b", buffering=0)
        except OSError as error:
            raise SweepError(f"cannot write {self.path}: {error.strerror}") from None
        try:
            _lock(self._file)
        except OSError:
            self._file.close()
            raise SweepError(
                f"another sweep is writing {self.path}: wait for it, "
                "or name another file with --out"
            ) from None
        self._file.truncate(_complete_bytes(self._file))
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def rows(self) -> dict[str, Row]:
        """Return the rows by key; of two with the same key, the later one.

        Raises:
            SweepError: if a line is not a row.
        """
        self._file.seek(0)
        found = {}
        for number, line in enumerate(self._file.read().splitlines(), 1):
            try:
                row = Row(**json.loads(line))
            except (ValueError, TypeError):
                raise SweepError(
                    f"line {number} of {self.path} is not a row of a sweep: "
                    "remove the file to run all again"
                ) from None
            found[row.key] = row
        return found

    def append(self, row: Row) -> None:
        """Write a row and wait until it is on the disk.

        Raises:
            SweepError: if the disk takes no more; earlier rows stay as they are.
        """
        line = json.dumps(asdict(row), ensure_ascii=False).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            raise SweepError(
                f"cannot write {self.path}: {error.strerror}. The rows so far are "
                "kept; make room and start the same sweep again"
            ) from None


def _complete_bytes(file: IO[bytes]) -> int:
    """Return the size of the file up to the end of its last complete line."""
    file.seek(0)
    content = file.read()
    return content.rfind(b"\n") + 1


def _lock(file: IO[bytes]) -> None:
    """Lock a file for this process, or raise OSError at once."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --------------------------------------------------------------------------------------
# The published table
# --------------------------------------------------------------------------------------


def table_frame(axes: Sequence[str], rows: Iterable[Row]) -> pd.DataFrame:
    """Return rows as a table: the axes, every recorded value, status and error."""
    return _frame_of(table_text(axes, rows))


def table_text(axes: Sequence[str], rows: Iterable[Row]) -> str:
    """Return rows as CSV: the axes, every recorded value, status and error.

    Parameters are written in full; recorded floats with `SIGNIFICANT_DIGITS`.
    """
    rows = list(rows)
    recorded = list(dict.fromkeys(name for row in rows for name in row.recorded))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*axes, *recorded, "status", "error"])
    for row in rows:
        measured = [_cell(row.recorded.get(name, "")) for name in recorded]
        given = [row.parameters[name] for name in axes]
        writer.writerow([*given, *measured, row.status, row.error])
    return text.getvalue()


def _cell(value: Value) -> str:
    if isinstance(value, float):
        return repr(float(f"{value:.{SIGNIFICANT_DIGITS}g}"))
    return str(value)


def write_whole(path: Path, text: str) -> None:
    """Replace a file's content at once: a reader sees the old or the new, never half.

    Raises:
        SweepError: if it cannot be written.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        with open(beside, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise SweepError(f"cannot write {path}: {error.strerror}") from None


def read_rows(table: str | Path) -> pd.DataFrame:
    """Return a table of rows, in the order of its grid.

    A column holds whole numbers, floats, booleans or strings, whichever fits all its
    cells first in this order. Where a run recorded nothing the cell is NaN, or ``""``
    among strings.

    Args:
        table: a chapter's slug, or the path of a CSV file.

    Raises:
        FileNotFoundError: if there is none; the message says how to make it.
    """
    path = table if isinstance(table, Path) else SWEEPS / f"{table}.csv"
    if not path.is_file():
        known = [other.stem for other in path.parent.glob("*.csv")]
        raise FileNotFoundError(
            f"there are no rows {path.name}{nearest_name(path.stem, known)}; "
            f"`python -m shared.sweep {path.stem}` makes them"
        )
    return _frame_of(path.read_text(encoding="utf-8"))


def _frame_of(text: str) -> pd.DataFrame:
    names, *lines = csv.reader(io.StringIO(text, newline=""))
    columns = zip(*lines, strict=True) if lines else ((),) * len(names)
    return pd.DataFrame(
        {name: _typed(cells) for name, cells in zip(names, columns, strict=True)}
    )


def _typed(cells: Sequence[str]) -> list[Any]:
    booleans: Mapping[str, bool] = {"True": True, "False": False}
    if all(cells):
        for read in (int, float, booleans.__getitem__):
            try:
                return [read(cell) for cell in cells]
            except (ValueError, KeyError):
                continue
    elif any(cells):
        try:
            return [float(cell or "nan") for cell in cells]
        except ValueError:
            pass
    return list(cells)
