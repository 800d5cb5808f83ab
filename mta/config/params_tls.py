"""Parameters of TLS on both sides.  Levels above `may` are refused until they are built."""

from mta.config.declare import (
    changed,
    count,
    ignored_by_design,
    items,
    not_yet,
    only_default,
    path,
    tables,
    text,
    time,
    word,
    yes_no,
)
from mta.config.param import Param

_GRADES = ("export", "low", "medium", "high", "null")
_LATER = ("encrypt", "dane", "dane-only", "fingerprint", "verify", "secure")
_LEVEL = "mail would be exchanged without the protection asked for"
_SESSION = "Sessions are resumed from memory and tickets; no cache file is needed."
_MANDATORY = "Only for levels above may, which are refused."

SERVER: tuple[Param, ...] = (
    word("smtpd_tls_security_level", "", "none; may: offer STARTTLS.", "", "none", "may", later=_LATER),
    yes_no("smtpd_use_tls", "no", "Old form of smtpd_tls_security_level = may; counts when that is empty."),
    yes_no("smtpd_tls_wrappermode", "no",
           "TLS from the first byte, as on port 465; for -o in master.cf. Needs a certificate, whatever the level."),
    items("smtpd_tls_chain_files", "", "PEM files: a key followed by its certificates, in one file or two; repeated."),
    path("smtpd_tls_cert_file", "", "PEM file with the server's certificate and its intermediates."),
    path("smtpd_tls_key_file", "$smtpd_tls_cert_file", "Its key."),
    path("smtpd_tls_eccert_file", "", "The same for an elliptic-curve certificate."),
    path("smtpd_tls_eckey_file", "$smtpd_tls_eccert_file", "Its key."),
    text("smtpd_tls_protocols", ">=TLSv1", "Versions offered: >=TLSv1.2, or !SSLv3 style exclusions."),
    word("smtpd_tls_ciphers", "medium", "Weakest cipher grade accepted.", *_GRADES),
    items("smtpd_tls_exclude_ciphers", "", "Ciphers not used."),
    count("smtpd_tls_loglevel", "0", "0: nothing, 1: one line per handshake, more: for debugging.", 0, 4),
    only_default(yes_no("smtpd_enforce_tls", "no", "Old form of level encrypt."), _LEVEL),
    only_default(yes_no("smtpd_tls_req_ccert", "no", "Demand a client certificate."), _LEVEL),
    ignored_by_design(yes_no("smtpd_tls_auth_only", "no", "AUTH is not offered, in the clear or otherwise.")),
    ignored_by_design(text("smtpd_tls_mandatory_protocols", ">=TLSv1", _MANDATORY)),
    ignored_by_design(word("smtpd_tls_mandatory_ciphers", "medium", _MANDATORY, *_GRADES)),
    ignored_by_design(items("smtpd_tls_mandatory_exclude_ciphers", "", _MANDATORY)),
    ignored_by_design(text("smtpd_tls_session_cache_database", "", _SESSION)),
    ignored_by_design(time("smtpd_tls_session_cache_timeout", "3600s", _SESSION, 0)),
    *not_yet(
        yes_no("smtpd_tls_received_header", "no", "Note protocol and cipher in Received:."),
    ),
)  # fmt: skip

CLIENT: tuple[Param, ...] = (
    changed(word("smtp_tls_security_level", "",
                 "none; may: use TLS when the server offers it. Empty: as the old smtp_use_tls says.",
                 "", "none", "may", later=_LATER), "may"),
    yes_no("smtp_use_tls", "no", "Old form of smtp_tls_security_level = may; counts when main.cf leaves that out."),
    text("smtp_tls_protocols", ">=TLSv1", "Versions used: >=TLSv1.2, or !SSLv3 style exclusions."),
    word("smtp_tls_ciphers", "medium", "Weakest cipher grade used.", *_GRADES),
    items("smtp_tls_exclude_ciphers", "", "Ciphers not used."),
    count("smtp_tls_loglevel", "0", "0: nothing, 1: one line per handshake, more: for debugging.", 0, 4),
    only_default(yes_no("smtp_enforce_tls", "no", "Old form of levels encrypt and verify."), _LEVEL),
    only_default(tables("smtp_tls_policy_maps", "", "TLS level by next hop."), _LEVEL),
    only_default(tables("smtp_tls_per_site", "", "Old form of smtp_tls_policy_maps."), _LEVEL),
    only_default(yes_no("smtp_tls_wrappermode", "no", "TLS from the first byte, as on port 465."), _LEVEL),
    ignored_by_design(text("smtp_tls_mandatory_protocols", ">=TLSv1", _MANDATORY)),
    ignored_by_design(word("smtp_tls_mandatory_ciphers", "medium", _MANDATORY, *_GRADES)),
    ignored_by_design(items("smtp_tls_mandatory_exclude_ciphers", "", _MANDATORY)),
    ignored_by_design(text("smtp_tls_session_cache_database", "", _SESSION)),
    ignored_by_design(time("smtp_tls_session_cache_timeout", "3600s", _SESSION, 0)),
    ignored_by_design(path("smtp_tls_CAfile", "", "Certificates are not verified at level may.")),
    ignored_by_design(path("smtp_tls_CApath", "", "Certificates are not verified at level may.")),
)  # fmt: skip

LMTP: tuple[Param, ...] = (
    only_default(word("lmtp_tls_security_level", "", "TLS level of the LMTP client.", "", "none", "may", later=_LATER),
                 _LEVEL),
    only_default(yes_no("lmtp_enforce_tls", "no", "Old form of levels encrypt and verify."), _LEVEL),
    only_default(tables("lmtp_tls_policy_maps", "", "TLS level by next hop."), _LEVEL),
    only_default(yes_no("lmtp_tls_wrappermode", "no", "TLS from the first byte."), _LEVEL),
)  # fmt: skip

COMMON: tuple[Param, ...] = (
    text("tls_high_cipherlist", "aNULL:-aNULL:HIGH:@STRENGTH", "OpenSSL's list for grade high."),
    text("tls_medium_cipherlist", "aNULL:-aNULL:HIGH:MEDIUM:+RC4:@STRENGTH", "OpenSSL's list for grade medium."),
)

PARAMS = SERVER + CLIENT + LMTP + COMMON
