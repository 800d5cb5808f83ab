"""The chart of the README: `python -m tests.bench.chart FILE.json DIRECTORY` writes bench.svg and bench.png."""

import json
import statistics
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot

NAMES = {"aiomta": "aiomta", "postfix": "Postfix", "exim": "Exim", "opensmtpd": "OpenSMTPD*"}
COLOURS = {"aiomta": "#0b7285", "postfix": "#adb5bd", "exim": "#d9c8a9", "opensmtpd": "#e9ecef"}
THROUGHPUT = {
    "5k-1": "5 KB, 1 session",
    "5k-10": "5 KB, 10 sessions",
    "5k-100": "5 KB, 100 sessions",
    "200k-10": "200 KB, 10 sessions",
    "5m-4": "5 MB, 4 sessions",
    "50-rcpt": "50 recipients",
    "tls-10": "STARTTLS, 10 sessions",
    "sendmail-10": "sendmail, 10 at a time",
    "mbox": "to an mbox",
    "maildir": "to a Maildir",
}
NOTE = "*OpenSMTPD answers 250 before the message is on the disk."

Results = dict[str, dict[str, list[dict[str, float]]]]


def middle(samples: list[dict[str, float]], figure: str) -> float:
    """Median of the rounds; 0 when there is none."""
    values = [sample[figure] for sample in samples if figure in sample]
    return statistics.median(values) if values else 0.0


def label(axes: "pyplot.Axes", text: str, x: float, y: float) -> None:
    """A number at the end of a bar."""
    axes.annotate(text, (x, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)


def throughput(axes: "pyplot.Axes", results: Results) -> None:
    """Messages per second, Postfix = 1."""
    cases = [case for case in THROUGHPUT if "postfix" in results.get(case, {})]
    for index, case in enumerate(reversed(cases)):
        samples = results[case]
        base = middle(samples["postfix"], "end_to_end")
        present = [name for name in NAMES if samples.get(name)]
        height = 0.8 / len(NAMES)
        for place, name in enumerate(present):
            ratio = middle(samples[name], "end_to_end") / base
            y = index + 0.4 - (place + 0.5) * height
            axes.barh(y, ratio, height, color=COLOURS[name])
            axes.annotate(
                f"{ratio:.1f}", (ratio, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7
            )
    axes.set_yticks(range(len(cases)), [THROUGHPUT[case] for case in reversed(cases)])
    axes.axvline(1, color="#868e96", linewidth=0.8)
    axes.set_title("messages/s, accepted to delivered (Postfix = 1)", fontsize=9, loc="left")


def bars(axes: "pyplot.Axes", samples: dict[str, list[dict[str, float]]], figure: str, title: str, text: str) -> None:
    """One bar per mail system."""
    present = [name for name in NAMES if middle(samples.get(name, []), figure)]
    values = [middle(samples[name], figure) for name in present]
    axes.barh(range(len(present)), values, 0.7, color=[COLOURS[name] for name in present])
    for place, value in enumerate(values):
        label(axes, text.format(value), value, place)
    axes.set_yticks(range(len(present)), [NAMES[name] for name in present])
    axes.invert_yaxis()
    axes.set_title(title, fontsize=9, loc="left")


def draw(source: Path, directory: Path) -> None:
    """Write both files."""
    results: Results = json.loads(source.read_text())["results"]
    mpl.rcParams.update({"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "bench", "font.family": "sans-serif"})
    figure, grid = pyplot.subplot_mosaic(
        [["rate", "cpu"], ["rate", "memory"]], figsize=(9.6, 5.4), width_ratios=[1.7, 1], layout="constrained"
    )
    throughput(grid["rate"], results)
    bars(grid["cpu"], results.get("5k-10", {}), "cpu", "processor time per 5 KB message, ms", "{:.2f}")
    bars(grid["memory"], results.get("idle", {}), "memory_mb", "memory with 1,000 idle connections, MB", "{:.0f}")
    for axes in grid.values():
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    handles = [mpl.patches.Patch(color=COLOURS[name], label=NAMES[name]) for name in NAMES]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(NAMES), frameon=False)
    figure.text(0.995, 0.01, NOTE, ha="right", fontsize=7, color="#495057")
    figure.savefig(directory / "bench.svg", metadata={"Date": None})
    figure.savefig(directory / "bench.png", dpi=120, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
