"""A real Postfix as a peer: mx.postfix.test, port 25 of its own address; and its tools on our spool."""

import socket
from collections.abc import Mapping

from tests.peers.machine import Machine, wait_for

GREYLIST_PORT = "192.0.2.11:10023"

MAIN_CF = {
    "compatibility_level": "3.6",
    "myhostname": "mx.postfix.test",
    "mydomain": "postfix.test",
    "myorigin": "postfix.test",
    "mydestination": "postfix.test, grey.test, $myhostname, localhost",
    "mynetworks": "192.0.2.11/32",
    "inet_interfaces": "192.0.2.11",
    "inet_protocols": "ipv4",
    "smtp_bind_address": "192.0.2.11",
    "smtpd_tls_security_level": "none",
    "smtp_tls_security_level": "none",
    "maillog_file": "/var/log/mail.log",
    "alias_maps": "hash:/etc/aliases",
    "smtpd_restriction_classes": "greylist",
    "greylist": f"check_policy_service inet:{GREYLIST_PORT}",
    "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
    "smtpd_recipient_restrictions": "check_recipient_access inline:{grey.test=greylist}",
}


def main_cf(settings: Mapping[str, str]) -> str:
    """main.cf's text."""
    return "".join(f"{name} = {value}\n" for name, value in settings.items())


class Postfix:
    """Start, stop and look at the Postfix of one machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._shares = False
        machine.write("/etc/postfix/main.cf", main_cf(MAIN_CF))
        machine.run("postconf", "-F", "*/*/chroot=n")
        machine.run("postconf", "-Me", "postlog/unix-dgram=postlog unix-dgram n - n - 1 postlogd")

    def start(self, directory: str = "/etc/postfix") -> None:
        """postfix start, and wait until its master has the lock."""
        self.machine.run("postfix", "-c", directory, "start", timeout=60)
        wait_for("postfix runs", lambda: self.running(directory))

    def running(self, directory: str = "/etc/postfix") -> bool:
        """postfix status."""
        return self.machine.run("postfix", "-c", directory, "status", status=None).returncode == 0

    def stop(self, directory: str = "/etc/postfix") -> None:
        """postfix stop; no complaint when it does not run."""
        if self.running(directory):
            self.machine.run("postfix", "-c", directory, "stop", timeout=60)
            wait_for("postfix is gone", lambda: not self.running(directory))

    def start_greylisting(self, delay: int) -> None:
        """postgrey for grey.test: everybody is refused with 450 for so many seconds."""
        self.machine.path("/var/lib/postgrey").mkdir(parents=True, exist_ok=True)
        self.machine.run("chown", "postgrey", "/var/lib/postgrey")
        self.machine.spawn(
            "postgrey", f"--inet={GREYLIST_PORT}", f"--delay={delay}", "--auto-whitelist-clients=0", "--user=postgrey"
        )
        wait_for("postgrey answers", lambda: self._greylist_up())

    def _greylist_up(self) -> bool:
        host, _, port = GREYLIST_PORT.partition(":")
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            return False
        return True

    def log(self) -> str:
        """Its mail log."""
        return self.machine.read("/var/log/mail.log")

    def tools_on(self, spool_of: Machine, queue_directory: str, data_directory: str, owner: str) -> str:
        """See another machine's spool; returns the -c directory with which our tools work on it."""
        if not self._shares:
            uid, gid = (spool_of.output("id", flag, owner).strip() for flag in ("-u", "-g"))
            self.machine.run("groupadd", "--system", "--gid", gid, owner)
            self.machine.run("useradd", "--system", "--uid", uid, "--gid", gid, "--no-create-home", owner)
            self.machine.share(spool_of, queue_directory)
            self.machine.share(spool_of, data_directory)
            self._shares = True
        settings = {
            **MAIN_CF,
            "queue_directory": queue_directory,
            "data_directory": data_directory,
            "mail_owner": owner,
            "maillog_file": "",
        }
        self.machine.write("/etc/postfix-on-mta/main.cf", main_cf(settings))
        self.machine.write("/etc/postfix-on-mta/master.cf", self.machine.path("/etc/postfix/master.cf").read_bytes())
        alternate = main_cf({**MAIN_CF, "alternate_config_directories": "/etc/postfix-on-mta"})
        self.machine.write("/etc/postfix/main.cf", alternate)
        return "/etc/postfix-on-mta"
