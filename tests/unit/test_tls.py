"""TLS parameters: what they mean, and that wrong ones are found when they are read."""

import contextlib
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from mta.tls import (
    TlsClientSettings,
    TlsError,
    TlsServerSettings,
    client_context,
    client_level,
    describe,
    needs_more_than_may,
    offered_context,
    parse_protocols,
    server_context,
)
from tests.smtp_peer import Certificates

CLIENT = TlsClientSettings("may", False, False, ">=TLSv1", "medium", (), 0, "HIGH", "HIGH:MEDIUM")
_FILES = ((), "", "", "", "")
SERVER = TlsServerSettings("may", False, False, False, *_FILES, ">=TLSv1", "medium", (), "HIGH", "HIGH:MEDIUM")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("", {0x301, 0x302, 0x303, 0x304}), (">=TLSv1.2", {0x303, 0x304}), ("<=TLSv1.2, >=TLSv1.1", {0x302, 0x303}),
        ("!SSLv2, !SSLv3", {0x301, 0x302, 0x303, 0x304}), ("!SSLv2 !SSLv3 !TLSv1 !TLSv1.1", {0x303, 0x304}),
        ("TLSv1.2", {0x303}), ("tlsv1.1:tlsv1.3", {0x302, 0x304}), (">=0x0303", {0x303, 0x304}),
    ],
)  # fmt: skip
def test_protocols_are_read_in_both_syntaxes(text: str, left: set[int]) -> None:
    assert parse_protocols(text) == left


@pytest.mark.parametrize("text", ["TLSv9", ">=", "!x", "SSLv3", ">=TLSv1.3 <=TLSv1.2"])
def test_protocols_that_make_no_sense_are_errors(text: str) -> None:
    with pytest.raises(TlsError):
        parse_protocols(text)


def test_levels_come_from_old_and_new_parameters() -> None:
    assert client_level(CLIENT) == "may"
    assert client_level(replace(CLIENT, smtp_tls_security_level="")) == "none"
    assert client_level(replace(CLIENT, smtp_tls_security_level="", smtp_use_tls=True)) == "may"
    assert client_level(replace(CLIENT, smtp_tls_security_level="", smtp_enforce_tls=True)) == "encrypt"
    assert [needs_more_than_may(level) for level in ("", "none", "may", "encrypt", "dane", "secure", "typo")] == [
        False, False, False, True, True, True, True,
    ]  # fmt: skip


def test_a_client_at_may_verifies_nothing_and_at_none_has_no_context() -> None:
    context = client_context(CLIENT)
    assert context is not None and context.verify_mode == ssl.CERT_NONE and not context.check_hostname
    assert client_context(replace(CLIENT, smtp_tls_security_level="none")) is None
    gap = client_context(replace(CLIENT, smtp_tls_protocols="TLSv1.1 TLSv1.3"))
    assert gap is not None and gap.options & ssl.OP_NO_TLSv1_2
    with pytest.raises(TlsError):
        client_context(replace(CLIENT, tls_medium_cipherlist="NOSUCHCIPHER"))


def test_a_server_needs_a_certificate_that_can_be_read(tmp_path: Path) -> None:
    chain = str(Certificates(tmp_path).file)
    assert server_context(SERVER) is None
    assert server_context(replace(SERVER, smtpd_tls_security_level="none", smtpd_tls_cert_file="/gone")) is None
    assert server_context(replace(SERVER, smtpd_tls_chain_files=(chain,))) is not None
    assert server_context(replace(SERVER, smtpd_tls_cert_file=chain)) is not None
    (tmp_path / "junk").write_text("junk")
    for bad in ("/gone", str(tmp_path / "junk")):
        with pytest.raises(TlsError, match="cannot use certificate"):
            server_context(replace(SERVER, smtpd_tls_eccert_file=bad))


def test_a_key_may_stand_in_a_file_of_its_own_before_its_certificates(tmp_path: Path) -> None:
    chains = []
    for name in ("rsa", "other"):
        (tmp_path / name).mkdir()
        whole = Certificates(tmp_path / name).file.read_text()
        start = whole.index("-----BEGIN CERTIFICATE")
        start, end = (0, whole.index("-----BEGIN", 10)) if start == 0 else (start, len(whole))
        certificate = whole[start:end]
        key = whole.replace(certificate, "")
        assert "PRIVATE KEY" in key and "PRIVATE KEY" not in certificate
        for part, text in (("key", key), ("chain", certificate), ("both", key + certificate)):
            (tmp_path / name / part).write_text(text)
        chains.append({part: str(tmp_path / name / part) for part in ("key", "chain", "both")})
    one, two = chains
    for files in (
        (one["key"], one["chain"]), (one["both"], two["key"], two["chain"]), (two["key"], two["chain"], one["both"]),
    ):  # fmt: skip
        assert server_context(replace(SERVER, smtpd_tls_chain_files=files)) is not None
    for wrong in ([one["key"]], [one["chain"], one["key"]], [one["key"], two["chain"]], [one["both"], one["key"]],
                  [one["key"], two["both"]], [one["key"], two["key"], two["chain"]]):  # fmt: skip
        with pytest.raises(TlsError, match="cannot use certificate"):
            server_context(replace(SERVER, smtpd_tls_chain_files=tuple(wrong)))


def test_without_a_usable_certificate_mail_comes_in_the_clear_but_not_in_wrapper_mode(tmp_path: Path) -> None:
    gone = replace(SERVER, smtpd_tls_cert_file="/gone")
    context, why = offered_context(gone)
    assert context is None and why.startswith("cannot use certificate /gone with key /gone")
    assert offered_context(SERVER) == (None, "")
    with pytest.raises(TlsError, match="cannot use certificate"):
        offered_context(replace(gone, smtpd_tls_wrappermode=True))
    chain = str(Certificates(tmp_path).file)
    with pytest.raises(TlsError, match="NOSUCH"):
        offered_context(replace(SERVER, smtpd_tls_cert_file=chain, smtpd_tls_protocols="NOSUCH"))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_protocols_and_short_keys_are_better_than_clear_text(version: ssl.TLSVersion, tmp_path: Path) -> None:
    chain = str(Certificates(tmp_path, rsa.generate_private_key(65537, 1024)).file)  # noqa: S505
    server = server_context(replace(SERVER, smtpd_tls_chain_files=(chain,)))
    client = client_context(CLIENT)
    assert server is not None and client is not None
    client.minimum_version = client.maximum_version = version
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    for end in ends * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()
    assert ends[0].version() == ends[1].version() == version.name.replace("_", ".")


def test_wrapper_mode_needs_a_certificate_and_no_level(tmp_path: Path) -> None:
    wrapped = replace(SERVER, smtpd_tls_security_level="", smtpd_tls_wrappermode=True)
    with pytest.raises(TlsError, match="smtpd_tls_wrappermode = yes needs a certificate"):
        server_context(wrapped)
    assert server_context(replace(wrapped, smtpd_tls_cert_file=str(Certificates(tmp_path).file))) is not None


def test_a_connection_without_tls_is_described_as_unknown() -> None:
    assert describe(None) == "unknown"
