"""Lines, ratios and the result file."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench.cases import Case
from tests.bench.run import Figures

COLUMNS = {
    "accept": "accept {:6.0f}/s",
    "end_to_end": "end to end {:6.0f}/s",
    "median_ms": "median {:6.2f} ms",
    "cpu": "cpu {:7.3f} ms",
    "fsyncs": "fsyncs {:5.2f}",
    "flushes": "flushes {:5.2f}",
    "commits": "commits {:5.2f}",
    "peak": "peak {:6.1f} MB",
    "idle_mb": "idle {:6.1f} MB",
    "memory_mb": "with all connections {:7.1f} MB",
    "connection_kib": "{:6.2f} KiB per connection",
    "processes": "{:.0f} processes",
    "passing_few": "passing beside 1,000 {:.3f} ms",
    "passing_many": "beside 100,000 {:.3f} ms",
    "passing_growth": "growth {:.2f}",
    "flushed_few": "flushed {:.3f} ms",
    "flushed_many": "of 100,000 {:.3f} ms",
    "flushed_growth": "growth {:.2f}",
    "waiting_kib": "{:.2f} KiB per waiting message",
    "generator": "load {:3.0%}",
    "sink": "sink {:3.0%}",
    "other": "others {:3.0%}",
}
Results = dict[str, dict[str, list[Figures]]]
"""By case, then by mail system, one entry per round."""


def line(figures: Mapping[str, float]) -> str:
    """All figures of one run."""
    return "  ".join(text.format(figures[name]) for name, text in COLUMNS.items() if name in figures)


def ratios(samples: Mapping[str, Sequence[Figures]], first: str, other: str, figure: str) -> list[float]:
    """first / other, round by round."""
    pairs = zip(samples[first], samples[other], strict=False)  # some run in the first round only
    return [mine[figure] / theirs[figure] for mine, theirs in pairs if figure in mine and theirs.get(figure)]


def spread(values: Sequence[float]) -> str:
    """Median [least-most]."""
    return f"{statistics.median(values):5.2f} [{min(values):.2f}-{max(values):.2f}]"


def verdict(case: Case, ratio: float) -> str:
    """What the case asks for, and whether it was reached."""
    if case.target is None:
        return ""
    reached = ratio >= case.target if case.more_is_better else ratio <= case.target
    sign = ">=" if case.more_is_better else "<="
    return f"(goal {sign} {case.target:.1f}: {'reached' if reached else 'MISSED'})"


def compared(case: Case, samples: Mapping[str, Sequence[Figures]]) -> list[str]:
    """Ratios of the first mail system to each of the others."""
    first, *others = samples
    lines = []
    for other in others:
        for figure in dict.fromkeys((case.figure, "end_to_end", "accept", "cpu")):
            if values := ratios(samples, first, other, figure):
                goal = verdict(case, statistics.median(values)) if figure == case.figure and other == "postfix" else ""
                lines.append(f"  {first} / {other}, {figure.replace('_', ' '):10s} {spread(values)} {goal}".rstrip())
    for figure, limit in case.limits.items():
        values = [f[figure] for f in samples[first]]
        reached = "reached" if statistics.median(values) <= limit else "MISSED"
        lines.append(f"  {first}: {figure} {spread(values).strip()} (at most {limit:g}: {reached})")
    return lines


def summary(cases: Sequence[Case], results: Results) -> str:
    """The table that is quoted: one line per case, ours beside Postfix."""
    lines = [f"{'case':54s} {'ours':>9s} {'postfix':>9s}  ratio [least-most]"]
    for case in cases:
        samples = results.get(case.name, {})
        if "postfix" not in samples or len(samples) < 2:
            continue
        first = next(iter(samples))
        values = ratios(samples, first, "postfix", case.figure)
        mine, theirs = (statistics.median(f[case.figure] for f in samples[name]) for name in (first, "postfix"))
        end = verdict(case, statistics.median(values))
        lines.append(f"{case.title:54s} {mine:9.1f} {theirs:9.1f}  {spread(values)} {end}".rstrip())
    return "\n".join(lines)


def markdown(cases: Sequence[Case], results: Results) -> str:
    """The same for the page, with what a message costs."""
    lines = ["| case | ours | Postfix | ratio [least-most] | goal | cpu ms | fsyncs | commits | peak MB |"]
    lines.append("|---|---:|---:|---|---|---|---|---|---|")
    for case in cases:
        samples = results.get(case.name, {})
        if "postfix" not in samples or len(samples) < 2:
            continue
        first = next(iter(samples))
        values = ratios(samples, first, "postfix", case.figure)
        row = [case.title, *(f"{middle(samples[name], case.figure):.1f}" for name in (first, "postfix"))]
        sign = ">=" if case.more_is_better else "<="
        row += [spread(values).strip(), f"{sign} {case.target:.1f}" if case.target else ""]
        for figure in ("cpu", "fsyncs", "commits", "peak"):
            both = [middle(samples[name], figure) for name in (first, "postfix")]
            row.append(" / ".join("-" if value is None else f"{value:.2f}" for value in both))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def middle(samples: Sequence[Figures], figure: str) -> float | None:
    """The median of the rounds, None when it was not measured."""
    values = [sample[figure] for sample in samples if figure in sample]
    return statistics.median(values) if values else None


def update_page(page: Path, cases: Sequence[Case], results: Results) -> None:
    """Put the table between the two marks of the page."""
    before, begin, rest = page.read_text().partition("<!-- begin: make bench -->\n")
    _, end, after = rest.partition("<!-- end: make bench -->")
    machine = f"{os.cpu_count()} processors, {processor()}, Linux {platform.release()}."
    page.write_text(f"{before}{begin}{machine}\n\n{markdown(cases, results)}\n{end}{after}")


def processor() -> str:
    """Its name."""
    lines = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    return lines[0].partition(": ")[2] if lines else platform.machine()


def write_json(path: Path, results: Results) -> None:
    """Everything measured, with the machine it was measured on."""
    machine = {"kernel": platform.release(), "processors": os.cpu_count(), "processor": processor()}
    path.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
