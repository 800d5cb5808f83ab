"""`make bench`: our MTA beside others, A B A B, in one run on one machine (root).  See README.md here."""

import argparse
import subprocess
import sys
from pathlib import Path

from tests.bench.cases import CASES
from tests.bench.choose import NAMES, choose
from tests.bench.lab import ROOT, Lab, enter
from tests.bench.report import Results, summary, update_page, write_json
from tests.bench.turns import Running, one_case, one_profile

STAYS = {"smtpd_processes_max_idle": "1h"}  # a worker that is to be watched is there before the run, and in it

LIMIT = 2400.0  # seconds for everything
LOG_LINES = 12  # shown of each when a case fails
DOCS = ROOT / "docs"


def inside(options: argparse.Namespace) -> int:
    """Measure, in the namespaces."""
    lab = Lab()
    systems = choose(lab, options.only.split(","), options.tree, options.against)
    wanted = [case for case in CASES if not options.case or case.name in options.case]
    rounds, part = (1, 0.3) if options.quick else (3, 1.0)
    running = Running(lab, systems)
    results: Results = {}
    failed: list[str] = []
    for case in wanted:
        settings = {**case.settings, **STAYS} if options.profile else case.settings
        taking_part = running.start(settings, case.without)
        try:
            if options.profile:
                one_profile(lab, systems[0], case, options.profile)
            else:
                results[case.name] = one_case(lab, taking_part, case, options.rounds or rounds, part)
        except (RuntimeError, AssertionError, subprocess.SubprocessError) as error:
            print(f"{case.name}: {type(error).__name__}: {error}", file=sys.stderr)
            for system in systems:
                print(f"--- {system.name}\n" + "\n".join(system.log().splitlines()[-LOG_LINES:]), file=sys.stderr)
            failed.append(case.name)
    running.stop()
    if results:
        print(f"\n{summary(wanted, results)}")
    if options.json:
        write_json(options.json, results)
    if options.chart and not failed:
        write_json(DOCS / "bench.json", results)
        from tests.bench.chart import draw  # matplotlib, which only the chart needs

        draw(DOCS / "bench.json", DOCS)
        update_page(DOCS / "performance.md", wanted, results)
    for name in failed:
        print(f"bench: {name} failed", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    """Enter the namespaces and measure there; status 1 when a message is lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--case", action="append", choices=names, default=[], help="only this one; may be repeated")
    parser.add_argument("--only", help="mail systems, in the order of their turns (aiomta,postfix; with --chart all)")
    parser.add_argument("--tree", type=Path, help="the checkout that is ours (default: this one)")
    parser.add_argument("--against", type=Path, help="another checkout of ours to compare with")
    parser.add_argument("--rounds", type=int, help="measured runs of each system and case (3)")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", type=Path, help="write all samples there")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="no comparison: sample ours, tables to FILE")
    parser.add_argument("--chart", action="store_true", help="make docs/bench.* and the table of the page anew")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.only = options.only or ",".join(NAMES if options.chart else NAMES[:2])
    for name in ("tree", "against", "json", "profile"):
        if getattr(options, name):
            setattr(options, name, getattr(options, name).resolve())
    if options.inside:
        return inside(options)
    return enter(
        [sys.executable, "-m", "tests.bench", *sys.argv[1:], "--inside"],
        LIMIT,
        need_opensmtpd="opensmtpd" in options.only,
    )


if __name__ == "__main__":
    sys.exit(main())
