"""Pin in requirements.txt what is installed, or the newest releases.

    python .ci/pins.py update [PIP OPTION ...]   install the newest, then pin them
    .venv/bin/python .ci/pins.py freeze          pin what this environment has

``update`` installs into an environment of its own, so that a failed attempt changes
nothing. The lines of the direct dependencies keep their comments; below them stands
everything that they need in turn.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CLOSURE_HEADING = (
    "# Everything the above need, at the versions that were installed and run.\n"
)

HELD = {"jupyter-book": "<2"}
"""Jupyter Book 2 is another program: it knows no Sphinx extensions."""

CUDA = re.compile(r"(nvidia|cuda|triton)\b.*")
"""What the default build of PyTorch brings on Linux, and the book never uses."""

DIRECT = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[^\s#]+) *(?P<comment>#.*)?")


def canonical(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def direct_names(text: str) -> list[str]:
    """Return the direct dependencies of a requirements file, in order."""
    lines = text.split(CLOSURE_HEADING)[0].splitlines()
    return [found["name"] for line in lines if (found := DIRECT.fullmatch(line))]


def closure(names: Iterable[str]) -> dict[str, str]:
    """Return everything installed that these packages need, with its version.

    Raises:
        importlib.metadata.PackageNotFoundError: if one is not installed.
    """
    # In every environment that has the book's packages, and only needed there.
    from packaging.requirements import Requirement

    to_visit = [(canonical(name), "") for name in names]
    visited = set()
    found = {}
    while to_visit:
        name, extra = to_visit.pop()
        if (name, extra) in visited or CUDA.fullmatch(name):
            continue
        visited.add((name, extra))
        package = metadata.distribution(name)
        # The CPU build of PyTorch calls itself "2.13.0+cpu", and is the same release.
        found[name] = package.version.split("+")[0]
        for line in package.requires or ():
            needed = Requirement(line)
            if not needed.marker or needed.marker.evaluate({"extra": extra}):
                for wanted in ("", *needed.extras):
                    to_visit.append((canonical(needed.name), wanted))
    return dict(sorted(found.items()))


def pinned(text: str, versions: Mapping[str, str]) -> str:
    """Return a requirements file with these versions instead of its own.

    Args:
        text: the file; its direct dependencies, comments and order are kept.
        versions: of the direct dependencies and of everything they need, by
            canonical name.
    """
    lines = []
    direct = set()
    for line in text.split(CLOSURE_HEADING)[0].splitlines():
        if found := DIRECT.fullmatch(line):
            name = canonical(found["name"])
            direct.add(name)
            pin = f"{found['name']}=={versions[name]}"
            line = f"{pin:<30} {found['comment'] or ''}".rstrip()
        lines.append(line)
    below = [f"{name}=={versions[name]}" for name in versions if name not in direct]
    return (
        "\n".join(lines).rstrip() + f"\n\n{CLOSURE_HEADING}" + "\n".join(below) + "\n"
    )


def with_setuptools(text: str, version: str) -> str:
    """Return pyproject.toml with the build pinned to this version of setuptools."""
    return re.sub(r'"setuptools==[^"]*"', f'"setuptools=={version}"', text)


def freeze() -> None:
    """Pin what the running environment has."""
    requirements, project = ROOT / "requirements.txt", ROOT / "pyproject.toml"
    text = requirements.read_text(encoding="utf-8")
    versions = closure(direct_names(text))
    requirements.write_text(pinned(text, versions), encoding="utf-8")
    text = project.read_text(encoding="utf-8")
    project.write_text(with_setuptools(text, versions["setuptools"]), encoding="utf-8")


def update(pip_options: Iterable[str]) -> None:
    """Install the newest releases in a fresh environment, and pin them.

    Raises:
        subprocess.CalledProcessError: if they cannot be installed together.
    """
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    wanted = [name + HELD.get(name, "") for name in direct_names(text)]
    place = ROOT / "_build"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="newest-", dir=place) as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder) / "bin" / "python"
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        # Eager, because a fresh environment comes with a setuptools of its own.
        newest = ["install", "-q", "--upgrade", "--upgrade-strategy", "eager"]
        subprocess.run([*pip, *newest, *pip_options, *wanted], check=True)
        subprocess.run([str(python), __file__, "freeze"], check=True)


def main(words: list[str]) -> int:
    """Run the named command and return the exit code."""
    if words == ["freeze"]:
        freeze()
    elif words[:1] == ["update"]:
        try:
            update(words[1:])
        except subprocess.CalledProcessError as error:
            sys.stderr.write(f"Nothing was changed: {error}\n")
            return 1
    else:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
