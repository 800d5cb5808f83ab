"""`make bench`: our MTA beside others, A B A B, in one run on one machine (root).  See README.md here."""

import argparse
import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.bench.cases import CASES, Case
from tests.bench.choose import choose
from tests.bench.lab import Lab, enter
from tests.bench.profile import Profiler, Symbols, report
from tests.bench.report import Results, compared, line, summary, write_json
from tests.bench.run import Figures, Load, measure
from tests.bench.systems import System

LIMIT = 1500.0  # seconds for everything
LOG_LINES = 12  # shown of each when a case fails
WARM = 4  # the run that does not count is so many times shorter


def shorter(load: Load, part: float) -> Load:
    """The same with fewer messages."""
    return dataclasses.replace(load, messages=max(load.sessions * 2, int(load.messages * part)))


def one_case(lab: Lab, systems: list[System], case: Case, rounds: int, part: float) -> dict[str, list[Figures]]:
    """Each system in turn, rounds times, after a short run each that does not count and shows its memory."""
    samples: dict[str, list[Figures]] = {system.name: [] for system in systems}
    if case.alone is not None:
        print(f"\n{case.name}: {case.title}", flush=True)
        for system in systems:
            samples[system.name].append(case.alone(lab, system))
            print(f"{system.name:10s} {line(samples[system.name][0])}", flush=True)
        print("\n".join(compared(case, samples)), flush=True)
        return samples
    load = shorter(case.load, part)
    print(f"\n{case.name}: {case.title}, {load.messages} messages", flush=True)
    peak = {}
    for system in systems:
        first = measure(lab, system, shorter(load, 1 / WARM), case.generator, case.receiver, peak=True)
        peak[system.name] = first["peak"]
    for _ in range(rounds):
        for system in systems:
            figures = measure(lab, system, load, case.generator, case.receiver)
            figures["peak"] = peak[system.name]
            samples[system.name].append(figures)
            print(f"{system.name:10s} {line(figures)}", flush=True)
    print("\n".join(compared(case, samples)), flush=True)
    return samples


def one_profile(lab: Lab, system: System, case: Case, out: Path) -> None:
    """Sample the processes of ours during one run."""
    measure(lab, system, shorter(case.load, 1 / WARM), case.generator, case.receiver)
    profiler = Profiler(system.group, lab.run)
    figures = measure(lab, system, case.load, case.generator, case.receiver)
    messages = case.load.messages
    text = f"{case.name}: {case.title}\n{line(figures)}\n{report(profiler.end(), messages)}"
    if shutil.which("perf"):
        symbols = Symbols(system.group, lab.run)
        figures = measure(lab, system, case.load, case.generator, case.receiver)
        text += f"\nagain, with perf: {line(figures)}\n{symbols.end(messages)}"
    print(text, flush=True)
    with out.open("a") as file:
        file.write(text)


class Running:
    """Starts the systems, anew for each case."""

    def __init__(self, lab: Lab, systems: list[System]) -> None:
        self._lab, self._systems = lab, systems
        self._run = False

    def start(self, settings: Mapping[str, str]) -> None:
        """All anew with these: what one case leaves (processes, caches) is not the next one's memory."""
        self.stop()
        places = {"disk": str(self._lab.disk.path), "certificate": str(self._lab.certificate)}
        filled = {name: value.format_map(places) for name, value in settings.items()}
        for system in self._systems:
            system.start(filled)
        self._run = True

    def stop(self) -> None:
        """None runs."""
        if self._run:
            for system in self._systems:
                system.stop()
        self._run = False


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
        running.start(case.settings)
        try:
            if options.profile:
                one_profile(lab, systems[0], case, options.profile)
            else:
                results[case.name] = one_case(lab, systems, case, options.rounds or rounds, part)
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
    for name in failed:
        print(f"bench: {name} failed", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    """Enter the namespaces and measure there; status 1 when a message is lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("--case", action="append", choices=names, default=[], help="only this one; may be repeated")
    parser.add_argument("--only", default="aiomta,postfix", help="mail systems, in the order of their turns")
    parser.add_argument("--tree", type=Path, help="the checkout that is ours (default: this one)")
    parser.add_argument("--against", type=Path, help="another checkout of ours to compare with")
    parser.add_argument("--rounds", type=int, help="measured runs of each system and case (3)")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", type=Path, help="write all samples there")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="no comparison: sample ours, tables to FILE")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
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
