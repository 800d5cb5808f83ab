"""A real Exim as a peer: mx.exim.test, port 25 of its own address."""

import socket

from tests.peers.machine import Machine, wait_for

CONF = """\
keep_environment =
primary_hostname = mx.exim.test
domainlist local_domains = exim.test : alias.test : nomx.test : mx.exim.test
local_interfaces = <; 192.0.2.12.25
daemon_smtp_ports = 25
acl_smtp_rcpt = rcpt
acl_smtp_data = accept
host_lookup =
rfc1413_query_timeout = 0s
tls_advertise_hosts =
smtputf8_advertise_hosts = *
dsn_advertise_hosts = *
log_file_path = /var/log/exim4/%slog
never_users = root
begin acl
rcpt:
  require message = relay not permitted
          domains = +local_domains
  require verify = recipient
  accept
begin routers
local:
  driver = accept
  domains = +local_domains
  check_local_user
  transport = mailbox
  cannot_route_message = Unknown user
begin transports
mailbox:
  driver = appendfile
  file = /var/mail/$local_part_data
  delivery_date_add
  envelope_to_add
  return_path_add
  group = mail
  mode = 0660
begin retry
* * F,2h,15m
"""


class Exim:
    """Start and look at the Exim of one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.write("/etc/exim4/exim4.conf", CONF)
        machine.run("chown", "root:Debian-exim", "/etc/exim4/exim4.conf")

    def start(self) -> None:
        """A daemon that listens and runs its queue."""
        process = self.machine.spawn("exim4", "-bdf", "-q30m")
        wait_for("exim greets", lambda: process.poll() is not None or self._greets())
        assert process.poll() is None, self.machine.read("/var/log/exim4.out") + self.log()

    def _greets(self) -> bool:
        try:
            with socket.create_connection((self.machine.address, 25), 1) as sock:
                sock.settimeout(2)
                return sock.recv(4) == b"220 "
        except OSError:
            return False

    def log(self) -> str:
        """Its main log."""
        return self.machine.read("/var/log/exim4/mainlog")
