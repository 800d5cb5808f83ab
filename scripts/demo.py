"""`make run`: the MTA in the foreground under ./var, one message through it as cron sends one, then until Ctrl-C.

ONCE=1 stops after the message and exits 0.  PORT=n insists on that port; otherwise 2525 or the next free one.
As root it starts as an installation does: binds, becomes `nobody`, delivers through mta-local.

Standard library only.  Exit status: 0 the message arrived; 1 it did not, or the MTA could not start.
"""

import contextlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_PORT, PORTS = 2525, 20
READY_LIMIT, ARRIVE_LIMIT, STOP_LIMIT = 30.0, 30.0, 30.0  # seconds
SOCKET_PATH_LIMIT = 107  # bytes, unix(7)

MAIN_CF = """\
# Written by `make run` at each start.
compatibility_level = 3.6
myhostname = {host}
mydestination = $myhostname, localhost
myorigin = $myhostname
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
mail_owner = {owner}
queue_directory = {var}/spool
data_directory = {var}/data
mail_spool_directory = {var}/mail
maillog_file_prefixes = {var}
maillog_file = {var}/log/maillog
alias_maps = hash:{var}/etc/aliases
alias_database = hash:{var}/etc/aliases
"""
CRON_MESSAGE = """\
From: "(Cron Daemon)" <{user}>
To: {user}
Subject: Cron <{user}@{host}> echo the mail system works
Content-Type: text/plain; charset=UTF-8
Auto-Submitted: auto-generated
Precedence: bulk
X-Cron-Env: <SHELL=/bin/sh>
X-Demo: {token}

the mail system works
"""


class DemoError(Exception):
    """str() is a line for whoever typed `make run`."""


@dataclass(frozen=True)
class Plan:
    """Where and as whom.  user: who sends; reader: whose mailbox it ends in."""

    var: Path
    port: int
    user: str
    reader: str
    owner: str
    host: str

    @property
    def etc(self) -> Path:
        return self.var / "etc"

    @property
    def log(self) -> Path:
        return self.var / "log" / "maillog"

    @property
    def mailbox(self) -> Path:
        return self.var / "mail" / self.reader


def say(text: str = "") -> None:
    print(text, flush=True)


def everybody_can_reach(path: Path) -> bool:
    """True when each directory above may be passed by others."""
    return all(os.stat(parent).st_mode & stat.S_IXOTH for parent in path.parents if parent.exists())


def place() -> Path:
    """./var, or a directory under /var/tmp when that is out of reach for `nobody` or too long for a socket."""
    var = ROOT / "var"
    too_long = len(os.fsencode(var / "spool/public/submit")) > SOCKET_PATH_LIMIT
    if not too_long and (os.geteuid() != 0 or everybody_can_reach(var)):
        return var
    moved = Path(f"/var/tmp/aiomta-run-{os.geteuid()}")  # noqa: S108  (owner and kind are checked below)
    with contextlib.suppress(FileExistsError):
        moved.mkdir(mode=0o755)
    info = moved.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise DemoError(f"{moved} exists and is not ours; remove it")
    say(f"{var} is {'too long for a socket' if too_long else 'out of reach for the user nobody'}: using {moved}")
    return moved


def free_port() -> int:
    """A port nobody listens on; DemoError when none is, or the one asked for is busy."""
    asked = os.environ.get("PORT", "")
    for port in [int(asked)] if asked else range(FIRST_PORT, FIRST_PORT + PORTS):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                say(f"127.0.0.1:{port}: {error.strerror}" + ("" if asked else ", trying the next one"))
                continue
            return port
    raise DemoError("no free port; `make run PORT=n` names one")


def plan() -> Plan:
    """Who runs it decides who gets the mail: root's goes to the first ordinary user there is, by an alias."""
    me = pwd.getpwuid(os.geteuid()).pw_name
    host = "demo.localdomain"
    if os.geteuid() != 0:
        return Plan(place(), free_port(), me, me, me, host)
    ordinary = [p.pw_name for p in pwd.getpwall() if 1000 <= p.pw_uid < 60000]
    reader = os.environ.get("SUDO_USER") or (sorted(ordinary) or ["daemon"])[0]
    return Plan(place(), free_port(), me, reader, "nobody", host)


def write_configuration(p: Plan) -> None:
    """main.cf, master.cf, aliases and the mail directory; what is in the spool already stays."""
    for name in ("etc", "log", "mail"):
        (p.var / name).mkdir(parents=True, exist_ok=True)
    (p.etc / "main.cf").write_text(MAIN_CF.format(host=p.host, owner=p.owner, var=p.var))
    lines = (ROOT / "conf" / "master.cf").read_text().splitlines()
    services = [line for line in lines if line.split()[1:2] != ["inet"] and not line.startswith((" ", "\t"))]
    listener = f"127.0.0.1:{p.port} inet n - n - - smtpd"
    (p.etc / "master.cf").write_text("\n".join([listener, *services]) + "\n")
    (p.etc / "aliases").write_text(f"postmaster: root\nroot: {p.reader}\nmailer-daemon: postmaster\n")
    if os.geteuid() == 0:
        with contextlib.suppress(LookupError):
            shutil.chown(p.var / "mail", "root", "mail")
            (p.var / "mail").chmod(0o2775)


