"""Whose turn it is: the runs of one case, in the order A B A B."""

import dataclasses
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.bench.cases import Case
from tests.bench.lab import Lab
from tests.bench.profile import Profiler, Symbols, report
from tests.bench.report import compared, line
from tests.bench.run import RATE, Figures, Load, measure
from tests.bench.systems import System

CHART, SLOW = ("exim", "opensmtpd"), 6  # these get so many times fewer messages
WARM = 4  # the run that does not count is so many times shorter
SECONDS = 6.0  # that a run of CHART may take, going by its short one


def shorter(load: Load, part: float) -> Load:
    """The same with fewer messages."""
    return dataclasses.replace(load, messages=max(load.sessions * 2, int(load.messages * part)))


def one_case(lab: Lab, systems: list[System], case: Case, rounds: int, part: float) -> dict[str, list[Figures]]:
    """Each system in turn, rounds times, after a short run each that does not count and shows its memory.

    Those of CHART only run in the first round, with fewer messages: they are slow, and nothing depends on them.
    """
    samples: dict[str, list[Figures]] = {system.name: [] for system in systems}
    if case.alone is not None:
        print(f"\n{case.name}: {case.title}", flush=True)
        for _ in range(rounds if case.repeated else 1):
            for system in systems:
                samples[system.name].append(case.alone(lab, system))
                print(f"{system.name:10s} {line(samples[system.name][-1])}", flush=True)
        print("\n".join(compared(case, samples)), flush=True)
        return samples
    load = shorter(case.load, part)
    print(f"\n{case.name}: {case.title}, {load.messages} messages", flush=True)
    loads = {system.name: shorter(load, 1 / SLOW if system.name in CHART else 1.0) for system in systems}
    peak: dict[str, float] = {}
    for number in range(-1, rounds):
        for system in systems:
            name, this = system.name, loads[system.name]
            if name in CHART and (number > 0 or (number == 0 and name not in peak)):
                continue
            try:
                warming = number < 0
                this = shorter(this, 1 / WARM) if warming else this
                figures = measure(lab, system, this, case.generator, case.receiver, peak=warming)
            except (RuntimeError, AssertionError, subprocess.SubprocessError) as error:
                if name not in CHART:
                    raise
                print(f"{name}: left out: {error}", flush=True)
                continue
            if warming:
                peak[name] = figures["peak"]
                if name in CHART:
                    loads[name] = shorter(loads[name], min(1.0, figures[RATE] * SECONDS / loads[name].messages))
                continue
            figures["peak"] = peak[name]
            samples[name].append(figures)
            print(f"{name:10s} {line(figures)}", flush=True)
    samples = {name: figures for name, figures in samples.items() if figures}
    print("\n".join(compared(case, samples)), flush=True)
    return samples


def one_profile(lab: Lab, system: System, case: Case, out: Path) -> None:
    """Sample the processes of ours during one run."""
    measure(lab, system, shorter(case.load, 1 / WARM), case.generator, case.receiver)
    profiler = Profiler(system.group, lab.run)
    figures = measure(lab, system, case.load, case.generator, case.receiver)
    messages = case.load.messages
    profiles = profiler.end()
    seen, used = sum(profile.seconds for profile in profiles) * 1e3 / messages, figures["cpu"]
    if seen < used / 2:
        raise RuntimeError(f"{seen:.3f} of {used:.3f} ms per message were spent by processes that were watched")
    text = f"{case.name}: {case.title}\n{line(figures)}\n{report(profiles, messages)}"
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
        self._run: list[System] = []

    def start(self, settings: Mapping[str, str], without: tuple[str, ...]) -> list[System]:
        """All but some anew with these: what one case leaves (processes, caches) is not the next one's memory."""
        self.stop()
        places = {"disk": str(self._lab.disk.path), "certificate": str(self._lab.certificate)}
        filled = {name: value.format_map(places) for name, value in settings.items()}
        for system in self._systems:
            if system.name in without:
                continue
            try:
                system.start(filled)
            except (RuntimeError, AssertionError) as error:
                if system.name not in CHART:
                    raise
                print(f"{system.name}: left out: {error}", flush=True)
                continue
            self._run.append(system)
        return self._run

    def stop(self) -> None:
        """None runs."""
        for system in self._run:
            system.stop()
        self._run = []
