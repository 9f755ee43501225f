"""Say in one line what a machine lacks to set this book up; silent when nothing.

Runs before anything is installed, and on old Pythons too, so that they get the line
and not a syntax error: standard library only, no annotations, no f-strings.
"""

import importlib.util
import shutil
import sys

OLDEST_PYTHON = (3, 11)
DISK_NEEDED = 3 * 10**9  # bytes; the environment takes 1.9e9 with the CPU build


def missing(version, modules, free_bytes):
    """Return what is missing, one line each, most basic first.

    ``version`` is (major, minor); ``modules`` the importable ones of venv and
    ensurepip; ``free_bytes`` the free disk space here.
    """
    lines = []
    if version < OLDEST_PYTHON:
        lines.append(
            "Python %d.%d is too old: Python %d.%d or newer is needed. Name one: "
            "make PYTHON=/path/to/python3" % (version + OLDEST_PYTHON)
        )
    absent = [name for name in ("venv", "ensurepip") if name not in modules]
    if absent:
        lines.append(
            "This Python has no %s module: install it (on Debian and Ubuntu: "
            "apt-get install python3-venv)." % " and no ".join(absent)
        )
    if free_bytes < DISK_NEEDED:
        lines.append(
            "Only %.1f GB of disk are free here: %.1f GB are needed."
            % (free_bytes / 1e9, DISK_NEEDED / 1e9)
        )
    return lines


if __name__ == "__main__":
    present = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name)]
    found = missing(tuple(sys.version_info[:2]), present, shutil.disk_usage(".").free)
    for line in found:
        sys.stderr.write(line + "\n")
    sys.exit(1 if found else 0)
