"""systemd units for this machine: programs where they are installed, ports as main.cf and master.cf say.

A port that systemd opens must be one that the configuration names: the daemon closes any other.  So the lists
of addresses are made from the same functions that the daemon uses.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from mta.config.config import Config
from mta.install.steps import StepError
from mta.master.listen import tcp_services

PORT_UNITS = {25: "mta-smtp.socket", 587: "mta-submission.socket", 465: "mta-submissions.socket"}
OTHER_PORTS = "mta-smtp.socket"
DROP_IN = "/etc/systemd/system/{unit}.d/ports.conf"
HEADER = "# Made by mta install from {directory}/main.cf and master.cf; repeat it after a change there.\n"
_LISTEN = re.compile(r"(?m)^ListenStream=.*\n")


def port_lists(config: Config) -> dict[str, list[str]]:
    """Addresses for each socket unit, as ListenStream= writes them; an empty list for a port nobody asks for."""
    services, problems = tcp_services(config)
    if problems:
        raise StepError(str(problems[0]))
    found: dict[str, list[str]] = {unit: [] for unit in PORT_UNITS.values()}
    for _, address, _ in services:
        found[PORT_UNITS.get(address.port, OTHER_PORTS)].append(str(address))
    return found


def with_ports(unit: str, addresses: Sequence[str]) -> str:
    """A socket unit with these addresses instead of its own."""
    first = _LISTEN.search(unit)
    if not first:
        raise StepError("a socket unit without ListenStream=")
    lines = "".join(f"ListenStream={address}\n" for address in addresses)
    return _LISTEN.sub("", unit[: first.start()]) + lines + _LISTEN.sub("", unit[first.start() :])


def drop_in(directory: str, addresses: Sequence[str]) -> str:
    """What changes the addresses of a packaged socket unit."""
    lines = "".join(f"ListenStream={address}\n" for address in addresses)
    return f"{HEADER.format(directory=directory)}[Socket]\nListenStream=\n{lines}"


def units_for(templates: Mapping[str, str], prefix: str, config: Config) -> Iterator[tuple[str, str]]:
    """(name, text) of each unit, for the programs below prefix/bin and the ports of config.

    A port that is not asked for has no unit.
    """
    ports = port_lists(config)
    for name, text in sorted(templates.items()):
        if name in ports:
            if ports[name]:
                yield name, with_ports(text, ports[name])
        else:
            yield name, re.sub(r"(?m)^(Exec\w+=)/usr/s?bin/(?=mta)", rf"\1{prefix}/bin/", text)


def enabled(templates: Mapping[str, str], names: Sequence[str], ports: Mapping[str, Sequence[str]]) -> list[str]:
    """Units to enable: the service, what it names in Also=, and the sockets of the ports that are asked for."""
    also = re.findall(r"(?m)^Also=(.*)$", templates["mta.service"])
    wanted = {"mta.service", *" ".join(also).split(), *(unit for unit, addresses in ports.items() if addresses)}
    return [name for name in names if name in wanted]


def read_templates(directory: str) -> dict[str, str]:
    """The unit files below a directory, by name; StepError when there are none."""
    try:
        names = [n for n in sorted(os.listdir(directory)) if n.endswith((".service", ".socket"))]
    except OSError as error:
        raise StepError(f"{directory}: {error.strerror}") from None
    found = {}
    for name in names:
        with open(f"{directory}/{name}", encoding="utf-8") as file:
            found[name] = file.read()
    if "mta.service" not in found:
        raise StepError(f"{directory}: no mta.service")
    return found
