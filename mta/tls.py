"""TLS contexts for both directions, made from postconf(5) parameters.

Outgoing, at security level `may`: encrypt when the server offers it, verify nothing (there is nothing to verify
against: without a policy every host name may be an attacker's), and take old protocols and weak keys too, since
the alternative is no encryption.  Levels above `may` are for the caller to refuse: needs_more_than_may().
Incoming, the same holds: who speaks TLS 1.0 only would else come in the clear.

See also: RFC 3207, RFC 7435 (opportunistic security), postconf(5) smtp_tls_security_level, smtpd_tls_chain_files
"""

import asyncio.sslproto
import re
import ssl
import warnings

from mta.record import dataclass

VERSIONS = {
    "SSLV2": 0x0200, "SSLV3": 0x0300, "TLSV1": 0x0301, "TLSV1.1": 0x0302, "TLSV1.2": 0x0303, "TLSV1.3": 0x0304,
}  # fmt: skip
_NO = {
    0x0301: ssl.OP_NO_TLSv1, 0x0302: ssl.OP_NO_TLSv1_1, 0x0303: ssl.OP_NO_TLSv1_2, 0x0304: ssl.OP_NO_TLSv1_3,
}  # fmt: skip
BUFFER = 32 * 1024  # octets per connection instead of asyncio's 256 KiB
PEM_LIMIT = 1 << 20  # octets of a file with keys and certificates
MAY = ("", "none", "may")
_SEPARATOR = re.compile(r"[\s,:]+")


class TlsError(Exception):
    """A parameter, certificate or key that cannot be used; str() is for the administrator."""


class CertificateError(TlsError):
    """It is the certificate or its key."""


@dataclass(frozen=True, slots=True)
class TlsClientSettings:
    """postconf(5): outgoing."""

    smtp_tls_security_level: str
    smtp_use_tls: bool
    smtp_enforce_tls: bool
    smtp_tls_protocols: str
    smtp_tls_ciphers: str
    smtp_tls_exclude_ciphers: tuple[str, ...]
    smtp_tls_loglevel: int
    tls_high_cipherlist: str
    tls_medium_cipherlist: str


@dataclass(frozen=True, slots=True)
class TlsServerSettings:
    """postconf(5): incoming.  smtpd_tls_chain_files: keys, each followed by its certificates."""

    smtpd_tls_security_level: str
    smtpd_use_tls: bool
    smtpd_enforce_tls: bool
    smtpd_tls_wrappermode: bool
    smtpd_tls_chain_files: tuple[str, ...]
    smtpd_tls_cert_file: str
    smtpd_tls_key_file: str
    smtpd_tls_eccert_file: str
    smtpd_tls_eckey_file: str
    smtpd_tls_protocols: str
    smtpd_tls_ciphers: str
    smtpd_tls_exclude_ciphers: tuple[str, ...]
    tls_high_cipherlist: str
    tls_medium_cipherlist: str


def client_level(settings: TlsClientSettings) -> str:
    """The security level in effect: smtp_tls_security_level, else what the obsolete parameters mean."""
    level = settings.smtp_tls_security_level
    if level:
        return level
    return "encrypt" if settings.smtp_enforce_tls else "may" if settings.smtp_use_tls else "none"


def server_level(settings: TlsServerSettings) -> str:
    """As client_level, for smtpd_tls_security_level; wrapper mode is nothing but encrypted."""
    if settings.smtpd_tls_wrappermode:
        return "encrypt"
    level = settings.smtpd_tls_security_level
    if level:
        return level
    return "encrypt" if settings.smtpd_enforce_tls else "may" if settings.smtpd_use_tls else "none"


@dataclass(frozen=True, slots=True)
class ClientTls:
    """What the SMTP client gets.  context None: clear text only.  loglevel: 1 and more logs each handshake."""

    level: str
    context: ssl.SSLContext | None
    loglevel: int = 0


def client_tls(settings: TlsClientSettings) -> ClientTls:
    """Level, context and log level of the outgoing side.  TlsError: a parameter makes no sense."""
    return ClientTls(client_level(settings), client_context(settings), settings.smtp_tls_loglevel)


def needs_more_than_may(level: str) -> bool:
    """True when mail must not go out unverified or in the clear: defer rather than ignore it."""
    return level not in MAY


def client_context(settings: TlsClientSettings) -> ssl.SSLContext | None:
    """Context for opportunistic TLS, None at level none.  TlsError: a parameter makes no sense."""
    if client_level(settings) == "none":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _restrict(context, settings.smtp_tls_protocols, "smtp_tls_protocols")
    ciphers = _cipher_list(settings.smtp_tls_ciphers, settings, settings.smtp_tls_exclude_ciphers)
    _set_ciphers(context, f"{ciphers}:@SECLEVEL=0", "smtp_tls_ciphers")
    return context


def server_context(settings: TlsServerSettings) -> ssl.SSLContext | None:
    """Context for STARTTLS or wrapper mode, None when the level is none or no certificate is configured.

    TlsError: a certificate or key cannot be read or does not fit, or wrapper mode has none.
    """
    if server_level(settings) == "none":
        return None
    pairs = _chains(settings.smtpd_tls_chain_files)
    if not pairs:
        for certificate, key in (
            (settings.smtpd_tls_cert_file, settings.smtpd_tls_key_file),
            (settings.smtpd_tls_eccert_file, settings.smtpd_tls_eckey_file),
        ):
            if certificate and certificate != "none":
                pairs.append((certificate, key or certificate))
    if not pairs and settings.smtpd_tls_wrappermode:
        raise TlsError("smtpd_tls_wrappermode = yes needs a certificate: set smtpd_tls_chain_files")
    if not pairs:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _restrict(context, settings.smtpd_tls_protocols, "smtpd_tls_protocols")
    ciphers = _cipher_list(settings.smtpd_tls_ciphers, settings, settings.smtpd_tls_exclude_ciphers)
    _set_ciphers(context, f"{ciphers}:@SECLEVEL=0", "smtpd_tls_ciphers")  # before the keys, which it lets in
    for certificate, key in pairs:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ValueError) as error:
            why = _why_unusable(error)
            raise CertificateError(f"cannot use certificate {certificate} with key {key}: {why}") from None
    return context


