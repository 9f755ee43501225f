"""A chapter's statements must hold for other parameters than those it is printed with.

Each grid file has a table ``[again]``: parameters, such as another seed, with which the
whole page is executed once more, assertions included.
"""

from pathlib import Path

import papermill
import pytest

from shared.kernels import warm_kernel
from shared.notebooks import CELL_SECONDS, CHAPTERS, chapter_paths
from shared.sweep.grid import one_run, read_tables
from shared.sweep.page import Parameter, load, parameters_of


def again(path: Path) -> tuple[dict[str, Parameter], dict[str, object]]:
    parameters = parameters_of(load(path), path.name)
    tables = read_tables(CHAPTERS / "sweeps" / f"{path.stem}.toml")
    return parameters, one_run(tables.get("again", {}), parameters, "again")


@pytest.mark.parametrize("path", chapter_paths(), ids=lambda path: path.stem)
def test_the_page_holds_for_other_parameters(path: Path, tmp_path: Path) -> None:
    parameters, others = again(path)
    moved = [name for name in others if others[name] != parameters[name].default]
    assert moved, f"{path.stem}: [again] must name a value that is not the default"
    papermill.execute_notebook(
        path,
        tmp_path / path.name,
        parameters=others,
        kernel_name=warm_kernel(),
        cwd=CHAPTERS,
        execution_timeout=CELL_SECONDS,
        progress_bar=False,
    )
