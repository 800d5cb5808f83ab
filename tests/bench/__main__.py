"""`make bench`: our MTA beside others, A B A B, in one run on one machine (root).  See README.md here."""

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
from pathlib import Path

from tests.bench.cases import CASES, Relay
from tests.bench.lab import Lab, enter
from tests.bench.profile import Profiler, Symbols, report
from tests.bench.relay import Sample, relay
from tests.bench.systems import System, choose

LIMIT = 1200.0  # seconds for everything


def spread(values: list[float]) -> str:
    """Median [least-most]."""
    return f"{statistics.median(values):5.2f} [{min(values):.2f}-{max(values):.2f}]"


def one_case(lab: Lab, systems: list[System], case: Relay, rounds: int, scale: float) -> dict[str, list[Sample]]:
    """Each system in turn, rounds times, after a short run each that does not count."""
    samples: dict[str, list[Sample]] = {system.name: [] for system in systems}
    load = dataclasses.replace(case.load, messages=max(case.load.sessions * 2, int(case.load.messages * scale)))
    warm = dataclasses.replace(load, messages=max(load.sessions * 2, load.messages // 4))
    print(f"\n{case.name}: {case.title}, {load.messages} messages", flush=True)
    for system in systems:
        relay(lab, system.group, system.port, warm)
    for _ in range(rounds):
        for system in systems:
            sample = relay(lab, system.group, system.port, load)
            samples[system.name].append(sample)
            print(f"{system.name:10s} {sample}", flush=True)
    first, *others = samples
    for other in others:
        for what in ("end_to_end", "accept", "cpu"):
            pairs = zip(samples[first], samples[other], strict=True)
            ratio = spread([getattr(mine, what) / getattr(theirs, what) for mine, theirs in pairs])
            goal = f"  (goal {case.target:.1f})" if other == "postfix" and what == "end_to_end" and case.target else ""
            print(f"  {first} / {other}, {what.replace('_', ' '):10s} {ratio}{goal}", flush=True)
    return samples


def one_profile(lab: Lab, system: System, case: Relay, out: Path) -> None:
    """Sample the processes of ours during one run."""
    relay(lab, system.group, system.port, dataclasses.replace(case.load, messages=case.load.messages // 4))
    profiler = Profiler(system.group, lab.run)
    sample = relay(lab, system.group, system.port, case.load)
    text = f"{case.name}: {case.title}\n{sample}\n{report(profiler.end(), case.load.messages)}"
    if shutil.which("perf"):
        symbols = Symbols(system.group, lab.run)
        sample = relay(lab, system.group, system.port, case.load)
        text += f"\nagain, with perf: {sample}\n{symbols.end(case.load.messages)}"
    print(text, flush=True)
    with out.open("a") as file:
        file.write(text)


def inside(options: argparse.Namespace) -> int:
    """Measure, in the namespaces."""
    lab = Lab()
    systems = choose(lab, options.only.split(","), options.tree, options.against)
    wanted = [case for case in CASES if not options.case or case.name in options.case]
    rounds, scale = (1, 0.3) if options.quick else (3, 1.0)
    results = {}
    for system in systems:
        system.start({})
    if options.profile:
        for case in wanted:
            one_profile(lab, systems[0], case, options.profile)
        return 0
    for case in wanted:
        results[case.name] = one_case(lab, systems, case, options.rounds or rounds, scale)
    for system in systems:
        system.stop()
    if options.json:
        plain = {
            case: {name: [dataclasses.asdict(sample) for sample in samples] for name, samples in by_name.items()}
            for case, by_name in results.items()
        }
        options.json.write_text(json.dumps(plain, indent=1) + "\n")
    return 0


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
    return enter([sys.executable, "-m", "tests.bench", *sys.argv[1:], "--inside"], LIMIT)


if __name__ == "__main__":
    sys.exit(main())
