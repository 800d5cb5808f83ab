"""`make bench`: our MTA beside a real Postfix, A B A B, in namespaces of their own (root).

    python -m tests.bench [-n 2000] [-s 10] [-l 5000] [-r 1] [--reuse] [--rounds 2]

Prints messages per second through both and the ratio, and the median time of 100 `sendmail -t -i` in a row.
Both have their queue on the same file system, both relay to the same smtp-sink.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.relay_rate import Load, Rate, measure
from tests.peers.build import ROOT, mount
from tests.peers.machine import Machine, wait_for
from tests.peers.namespace import build, own_network, run_inside
from tests.peers.postfix import Postfix, main_cf

LIMIT = 1200.0  # seconds for everything
OURS, THEIRS = 2525, 2511  # ports
INJECTIONS = 100
COMMON = {
    "compatibility_level": "3.6",
    "myhostname": "mx.bench.test",
    "mydestination": "",
    "mynetworks": "127.0.0.0/8",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "relayhost": "[127.0.0.1]:2599",
    "disable_dns_lookups": "yes",
    "smtp_tls_security_level": "none",
    "smtpd_tls_security_level": "none",
    "alias_maps": "",
    "default_process_limit": "100",
}
MESSAGE = b"From: a@bench.test\nTo: b@dst.test\nSubject: bench\n\n" + b"0123456789abcdef\n" * 60


def greets(port: int) -> bool:
    """True when port says 220."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.settimeout(5)
            greeted = sock.recv(512).startswith(b"220 ")
            sock.sendall(b"QUIT\r\n")
            return greeted and bool(sock.recv(512))
    except OSError:
        return False


def start_postfix(run: Path) -> Postfix:
    """Postfix on THEIRS, its spool on the plain file system, not on the overlay."""
    machine = Machine("postfix", "127.0.0.1", "postfix", run)
    spool = run / "postfix-spool"
    subprocess.run(["cp", "-a", machine.path("/var/spool/postfix"), spool], check=True, timeout=60)
    mount("--bind", spool, machine.path("/var/spool/postfix"))
    postfix = Postfix(machine)
    machine.write("/etc/postfix/main.cf", main_cf({**COMMON, "maillog_file": "/var/log/mail.log"}))
    machine.run("postconf", "-M#", "smtp/inet")
    machine.run("postconf", "-Me", f"127.0.0.1:{THEIRS}/inet=127.0.0.1:{THEIRS} inet n - n - - smtpd")
    postfix.start()
    wait_for("Postfix greets", lambda: greets(THEIRS))
    return postfix


def start_ours(run: Path) -> tuple["subprocess.Popen[bytes]", Path]:
    """Our MTA on OURS as an installation runs: started by root, owned by nobody."""
    here = run / "ours"
    etc = here / "etc"
    etc.mkdir(parents=True)
    settings = {
        **COMMON,
        "mail_owner": "nobody",
        "queue_directory": str(here / "spool"),
        "data_directory": str(here / "data"),
        "maillog_file": str(here / "maillog"),
    }
    (etc / "main.cf").write_text(main_cf(settings))
    lines = (ROOT / "conf/master.cf").read_text().splitlines()
    services = [line for line in lines if line.split()[1:2] != ["inet"] and not line.startswith((" ", "\t"))]
    (etc / "master.cf").write_text("\n".join([f"127.0.0.1:{OURS} inet n - n - - smtpd", *services]) + "\n")
    process = subprocess.Popen([sys.executable, "-m", "mta", "-c", etc, "start-fg"], cwd=ROOT, stdin=subprocess.DEVNULL)
    wait_for("our MTA greets", lambda: process.poll() is not None or greets(OURS))
    if process.poll() is not None:
        sys.exit(f"bench: our MTA ended with status {process.returncode}")
    return process, etc


def injection(command: list[str], environ: dict[str, str]) -> float:
    """Median seconds of INJECTIONS runs in a row."""
    times = []
    for _ in range(INJECTIONS):
        begin = time.perf_counter()
        subprocess.run(command, input=MESSAGE, env=environ, check=True, timeout=60)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def inside(options: argparse.Namespace) -> int:
    """Measure, in the namespaces."""
    own_network()
    run = Path(os.environ["AIOMTA_PEERS_RUN"])
    load = Load(options.n, options.s, options.l, options.r, options.reuse)
    postfix = start_postfix(run)
    process, etc = start_ours(run)
    root = postfix.machine.root
    ports: dict[str, int] = {"aiomta": OURS, "postfix": THEIRS}
    rates: dict[str, list[Rate]] = {name: [] for name in ports}
    print(f"{load}\n(each first run of a name warms it up and does not count)", flush=True)
    for number in range(options.rounds + 1):
        for name, port in ports.items():
            rate = measure(root, port, load if number else Load(200))
            if number:
                rates[name].append(rate)
                print(f"{name:8s} {rate}", flush=True)
    mean: Callable[[str, str], float] = lambda name, what: statistics.mean(getattr(r, what) for r in rates[name])  # noqa: E731
    for what in ("accept", "end_to_end"):
        print(f"ratio {what}: {mean('aiomta', what) / mean('postfix', what):.2f} of Postfix")
    environ = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    ours = [str(Path(sys.prefix) / "bin/sendmail"), "-t", "-i"]
    sendmail = {
        "aiomta": injection(["chroot", "/", *ours], {**environ, "MAIL_CONFIG": str(etc)}),
        "postfix": injection(["chroot", str(root), "/usr/sbin/sendmail", "-t", "-i"], environ),
    }
    for name, seconds in sendmail.items():
        print(f"{name:8s} sendmail -t -i: median {seconds * 1000:.1f} ms")
    print(f"ratio sendmail: {sendmail['aiomta'] / sendmail['postfix']:.2f} of Postfix's time")
    process.terminate()
    process.wait(60)
    postfix.stop()
    lost = [rate for several in rates.values() for rate in several if rate.seen != load.messages]
    return 1 if lost else 0


def main() -> int:
    """Build, enter the namespaces, measure; status 1 when the sink has not seen every message."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    parser.add_argument("-n", type=int, default=2000, help="messages per run")
    parser.add_argument("-s", type=int, default=10, help="parallel sessions")
    parser.add_argument("-l", type=int, default=5000, help="bytes per message")
    parser.add_argument("-r", type=int, default=1, help="recipients per message")
    parser.add_argument("--reuse", action="store_true", help="many messages per connection")
    parser.add_argument("--rounds", type=int, default=2, help="measured runs of each")
    options = parser.parse_args()
    if "AIOMTA_PEERS_RUN" in os.environ:
        return inside(options)
    build()
    return run_inside([sys.executable, "-m", "tests.bench", *sys.argv[1:]], LIMIT)


if __name__ == "__main__":
    sys.exit(main())