def _chains(files: tuple[str, ...]) -> list[tuple[str, str]]:
    """(certificates, key) of smtpd_tls_chain_files; a key may stand in a file by itself, before its certificates."""
    pairs, key = [], ""
    for file in files:
        has_key, has_certificates = _holds(file)
        if key and not has_key:
            pairs.append((file, key))
            key = ""
            continue
        if key:
            pairs.append((key, key))  # nothing of its own follows: loading it says so
        key = file if has_key and not has_certificates else ""
        if not key:
            pairs.append((file, file))
    return [*pairs, (key, key)] if key else pairs


def _holds(file: str) -> tuple[bool, bool]:
    """A key, certificates?  Of what cannot be read the loading says why."""
    try:
        with open(file, "rb") as opened:
            text = opened.read(PEM_LIMIT)
    except OSError:
        return True, True
    return b"PRIVATE KEY-----" in text, b"CERTIFICATE-----" in text


def offered_context(settings: TlsServerSettings) -> tuple[ssl.SSLContext | None, str]:
    """server_context, and why STARTTLS is not offered although a certificate is named: at level may mail comes without.

    As in Postfix: a key that mail_owner may not read is no reason to receive no mail.  TlsError: what else is wrong,
    and all of it in wrapper mode.
    """
    try:
        return server_context(settings), ""
    except CertificateError as error:
        if settings.smtpd_tls_wrappermode:
            raise
        return None, f"{error}; STARTTLS is not offered"


def _why_unusable(error: OSError | ValueError) -> str:
    if isinstance(error, PermissionError):
        return f"{error.strerror}: give mail_owner's account the right to read it"
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key is not that of the certificate"
        return f"not complete, or no key and certificate in PEM format ({error.reason or error})"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def parse_protocols(text: str, name: str = "protocols") -> frozenset[int]:
    """Read ">=TLSv1.2", "<=TLSv1.3", "!SSLv2, !SSLv3, !TLSv1" or "TLSv1.2 TLSv1.3" -> the versions left, of TLS 1.0 on.

    Versions may also be numbers (0x0303 or 0303).  TlsError: a word that is none of these.
    """
    known = {v for v in VERSIONS.values() if v >= 0x0301}
    low, high, named, without = 0, 0xFFFF, set(), set()
    for word in filter(None, _SEPARATOR.split(text)):
        if word.startswith(">="):
            low = _version(word[2:], name)
        elif word.startswith("<="):
            high = _version(word[2:], name)
        elif word.startswith("!"):
            without.add(_version(word[1:], name))
        else:
            named.add(_version(word, name))
    left = {v for v in (named or known) if low <= v <= high} - without
    if not left & known:
        raise TlsError(f"{name} = {text}: no protocol is left")
    return frozenset(left & known)


def _version(word: str, name: str) -> int:
    if word.upper() in VERSIONS:
        return VERSIONS[word.upper()]
    try:
        return int(word.removeprefix("0x"), 16)
    except ValueError:
        raise TlsError(f"{name}: unknown protocol {word}") from None


def _restrict(context: ssl.SSLContext, protocols: str, name: str) -> None:
    left = parse_protocols(protocols, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TLS 1.0 and 1.1 are, and still beat clear text
        context.minimum_version = ssl.TLSVersion(min(left))
        context.maximum_version = ssl.TLSVersion(max(left)) if max(left) < 0x0304 else ssl.TLSVersion.MAXIMUM_SUPPORTED
        for version, flag in _NO.items():
            if min(left) < version < max(left) and version not in left:
                context.options |= flag


def _cipher_list(grade: str, settings: TlsClientSettings | TlsServerSettings, excluded: tuple[str, ...]) -> str:
    base = settings.tls_high_cipherlist if grade.lower() == "high" else settings.tls_medium_cipherlist
    return ":".join([base, *(f"!{word}" for word in excluded), "!aNULL", "!eNULL"])


def _set_ciphers(context: ssl.SSLContext, ciphers: str, name: str) -> None:
    try:
        context.set_ciphers(ciphers)
    except ssl.SSLError:
        raise TlsError(f"{name}: no usable cipher in {ciphers}") from None


def describe(connection: ssl.SSLObject | ssl.SSLSocket | None) -> str:
    """ "TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)", as in Postfix's log and Received: lines."""
    cipher = connection.cipher() if connection is not None else None
    if connection is None or cipher is None:
        return "unknown"
    name, _, bits = cipher
    return f"{connection.version()} with cipher {name} ({bits}/{bits} bits)"


def why_no_tls(error: Exception) -> str:
    """Why a handshake failed, for the log in Postfix's words; ssl.SSLError is an OSError."""
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason
    if isinstance(error, ConnectionAbortedError):  # what the loops make of their time limit
        return "Connection timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "lost connection" if isinstance(error, ConnectionError) else type(error).__name__


def small_buffers() -> None:
    """Let asyncio's TLS take 32 KiB per connection instead of 256; once, at start, by whoever builds the process.

    A private attribute: where it does not exist (uvloop has its own TLS), nothing happens.
    """
    if hasattr(asyncio.sslproto.SSLProtocol, "max_size"):
        setattr(asyncio.sslproto.SSLProtocol, "max_size", BUFFER)  # noqa: B010 (not in the type stubs)
