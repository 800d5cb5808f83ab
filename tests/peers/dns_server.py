"""The laboratory's DNS: a real unbound, authoritative for `test.`, and the zone the tests speak about."""

import socket

from tests.peers.machine import Machine, wait_for

ADDRESS = "127.0.0.53"

ZONE = """\
$ORIGIN test.
$TTL 5
@            SOA   ns hostmaster 1 3600 600 86400 1
@            NS    ns
ns           A     127.0.0.53
down         A     192.0.2.13          ; nothing listens there
; we
host         MX    10 mx.host
mx.host      A     127.0.0.1
; a real Postfix, behind a preferred host that is down
postfix      MX    10 down
postfix      MX    20 mx.postfix
mx.postfix   A     192.0.2.11
grey         MX    10 mx.postfix
; a real Exim, the same
exim         MX    10 down
exim         MX    20 mx.exim
mx.exim      A     192.0.2.12
nomx         A     192.0.2.12          ; RFC 5321 s5.1: the host itself is the mail exchanger
alias        CNAME exim
; what cannot work
alldown      MX    10 down
nullmx       MX    0 .
nodata       TXT   "neither MX nor address"
loop         MX    10 mx.host
; what a test listens on itself
sink         A     192.0.2.21
hang         A     192.0.2.22
"""

UNBOUND = f"""\
server:
    interface: {ADDRESS}
    do-ip6: no
    do-daemonize: no
    username: ""
    chroot: ""
    use-syslog: no
    logfile: ""
    access-control: 127.0.0.0/8 allow
    do-not-query-localhost: no
    local-zone: "test." nodefault
    domain-insecure: "test."
    domain-insecure: "broken."
    module-config: "iterator"
    pidfile: ""
remote-control:
    control-enable: no
auth-zone:
    name: "test."
    zonefile: "/etc/unbound/test.zone"
    for-downstream: yes
    for-upstream: yes
forward-zone:
    name: "broken."
    forward-addr: 127.0.0.54@5399
forward-zone:
    name: "."
    forward-addr: 127.0.0.54@5399
"""


def start(machine: Machine) -> None:
    """Serve the zone; names under `broken.` and the rest of the world give SERVFAIL."""
    machine.write("/etc/unbound/unbound.conf", UNBOUND)
    machine.write("/etc/unbound/test.zone", ZONE)
    machine.run("unbound-checkconf")
    process = machine.spawn("unbound", "-d")
    wait_for("unbound answers", lambda: process.poll() is not None or answers())
    assert process.poll() is None, machine.read("/var/log/unbound.out")


def answers() -> bool:
    """True when a query for ns.test A gets any answer."""
    query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02ns\x04test\x00\x00\x01\x00\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.5)
        try:
            sock.sendto(query, (ADDRESS, 53))
            return sock.recv(512)[:2] == b"\x12\x34"
        except OSError:
            return False
