"""A machine that lacks something is told what, in one line each."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from shared.notebooks import ROOT

PATH = ROOT / ".ci" / "prerequisites.py"


@pytest.fixture
def prerequisites() -> ModuleType:
    """Return the script as a module."""
    spec = importlib.util.spec_from_file_location("prerequisites", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BOTH = ["venv", "ensurepip"]
PLENTY = 10**11


def test_a_good_machine_is_told_nothing(prerequisites: ModuleType) -> None:
    needed = prerequisites.DISK_NEEDED
    assert prerequisites.missing((3, 11), BOTH, needed) == []
    assert prerequisites.missing((3, 14), BOTH, PLENTY) == []
    assert prerequisites.missing((4, 0), BOTH, PLENTY) == []


@pytest.mark.parametrize("version", [(3, 10), (3, 6), (2, 7)])
def test_an_old_python(version: tuple[int, int], prerequisites: ModuleType) -> None:
    (line,) = prerequisites.missing(version, BOTH, PLENTY)
    assert "Python {}.{} is too old".format(*version) in line
    assert "3.11 or newer" in line
    assert "make PYTHON=" in line


@pytest.mark.parametrize(
    ("present", "said"),
    [
        (["venv"], "no ensurepip module"),
        (["ensurepip"], "no venv module"),
        ([], "no venv and no ensurepip module"),
    ],
)
def test_a_python_without_venv(
    present: list[str], said: str, prerequisites: ModuleType
) -> None:
    (line,) = prerequisites.missing((3, 11), present, PLENTY)
    assert said in line
    assert "python3-venv" in line


def test_a_full_disk(prerequisites: ModuleType) -> None:
    needed = prerequisites.DISK_NEEDED
    (line,) = prerequisites.missing((3, 11), BOTH, needed - 10**9)
    assert line.startswith("Only 2.0 GB of disk are free here")
    assert "3.0 GB are needed" in line


def test_everything_missing_is_said_the_most_basic_first(
    prerequisites: ModuleType,
) -> None:
    lines = prerequisites.missing((3, 8), [], 0)
    words = ["too old", "no venv", "disk"]
    assert len(lines) == 3
    assert all(word in line for word, line in zip(words, lines, strict=True))
    assert all("\n" not in line for line in lines)


def run(prefix: str) -> subprocess.CompletedProcess[str]:
    """Run the script as make does, after some lines that spoil the machine."""
    source = f"{prefix}\nexec(compile(open({str(PATH)!r}).read(), 'x', 'exec'))"
    return subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=False
    )


def test_the_script_is_silent_or_ends_with_1() -> None:
    # Whatever the disk of this machine has free.
    roomy = "import shutil; shutil.disk_usage = lambda p: __import__('types')"
    roomy += ".SimpleNamespace(free=10**12)"
    good = run(roomy)
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")
    bad = run(f"{roomy}\nimport sys; sys.version_info = (3, 9, 1)")
    assert bad.returncode == 1
    assert bad.stderr.count("\n") == 1
    assert "Python 3.9 is too old" in bad.stderr


def test_an_environment_behind_a_link_is_left_alone(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.txt", "pyproject.toml", ".ci"):
        (tmp_path / name).symlink_to(ROOT / name)
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").touch()
    (tmp_path / ".venv").symlink_to(other)
    done = subprocess.run(
        ["make", f"PYTHON={sys.executable}", "set-up"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert ".venv is a link" in done.stderr
    assert [path.name for path in other.iterdir()] == ["kept"]


def test_old_pythons_can_read_the_script() -> None:
    # What Python 3.6 has no syntax for would hide the line behind an error.
    source = PATH.read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 6))
    assert not any(isinstance(node, ast.JoinedStr) for node in ast.walk(tree))
    assert not any(
        isinstance(node, ast.FunctionDef)
        and (node.returns or node.args.args[0].annotation)
        for node in ast.walk(tree)
    )