def wait_for(condition: Callable[[], bool], limit: float, mta: "subprocess.Popen[bytes]") -> bool:
    """True when it came true in time while the MTA lived."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and mta.poll() is None:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def greets(port: int) -> bool:
    """True when an SMTP server says 220."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.settimeout(5)
            greeted = sock.recv(512).startswith(b"220 ")
            sock.sendall(b"QUIT\r\n")
            return greeted and bool(sock.recv(512))
    except OSError:
        return False


def sendmail() -> str:
    """Our injector, as installed beside the Python that runs us."""
    path = Path(sys.prefix) / "bin" / "sendmail"
    if not path.exists():
        raise DemoError(f"{path} is missing: run `make run` again after `rm -rf .venv`")
    return str(path)


def text_of(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def one_message(p: Plan, mta: "subprocess.Popen[bytes]") -> None:
    """Send as cron does, show it arriving; DemoError when it does not."""
    token = f"{os.getpid()}.{time.time_ns()}"
    before = len(text_of(p.log))
    argv = [sendmail(), "-FCronDaemon", "-i", "-odi", "-oem", "-oi", "-t", "-f", p.user]
    say(f"\n$ MAIL_CONFIG={p.etc} {shlex.join(argv)}        (this is how cron calls it)")
    message = CRON_MESSAGE.format(user=p.user, host=p.host, token=token)
    environ = {"MAIL_CONFIG": str(p.etc), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, input=message.encode(), env=environ, timeout=ARRIVE_LIMIT, check=False)  # noqa: S603  (our own words)
    if done.returncode:
        raise DemoError(f"sendmail exited {done.returncode}; see {p.log}")
    arrived = wait_for(lambda: token in text_of(p.mailbox), ARRIVE_LIMIT, mta)
    wait_for(lambda: ": removed" in text_of(p.log)[before:], 2.0, mta)
    say(f"\nlog ({p.log}):")
    say(indent(text_of(p.log)[before:]))
    if not arrived:
        raise DemoError(f"the message did not arrive in {p.mailbox} within {ARRIVE_LIMIT:.0f} s")
    mailbox = text_of(p.mailbox)
    say(f"\nmailbox ({p.mailbox}):")
    say(indent(mailbox[mailbox.rindex("\nFrom ") + 1 if "\nFrom " in mailbox else 0 :]))


def indent(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip("\n").splitlines())


def how_to_go_on(p: Plan) -> None:
    """The next message."""
    program = f"MAIL_CONFIG={p.etc} {sendmail()}"
    say("\nThe next one, from another terminal:")
    say(f"    printf 'Subject: hello\\n\\nhi\\n' | {program} -i {p.user}")
    say(f"    python3 -c \"import smtplib; smtplib.SMTP('127.0.0.1', {p.port}).sendmail('me@{p.host}', "
        f"'{p.reader}@{p.host}', 'Subject: hello\\n\\nhi\\n')\"")  # fmt: skip
    say(f"    tail -f {p.log}        {program.replace('sendmail', 'mailq')}")


def stop(mta: "subprocess.Popen[bytes]") -> int:
    """SIGTERM, and wait until it has gone."""
    if mta.poll() is None:
        mta.send_signal(signal.SIGTERM)
    try:
        return mta.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        mta.kill()
        return mta.wait()


def serve(p: Plan) -> int:
    """Start, show, and go on until Ctrl-C."""
    command = [sys.executable, "-m", "mta", "-c", str(p.etc), "start-fg"]
    mta = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603  (our own words)
    try:
        if not wait_for(lambda: greets(p.port), READY_LIMIT, mta):
            raise DemoError(f"the MTA did not start{'' if mta.poll() is None else f' (status {mta.returncode})'}")
        owner = f", which became {p.owner}" if p.owner != p.user else ""
        say(f"ready on 127.0.0.1:{p.port}, started by {p.user}{owner}, everything under {p.var}")
        one_message(p, mta)
        if os.environ.get("ONCE") not in ("", "0", None):
            status = stop(mta)
            say(f"\nstopped, status {status}")
            return 1 if status else 0
        how_to_go_on(p)
        say("\nserving until Ctrl-C")
        mta.wait()
        raise DemoError(f"the MTA ended by itself, status {mta.returncode}")
    finally:
        stop(mta)


def main() -> int:
    """Return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        p = plan()
        write_configuration(p)
        return serve(p)
    except DemoError as problem:
        print(f"make run: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("\nstopped")
        return 0


if __name__ == "__main__":
    sys.exit(main())
