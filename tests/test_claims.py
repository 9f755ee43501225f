"""The claims page says what the chapters recorded, all of it, and nothing twice."""

from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from shared.claims import (
    ARTICLES,
    UNTESTED,
    ClaimsError,
    claims_markdown,
    counts,
    judged_claims,
)
from shared.notebooks import chapter_paths
from shared.record import CLAIM_KEY, VERDICTS, claims


def chapter(folder: Path, slug: str, *verdicts: tuple[str, str, str]) -> Path:
    """Write a notebook that recorded these claims, verdicts and measurements."""
    outputs = [
        v4.new_output(
            "display_data",
            {"text/plain": ""},
            metadata={CLAIM_KEY: {"claim": claim, "verdict": says, "measured": number}},
        )
        for claim, says, number in verdicts
    ]
    path = folder / f"{slug}.ipynb"
    notebook = v4.new_notebook(cells=[v4.new_code_cell("", outputs=outputs)])
    nbformat.write(notebook, path)
    return path


def test_every_claim_has_a_row_and_only_the_recorded_ones_a_verdict(
    tmp_path: Path,
) -> None:
    first = chapter(tmp_path, "first", ("A28", "true", "x = 2"))
    second = chapter(tmp_path, "second", ("B5", "false", "a factor of 3"))
    judged = judged_claims([first, second])
    assert [one.claim for one in judged] == list(claims())
    found = {one.claim: one for one in judged if one.verdict != UNTESTED}
    assert set(found) == {"A28", "B5"}
    assert found["A28"].chapter == "first"
    assert found["B5"].measured == "a factor of 3"
    assert counts(judged) == {"true": 1, "false": 1, UNTESTED: len(claims()) - 2}


def test_a_claim_judged_twice_is_refused(tmp_path: Path) -> None:
    first = chapter(tmp_path, "first", ("A28", "true", "x = 2"))
    second = chapter(tmp_path, "second", ("A28", "false", "x = 3"))
    with pytest.raises(ClaimsError, match="claim A28 is judged by first and again by"):
        judged_claims([first, second])


def test_the_page_shows_each_claim_once_and_marks_up_nothing(tmp_path: Path) -> None:
    path = chapter(tmp_path, "first", ("A28", "misleading", "10*0.8^k in `x_0`"))
    page = claims_markdown(judged_claims([path]))
    for claim in claims():
        assert page.count(f"(claim-{claim.lower()})=") == 1
    assert r"**Misleading.** 10\*0.8\^k in \`x\_0\`" in page
    assert "{ref}`first`" in page
    for title in ARTICLES.values():
        assert title in page


def test_the_chapters_agree_on_who_judges_what() -> None:
    judged = judged_claims(chapter_paths())
    assert {one.verdict for one in judged} <= {*VERDICTS, UNTESTED}


def test_every_claim_of_both_articles_is_judged() -> None:
    judged = judged_claims(chapter_paths())
    assert [one.claim for one in judged if one.verdict == UNTESTED] == []
