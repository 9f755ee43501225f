"""Run sweeps from the command line: ``python -m shared.sweep --help``."""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shared.sweep.drive import Settings, plan_from_file, sweep
from shared.sweep.page import SweepError
from shared.sweep.rows import SWEEPS


def grid_paths(names: Sequence[str]) -> list[Path]:
    """Return the grid files of these slugs or paths, or all when none is named."""
    if not names:
        return sorted(SWEEPS.glob("*.toml"))
    return [
        Path(name) if name.endswith(".toml") else SWEEPS / f"{name}.toml"
        for name in names
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweeps that the command line names; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shared.sweep")
    parser.add_argument("grids", nargs="*", help="slugs or TOML files; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    options = parser.parse_args(arguments)
    try:
        plans = [plan_from_file(path) for path in grid_paths(options.grids)]
        bad = 0
        with ThreadPoolExecutor(options.jobs) as executor:
            for plan in plans:
                rows = sweep(plan, executor, 2 * options.jobs, Settings())
                bad += sum(row.status != "ok" for row in rows)
    except SweepError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
