"""The project's own files agree with each other and with what is installed."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from check_jsonschema.cli import main as check
from click.testing import CliRunner, Result
from pybtex.database import parse_file

from shared.notebooks import ROOT
from tests import hygiene


def load(path: Path) -> ModuleType:
    """Return a module that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(name: str) -> str:
    """Return a file of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


pins = load(ROOT / ".ci" / "pins.py")
PROJECT = tomllib.loads(text("pyproject.toml"))
REQUIREMENTS = text("requirements.txt")
DIRECT_PART, _, CLOSURE_PART = REQUIREMENTS.partition(pins.CLOSURE_HEADING)

# --------------------------------------------------------------------------------------
# Pins
# --------------------------------------------------------------------------------------


def pinned_versions() -> dict[str, str]:
    """Return every pin of requirements.txt by the package's canonical name."""
    lines = map(pins.DIRECT.fullmatch, REQUIREMENTS.splitlines())
    return {pins.canonical(m["name"]): m["version"] for m in lines if m}


@pytest.mark.parametrize("line", [x for x in REQUIREMENTS.splitlines() if x])
def test_every_requirement_is_pinned(line: str) -> None:
    assert re.fullmatch(r"#.*|-e \. +#.*|[\w.-]+==[\w.]+( +#.*)?", line)


def test_every_direct_requirement_says_what_it_is_for() -> None:
    for line in DIRECT_PART.splitlines()[1:]:
        assert not line or re.search(r"# \S.{10,}", line), line


def test_nothing_is_pinned_twice() -> None:
    lines = [line for line in REQUIREMENTS.splitlines() if "==" in line]
    assert len(pinned_versions()) == len(lines)


def test_what_is_pinned_is_installed() -> None:
    for name, version in pinned_versions().items():
        assert metadata.version(name).split("+")[0] == version, name


def test_what_is_needed_is_pinned() -> None:
    needed = pins.closure(pins.direct_names(REQUIREMENTS))
    assert needed.items() <= pinned_versions().items(), "python .ci/pins.py freeze"


@pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info[:2] != (3, 11),
    reason="the pins are made on Linux with Python 3.11",
)
def test_what_is_pinned_is_needed() -> None:
    needed = pins.closure(pins.direct_names(REQUIREMENTS))
    assert pins.pinned(REQUIREMENTS, needed) == REQUIREMENTS, "run .ci/pins.py freeze"


def test_the_package_asks_for_nothing_that_is_not_a_direct_requirement() -> None:
    asked = set(map(pins.canonical, PROJECT["project"]["dependencies"]))
    assert asked <= set(map(pins.canonical, pins.direct_names(REQUIREMENTS)))


def test_the_build_is_pinned_too() -> None:
    pin = f"setuptools=={pinned_versions()['setuptools']}"
    assert PROJECT["build-system"]["requires"] == [pin]


OLD = (
    "# Direct.\n"
    "Some_Package==1.0             # what for\n"
    "-e .                           # ourselves\n\n"
    f"{pins.CLOSURE_HEADING}gone==3.0\nneeded==1.0\n"
)


def test_new_pins_keep_the_comments() -> None:
    versions = {"needed": "2.0", "some-package": "1.1.1", "zlib-ng": "0.5"}
    assert pins.pinned(OLD, versions) == (
        "# Direct.\n"
        "Some_Package==1.1.1            # what for\n"
        "-e .                           # ourselves\n\n"
        f"{pins.CLOSURE_HEADING}needed==2.0\nzlib-ng==0.5\n"
    )


def test_direct_names_leave_out_the_closure() -> None:
    assert pins.direct_names(OLD) == ["Some_Package"]


def test_the_closure_follows_needs_extras_and_markers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needs = {
        "a": ["B_b[fast]>=1", "never; python_version < '3'", "nvidia-cublas"],
        "b-b": ["c", "d; extra == 'fast'", "e; extra == 'slow'"],
        "c": ["a"],
        "d": None,
    }

    class Package:
        def __init__(self, name: str) -> None:
            self.requires = needs[name]
            self.version = "2.13.0+cpu"

    monkeypatch.setattr(pins.metadata, "distribution", Package)
    assert list(pins.closure(["A"])) == ["a", "b-b", "c", "d"]
    assert pins.closure(["d"]) == {"d": "2.13.0"}


def test_setuptools_in_pyproject() -> None:
    old = 'requires = ["setuptools==1.0"]\nother = "setuptools-scm==1"\n'
    assert pins.with_setuptools(old, "2.0") == old.replace(
        "setuptools==1.0", "setuptools==2.0"
    )


