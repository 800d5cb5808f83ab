"""Exim and OpenSMTPD as Debian packages them, for the chart: same work, same disk."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.bench.counters import Group
from tests.bench.lab import Lab
from tests.bench.systems import START, greets
from tests.peers.build import mount
from tests.peers.machine import Machine, wait_for

EXIM = """\
keep_environment =
primary_hostname = mx.bench.test
local_interfaces = <; 127.0.0.1.{port}
daemon_smtp_ports = {port}
acl_smtp_rcpt = accept
acl_smtp_data = accept
host_lookup =
rfc1413_query_timeout = 0s
smtp_accept_max = 200
smtp_accept_queue = 0
smtp_accept_queue_per_connection = 0
message_size_limit = 50M
tls_advertise_hosts = {tls}
{certificate}
begin routers
local:
  driver = accept
  domains = mx.bench.test
  transport = {mailbox}
all:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = remote
begin transports
mbox:
  driver = appendfile
  file = {disk}/mail/bench
  user = bench
maildir:
  driver = appendfile
  directory = {disk}/home/Maildir
  maildir_format
  user = bench
remote:
  driver = smtp
  port = 2599
  hosts_try_chunking =
begin retry
* * F,2h,15m
"""

OPENSMTPD = """\
{certificate}
listen on 127.0.0.1 port {port} hostname mx.bench.test {tls}
smtp max-message-size 50M
action "mbox" mbox
action "maildir" maildir "{disk}/home/Maildir"
action "relay" relay host smtp://127.0.0.1:2599
match from any for domain mx.bench.test action "{mailbox}"
match from any for any action "relay"
"""


class Other:
    """A mail system in a chroot that does not read main.cf: what the settings ask for is said in its own words."""

    name: str
    port: int
    layer: str
    queue: str

    def __init__(self, lab: Lab) -> None:
        self.lab, self.group = lab, Group(self.name)
        self.machine = Machine(self.name, "127.0.0.1", self.layer, lab.run, layers=lab.layers(self.layer))
        self.spool, inside = lab.spool(self.name) / "spool", self.machine.path(self.queue)
        inside.mkdir(mode=0o711, exist_ok=True)
        subprocess.run(["cp", "-a", inside, self.spool], check=True, timeout=60)
        mount("--bind", self.spool, inside)
        mount("--bind", lab.mail, self.machine.path("/var/mail"))
        lab.share(self.machine)
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, settings: Mapping[str, str]) -> None:
        """Write its configuration."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """The daemon in the foreground."""
        raise NotImplementedError

    def start(self, settings: Mapping[str, str]) -> None:
        """Returns when it greets."""
        self.configure(settings)
        argv = self.group.command(["chroot", self.machine.root, *self.command()])
        with self.machine.path("/var/log/out").open("ab") as out:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.machine.environ({}), cwd="/"
            )
        self.process = process
        wait_for(f"{self.name} greets", lambda: process.poll() is not None or greets(self.port), START)
        if process.poll() is not None:
            raise RuntimeError(f"{self.name}: {self.log()[-800:]}")

    def stop(self) -> None:
        """SIGTERM, and to what it leaves behind."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)
        wait_for(f"{self.name} is gone", lambda: not self.group.processes(), 60)

    def sendmail(self) -> tuple[Path, list[str], dict[str, str]]:
        """The package's."""
        return self.machine.root, ["/usr/sbin/sendmail"], {}

    def log(self) -> str:
        """What it said."""
        return self.machine.read("/var/log/out") + self.machine.read("/var/log/exim4/mainlog")

    def words(self, settings: Mapping[str, str], tls: str, certificate: str) -> dict[str, str]:
        """What the templates need."""
        files = settings.get("smtpd_tls_chain_files", "")
        return {
            "port": str(self.port),
            "disk": str(self.lab.disk.path),
            "mailbox": "maildir" if "home_mailbox" in settings else "mbox",
            "tls": tls if files else "",
            "certificate": certificate.format(file=files) if files else "",
        }


class Exim(Other):
    """Exim: a process per connection and per delivery."""

    name, port, layer, queue = "exim", 2512, "exim", "/var/spool/exim4"

    def configure(self, settings: Mapping[str, str]) -> None:
        """One file."""
        text = "tls_certificate = {file}\ntls_privatekey = {file}"
        self.machine.write("/etc/exim4/exim4.conf", EXIM.format_map(self.words(settings, "*", text)))
        self.machine.run("chown", "root:Debian-exim", "/etc/exim4/exim4.conf", str(self.lab.certificate))
        self.machine.path(str(self.lab.certificate)).chmod(0o640)

    def command(self) -> list[str]:
        """-bdf: daemon in the foreground."""
        return ["exim4", "-bdf", "-q30m"]


class OpenSmtpd(Other):
    """OpenSMTPD: a few processes with pipes between them."""

    name, port, layer, queue = "opensmtpd", 2513, "opensmtpd", "/var/spool/smtpd"

    def configure(self, settings: Mapping[str, str]) -> None:
        """One file."""
        text = 'pki mx.bench.test cert "{file}"\npki mx.bench.test key "{file}"'
        words = self.words(settings, "tls pki mx.bench.test", text)
        self.machine.write("/etc/smtpd.conf", OPENSMTPD.format_map(words))
        self.machine.write("/etc/mail/aliases", "")
        self.machine.write("/etc/aliases", "")

    def command(self) -> list[str]:
        """-d: foreground, log to standard error."""
        return ["smtpd", "-d"]
