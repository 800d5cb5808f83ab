"""TLS from the first byte (smtpd_tls_wrappermode), as on port 465."""

import smtplib
import socket
import ssl
import time

from tests.smtp_peer import Certificates
from tests.system.support_lifecycle import instance, until

SERVICE = "{} inet n - n - - smtpd -o syslog_name=postfix/smtps -o smtpd_tls_wrappermode={} {}\n"


def test_a_port_in_wrapper_mode_speaks_tls_from_the_first_byte_and_takes_mail() -> None:
    with instance(smtpd_tls_loglevel="1") as system:
        chain = Certificates(system.etc).file
        master = (system.etc / "master.cf").read_text().partition("\n")[2]
        (system.etc / "master.cf").write_text(
            SERVICE.format(system.port, "yes", f"-o smtpd_tls_chain_files={chain}") + master
        )
        system.must("start")
        with socket.create_connection(("127.0.0.1", system.port), 20) as plain:
            trusting = ssl.create_default_context()
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            with smtplib.SMTP_SSL("127.0.0.1", system.port, context=trusting, timeout=20) as client:
                client.ehlo("c.example")
                assert not client.has_extn("starttls")
                client.sendmail("a@src.test", ["postmaster@[127.0.0.1]"], "Subject: x\r\n\r\nx\r\n")
            plain.sendall(b"EHLO in.the.clear\r\n" * 10)
            plain.settimeout(20)
            try:
                said = plain.recv(4096)
            except ConnectionResetError:
                said = b""
            assert b"220" not in said and b"250" not in said
        system.must("stop")
        assert "postfix/smtps/smtpd[" in system.log_text()
        assert "TLS connection established from" in system.log_text()


def test_a_worker_waits_for_a_client_that_has_not_begun_its_handshake() -> None:
    with instance(smtpd_processes_max_idle="1") as system:
        chain = Certificates(system.etc).file
        master = (system.etc / "master.cf").read_text().partition("\n")[2]
        (system.etc / "master.cf").write_text(
            SERVICE.format(system.port, "yes", f"-o smtpd_tls_chain_files={chain}") + master
        )
        system.must("start")
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", system.port), 20) as plain:
            time.sleep(3)  # longer than an idle worker stays
            with trusting.wrap_socket(plain) as client:
                assert client.recv(4096).startswith(b"220 ")
        system.must("stop")


def test_a_certificate_that_goes_bad_is_kept_until_it_is_good_again() -> None:
    with instance(smtpd_processes_max_idle="1", smtpd_tls_security_level="may") as system:
        chain = Certificates(system.etc).file
        system.configure(smtpd_tls_chain_files=str(chain))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            wrapped = free.getsockname()[1]
        with (system.etc / "master.cf").open("a") as file:
            file.write(SERVICE.format(f"127.0.0.1:{wrapped}", "yes", ""))
        system.must("start")
        good = chain.read_bytes()
        chain.write_bytes(good[:100])
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        with smtplib.SMTP_SSL("127.0.0.1", wrapped, context=trusting, timeout=20) as client:
            assert client.noop()[0] == 250
        with smtplib.SMTP("127.0.0.1", system.port, timeout=20) as client:
            client.starttls(context=trusting)
            assert client.noop()[0] == 250
        for words in ("warning: cannot use certificate", "going on with what it was before"):
            until(lambda words=words: words in system.log_text(), words)  # lines are gathered for a moment
        assert system.mta("reload").returncode != 0 or "reload refused" in system.log_text()
        system.must("stop")


def test_wrapper_mode_without_a_certificate_does_not_start() -> None:
    with instance() as system:
        (system.etc / "master.cf").write_text(SERVICE.format(system.port, "yes", ""))
        done = system.mta("start")
        assert done.returncode == 78
        assert "smtpd_tls_wrappermode = yes needs a certificate: set smtpd_tls_chain_files" in done.stderr
        assert "master.cf:1: " in done.stderr