@pytest.mark.parametrize("words", [[], ["thaw"], ["freeze", "extra"]])
def test_pins_explains_itself(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pins.main(words) == 2
    assert "pins.py update" in capsys.readouterr().err


def test_a_failed_update_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(command: list[str], check: bool) -> None:
        raise subprocess.CalledProcessError(1, command)

    (tmp_path / "requirements.txt").write_text(OLD)
    monkeypatch.setattr(pins, "ROOT", tmp_path)
    monkeypatch.setattr(pins.subprocess, "run", fail)
    assert pins.main(["update"]) == 1
    assert "Nothing was changed" in capsys.readouterr().err
    assert (tmp_path / "requirements.txt").read_text() == OLD


def test_update_installs_the_newest_but_for_what_is_held(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []
    requirements = "jupyter-book==1.0\nnumpy==2.0\n"
    (tmp_path / "requirements.txt").write_text(requirements)
    monkeypatch.setattr(pins, "ROOT", tmp_path)
    monkeypatch.setattr(pins.subprocess, "run", lambda c, check: commands.append(c))
    assert pins.main(["update", "--pre"]) == 0
    _, install, freeze = commands
    assert "eager" in install
    assert install[-3:] == ["--pre", "jupyter-book<2", "numpy"]
    assert freeze[0] == install[0]
    assert freeze[-1] == "freeze"
    assert not list((tmp_path / "_build").iterdir())


# --------------------------------------------------------------------------------------
# Versions, citation, licenses
# --------------------------------------------------------------------------------------

VERSION = PROJECT["project"]["version"]


def validate(schema: str, *paths: Path) -> Result:
    """Run the validator with one of the schemas that it carries."""
    return CliRunner().invoke(check, ["--builtin-schema", schema, *map(str, paths)])


def test_citation_is_valid_and_can_fail(tmp_path: Path) -> None:
    schema = "vendor.citation-file-format"
    checked = validate(schema, ROOT / "CITATION.cff")
    assert checked.exit_code == 0, checked.output
    wrong = tmp_path / "CITATION.cff"
    wrong.write_text(text("CITATION.cff").replace("authors:", "writers:"))
    assert validate(schema, wrong).exit_code == 1


def test_citation_agrees_with_the_project() -> None:
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["title"] == PROJECT["project"]["description"]
    assert citation["title"].startswith(yaml.safe_load(text("_config.yml"))["title"])
    for entry in (citation, citation["preferred-citation"]):
        assert entry["version"] == VERSION
        assert entry["title"] == citation["title"]
        assert entry["authors"] == [{"name": PROJECT["project"]["authors"][0]["name"]}]
    assert PROJECT["project"]["license"] in citation["license"]


def test_changelog_has_the_version_and_the_date() -> None:
    headings = re.findall(r"^## \[(.+?)\] - (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    version, date = headings[0]
    assert version == VERSION
    # A version without a date is not released, and cannot be cited by one.
    released = yaml.safe_load(text("CITATION.cff")).get("date-released")
    assert date == ("Unreleased" if released is None else str(released))


def test_licenses() -> None:
    assert text("LICENSE").startswith("MIT License")
    assert PROJECT["project"]["authors"][0]["name"] in text("LICENSE")
    legal = text("LICENSE-TEXT")
    assert "Creative Commons Attribution 4.0 International" in legal
    for section in range(1, 9):
        assert re.search(rf"^Section {section} ", legal, re.MULTILINE), section


def test_one_oldest_python() -> None:
    oldest = load(ROOT / ".ci" / "prerequisites.py").OLDEST_PYTHON
    assert PROJECT["project"]["requires-python"] == ">={}.{}".format(*oldest)
    assert PROJECT["tool"]["ruff"]["target-version"] == "py{}{}".format(*oldest)


# --------------------------------------------------------------------------------------
# Workflows and hooks
# --------------------------------------------------------------------------------------

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def actions() -> Iterator[tuple[Path, str]]:
    """Yield every line of a workflow that uses something."""
    for path in WORKFLOWS:
        for line in path.read_text(encoding="utf-8").splitlines():
            if found := re.match(r"\s*(?:- )?uses: (.+)", line):
                yield path, found[1]


def test_workflows_are_valid_and_can_fail(tmp_path: Path) -> None:
    assert [path.stem for path in WORKFLOWS] == ["newest", "publish", "test"]
    checked = validate("vendor.github-workflows", *WORKFLOWS)
    assert checked.exit_code == 0, checked.output
    wrong = tmp_path / "test.yml"
    wrong.write_text(WORKFLOWS[-1].read_text().replace("runs-on:", "runs-in:"))
    assert validate("vendor.github-workflows", wrong).exit_code == 1


def test_every_action_is_pinned_by_its_commit() -> None:
    lines = [line for _, line in actions() if not line.startswith("./")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    # One version of each.
    assert len(set(lines)) == len({line.split("@")[0] for line in lines})


def test_local_actions_exist() -> None:
    for _, line in actions():
        assert not line.startswith("./") or (ROOT / line).is_file(), line


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_have_few_rights_and_an_end(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        if "uses" in job:
            continue
        assert job["timeout-minutes"] <= 90, name
        rights = job.get("permissions", {})
        assert name == "deploy" or not rights
        assert set(rights) <= {"pages", "id-token"}
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_hooks_run_what_the_tests_run() -> None:
    (local,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    assert local["repo"] == "local"
    entries = {hook["id"]: hook["entry"] for hook in local["hooks"]}
    assert all(hook["language"] == "system" for hook in local["hooks"])
    for words in ("-m ruff check", "-m ruff format --check"):
        assert any(words in entry for entry in entries.values())
        assert words in text("Makefile")
    assert entries["hygiene"].endswith("-m tests.hygiene")
    hygiene_hook = local["hooks"][-1]
    assert re.search(hygiene_hook["files"], "chapters/local_minimum.ipynb")


def test_the_script_of_ci_is_a_script() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert "make test" in script.read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------
# What the files say
# --------------------------------------------------------------------------------------


def made_targets() -> set[str]:
    """Return the targets that `make help` lists."""
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return set(re.findall(r"^  make (\S+)", shown, re.MULTILINE))


def test_help_lists_every_target_that_the_texts_name() -> None:
    listed = made_targets()
    assert {"book", "test", "execute", "sweep", "chapter", "lab", "help"} <= listed
    for name in ("README.md", "CONTRIBUTING.md", "intro.md"):
        named = set(
            re.findall(r"(?:`|^    |^\$ |^)make ([a-z-]+)", text(name), re.MULTILINE)
        )
        assert named <= listed, name


def test_every_phony_target_exists() -> None:
    makefile = text("Makefile").replace("\\\n", " ")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony
    defined = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert set(phony[1].split()) == defined


def tracked_files() -> list[Path]:
    """Return the text files under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    binary = {".woff", ".png", ".ico", ".npz"}
    return [path for path in paths if path.suffix not in binary and path.is_file()]


REGISTRIES = re.compile(
    r"\bpypi\.org|\bpythonhosted\.org|\bpytorch\.org/whl|\bnpmjs\.(?:org|com)"
    r"|\bdeb\.debian\.org|\banaconda\.org"
)
MACHINES = re.compile(r"(?<![\w.~/-])/(?:home|Users|root|tmp|work|opt)/\w")


def test_no_file_names_a_registry_or_a_machine() -> None:
    problems = []
    for path in tracked_files():
        if "mathjax" in path.parts:
            continue
        content = path.read_text(encoding="utf-8")
        # Pixels written as letters contain anything, by chance.
        content = re.sub(r'"image/png": "[^"]*"', "", content)
        patterns = [REGISTRIES]
        # The tests of the tests name machines, to see them found.
        if "tests" not in path.relative_to(ROOT).parts:
            patterns.append(MACHINES)
        for pattern in patterns:
            if found := pattern.search(content):
                problems.append(f"{path.relative_to(ROOT)}: {found[0]}")
    assert not problems, "\n".join(problems)


def test_what_a_registry_or_a_machine_looks_like() -> None:
    assert REGISTRIES.search("--index-url https://download.pytorch" + ".org/whl/cpu")
    assert MACHINES.search("open('/home" + "/me/x')")
    assert not MACHINES.search("make PYTHON=/path/to/python3, #!/usr/bin/env bash")


# --------------------------------------------------------------------------------------
# References
# --------------------------------------------------------------------------------------

VENUES = {"journal", "booktitle", "publisher", "school", "howpublished", "institution"}


def bibliography() -> dict[str, Any]:
    """Return the entries of references.bib by their keys; a repeated key raises."""
    return dict(parse_file(ROOT / "references.bib", bib_format="bibtex").entries)


@pytest.mark.parametrize("key", hygiene.citation_keys(ROOT))
def test_a_reference_is_complete(key: str) -> None:
    entry = bibliography()[key]
    fields = {name.lower() for name in entry.fields}
    assert entry.persons.get("author") or entry.persons.get("editor")
    assert {"title", "year"} <= fields
    assert fields & VENUES, f"{key} has none of {', '.join(sorted(VENUES))}"
    assert fields & {"doi", "url", "isbn"}, f"{key} has no DOI, URL or ISBN"
    if "doi" in fields:
        assert re.fullmatch(r"10\.\d{4,}/\S+", entry.fields["doi"])
    assert re.fullmatch(r"(19|20)\d\d", entry.fields["year"])


def test_every_reference_is_cited() -> None:
    assert set(bibliography()) == set(hygiene.citation_keys(ROOT))
    cited = {
        key.strip()
        for page in hygiene.read_pages(ROOT).values()
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.text)
        for key in keys.split(",")
    }
    assert set(hygiene.citation_keys(ROOT)) <= cited
