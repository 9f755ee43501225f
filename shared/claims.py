"""What became of each claim of the two articles: the data of the page ``claims``.

Each chapter judges the claims it tests with `shared.record.record_verdict`. The page is
made from what the executed notebooks hold, so that it cannot say anything else.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat

from shared.record import VERDICTS, claims, recorded_verdicts

ARTICLES = {
    "A": "Why is the gradient zero during input optimization?",
    "B": "Why is the optimizer failing to optimize any variables?",
}
"""Title by the letter with which a claim's id begins."""

UNTESTED = "not tested yet"
"""What the page says of a claim that no chapter has judged."""


class ClaimsError(ValueError):
    """The recorded verdicts contradict each other; the message says where."""


@dataclass(frozen=True)
class Judged:
    """One claim, and what its chapter says of it."""

    claim: str
    """The id, such as ``"A28"``."""
    says: str
    """What the article says, in our words."""
    verdict: str
    """One of `shared.record.VERDICTS`, or `UNTESTED`."""
    measured: str
    """The number that decides; empty if untested."""
    chapter: str
    """The slug of the chapter that judges it; empty if untested."""


def judged_claims(notebooks: Sequence[Path]) -> list[Judged]:
    """Return every claim, in the order of the articles, with its verdict.

    Args:
        notebooks: executed chapters.

    Raises:
        ClaimsError: if two chapters, or two cells, judge the same claim.
    """
    found: dict[str, Judged] = {}
    for path in notebooks:
        for kept in recorded_verdicts(nbformat.read(path, as_version=4)):
            claim = str(kept["claim"])
            if claim in found:
                raise ClaimsError(
                    f"claim {claim} is judged by {found[claim].chapter} and again by "
                    f"{path.stem}: one chapter judges a claim, others link to it"
                )
            found[claim] = Judged(
                claim,
                claims()[claim],
                str(kept["verdict"]),
                str(kept["measured"]),
                path.stem,
            )
    return [
        found.get(claim, Judged(claim, says, UNTESTED, "", ""))
        for claim, says in claims().items()
    ]


def counts(judged: Sequence[Judged]) -> Mapping[str, int]:
    """Return how many claims have each verdict, in the order of `VERDICTS`."""
    counted = Counter(one.verdict for one in judged)
    return {name: counted[name] for name in (*VERDICTS, UNTESTED) if counted[name]}


def claims_markdown(judged: Sequence[Judged]) -> str:
    """Return the tables of the page as MyST: a summary, then one table per article.

    Each claim can be linked to as ``claim-<id in lower case>``.
    """
    blocks = ["## How many of each", _summary(judged)]
    for letter, title in ARTICLES.items():
        blocks.append(f"## Article {letter}: {title}")
        blocks.append(_table(_of_article(letter, judged)))
    return "\n\n".join(blocks)


def _of_article(letter: str, judged: Sequence[Judged]) -> list[Judged]:
    return [one for one in judged if one.claim.startswith(letter)]


def _summary(judged: Sequence[Judged]) -> str:
    lines = [":::{list-table}", ":header-rows: 1", ""]
    lines += _row(["Verdict", *(f"Article {letter}" for letter in ARTICLES), "Both"])
    each = [counts(_of_article(letter, judged)) for letter in ARTICLES]
    for name, both in counts(judged).items():
        lines += _row([name.capitalize(), *(of.get(name, 0) for of in each), both])
    lines += _row(["All", *(sum(of.values()) for of in each), len(judged)])
    return "\n".join([*lines, ":::"])


def _table(judged: Sequence[Judged]) -> str:
    lines = [
        "::::{list-table}",
        ":header-rows: 1",
        ":widths: 8 42 50",
        "",
    ]
    lines += _row(["Claim", "The article says", "What was measured"])
    for one in judged:
        verdict = f"**{one.verdict.capitalize()}.** {_literally(one.measured)}"
        chapter = f"\n\n    {{ref}}`{one.chapter}`" if one.chapter else ""
        address = f"(claim-{one.claim.lower()})=\n    {one.claim}"
        lines += _row([address, _literally(one.says), verdict.strip() + chapter])
    return "\n".join([*lines, "::::"])


def _literally(text: str) -> str:
    """Return text in which no character means markup."""
    return re.sub(r"([\\`*_$\[\]<>{}|~^])", r"\\\1", text)


def _row(cells: Sequence[object]) -> list[str]:
    first, *others = cells
    return [f"* - {first}", *(f"  - {cell}" for cell in others)]
