"""What a diagnosis found, for a terminal, a notebook and a program."""

import dataclasses
import html
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from shared.diagnose.causes import Cause

WIDTH = 80
"""Characters of a line: what a page of the book shows without scrolling."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One named measurement, beside what a working step would give."""

    name: str
    measured: float | str
    expected: str

    def __str__(self) -> str:
        return f"{self.name}: {shown(self.measured)} (expected: {self.expected})"


@dataclasses.dataclass(frozen=True)
class Proof:
    """The same few steps without and with the repair."""

    repair: str
    without: tuple[float, ...]
    with_repair: tuple[float, ...]

    @property
    def holds(self) -> bool:
        """Whether the repair ends at a lower loss, or at one where there was none."""
        end, end_without = self.with_repair[-1], self.without[-1]
        return end < end_without or math.isfinite(end) > math.isfinite(end_without)

    @property
    def title(self) -> str:
        """What the two runs show."""
        return "Proof" if self.holds else "Tried, and no better"

    def __str__(self) -> str:
        return (
            f"{self.repair}, {len(self.with_repair)} steps: loss "
            f"{self.without[0]:.3g} -> {self.without[-1]:.3g} without, "
            f"{self.with_repair[0]:.3g} -> {self.with_repair[-1]:.3g} with"
        )


@dataclasses.dataclass(frozen=True)
class Finding:
    """An alarm: a cause, what was measured, and what to write instead.

    Attributes:
        cause: one of the closed list.
        confidence: from 0 to 1; 1 where it follows without any threshold.
        evidence: the measurements, best first.
        variables: names of the variables concerned.
        explanation: what happens, in a sentence or two.
        repair: code to write.
        proof: losses with and without the repair, where it could be tried.
    """

    cause: Cause
    confidence: float
    evidence: tuple[Evidence, ...]
    variables: tuple[str, ...]
    explanation: str
    repair: str
    proof: Proof | None = None

    @property
    def chapter(self) -> str | None:
        """Slug of the chapter that explains the cause."""
        return self.cause.chapter

    def __str__(self) -> str:
        lines = [f"{self.cause} (confidence {self.confidence:.2f})"]
        lines += textwrap.wrap(self.explanation, WIDTH - 2)
        for item in self.evidence:
            lines += _hanging(f"- {item}", WIDTH - 2)
        if self.variables:
            lines += _hanging(f"Variables: {_listed(self.variables)}", WIDTH - 2)
        lines.append("Repair:")
        lines += ["    " + line for line in _narrow(self.repair, WIDTH - 6)]
        if self.proof is not None:
            lines += _hanging(f"{self.proof.title}: {self.proof}", WIDTH - 2)
        if self.chapter:
            lines.append(f"Chapter: {self.chapter}")
        return "\n  ".join(lines)


@dataclasses.dataclass(frozen=True)
class Note:
    """An information that is no alarm."""

    text: str
    cause: Cause | None = None

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome of a diagnosis.

    Attributes:
        findings: alarms, the best first.
        notes: what is worth knowing and is no alarm.
        losses: the losses of the observed steps, as the reader's step returned them.
        steps_run: how often the step was run in all.
        skipped: measurements that were left out, each with its reason.
    """

    findings: tuple[Finding, ...]
    notes: tuple[Note, ...]
    losses: tuple[float, ...]
    steps_run: int
    skipped: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether there is no alarm."""
        return not self.findings

    @property
    def cause(self) -> Cause | None:
        """The first finding's cause, None without findings."""
        return self.findings[0].cause if self.findings else None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain strings, numbers, lists and dicts."""
        found = dataclasses.asdict(self)
        for plain, finding in zip(found["findings"], self.findings, strict=True):
            plain["chapter"] = finding.chapter
        plain = _plain(found)
        plain["healthy"] = self.healthy
        plain["cause"] = None if self.cause is None else str(self.cause)
        return plain

    def __str__(self) -> str:
        lines = [part for x in self._headline() for part in _hanging(x, WIDTH)]
        for number, finding in enumerate(self.findings, 1):
            lines += ["", f"{number}. {finding}"]
        if self.notes:
            lines += ["", "Notes:"]
            for note in self.notes:
                lines += _hanging(f"- {note}", WIDTH)
        if self.skipped:
            lines += ["", *_hanging("Left out: " + "; ".join(self.skipped), WIDTH)]
        return "\n".join(lines)

    __repr__ = __str__

    def _headline(self) -> list[str]:
        ran = f"{self.steps_run} steps run, everything put back."
        if self.healthy:
            return [f"No alarm. {ran}"]
        return [f"{self.cause}: {self.cause.meaning}", ran]

    def _repr_html_(self) -> str:
        """Show the report as a table in a notebook."""
        headline = html.escape(" ".join(self._headline()))
        parts = [f"<p><strong>{headline}</strong></p>"]
        parts += [_html_finding(n, f) for n, f in enumerate(self.findings, 1)]
        if self.notes:
            items = "".join(f"<li>{html.escape(str(n))}</li>" for n in self.notes)
            parts.append(f"<p>Notes</p><ul>{items}</ul>")
        if self.skipped:
            parts.append(f"<p>Left out: {html.escape('; '.join(self.skipped))}</p>")
        return "\n".join(parts)


def _html_finding(number: int, finding: Finding) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(e.name)}</td><td>{html.escape(shown(e.measured))}</td>"
        f"<td>{html.escape(e.expected)}</td></tr>"
        for e in finding.evidence
    )
    proof = ""
    if finding.proof:
        proof = f"<p>{finding.proof.title}: {html.escape(str(finding.proof))}</p>"
    named = (
        f"<p>Variables: {html.escape(_listed(finding.variables))}</p>"
        if finding.variables
        else ""
    )
    chapter = (
        f"<p>Chapter: <code>{finding.chapter}</code></p>" if finding.chapter else ""
    )
    repair = "\n".join(_narrow(finding.repair, WIDTH))
    return (
        f"<p><strong>{number}. <code>{finding.cause}</code></strong> (confidence "
        f"{finding.confidence:.2f})</p><p>{html.escape(finding.explanation)}</p><table><thead><tr><th>evidence</th><th>measured</th><th>expected</th></tr></thead><tbody>{rows}</tbody></table>{named}<p>Repair:</p><pre>{html.escape(repair)}</pre>{proof}{chapter}"
    )


def shown(value: float | str) -> str:
    """Return a number with two digits, which do not depend on the processor."""
    return value if isinstance(value, str) else f"{value:.2g}"


def _hanging(text: str, width: int) -> list[str]:
    """Return lines of a width; those after the first one are indented."""
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False)


def _narrow(code: str, width: int) -> Iterator[str]:
    """Give lines of code; comments for which there is no room go above their line."""
    for line in code.splitlines():
        statement, mark, comment = line.partition("  # ")
        if len(line) <= width or not mark:
            yield line
            continue
        indent = " " * (len(line) - len(line.lstrip()))
        yield from textwrap.wrap(
            comment,
            width,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
        )
        yield statement


def _listed(names: Sequence[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Cause) else value
