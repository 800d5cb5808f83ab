"""Postfix parameters beyond the declared ones: which are of no consequence here, and which must not be ignored.

postfix_defaults.txt lists name and default of every Postfix 3.7.11 parameter that no params_*.py declares.
"""

import os

from mta.config.param import Kind, Param

# Nothing here depends on these: paths of files that we do not have, knobs of daemons whose work is done in
# another way, speed and logging of things that are not there.
_NOOP = """
    alternate_config_directories application_event_drain_time berkeley_db_create_buffer_size
    berkeley_db_read_buffer_size biff command_directory connection_cache_protocol_timeout
    connection_cache_service_name connection_cache_status_update_time connection_cache_ttl_limit
    daemon_directory daemon_timeout debug_peer_level debug_peer_list debugger_command
    default_delivery_slot_cost default_delivery_slot_discount default_delivery_slot_loan
    default_extra_recipient_limit default_minimum_delivery_slots default_recipient_limit
    default_recipient_refill_delay default_recipient_refill_limit destination_concurrency_feedback_debug
    dont_remove fault_injection_code fork_attempts fork_delay helpful_warnings html_directory ipc_idle
    ipc_timeout ipc_ttl lmdb_map_size mailq_path manpage_directory max_idle max_use meta_directory
    newaliases_path openssl_path postlogd_watchdog_timeout proxy_read_maps proxy_write_maps
    qmgr_clog_warn_time qmgr_daemon_timeout qmgr_fudge_factor qmgr_ipc_timeout qmgr_message_recipient_minimum
    readme_directory sample_directory sendmail_path service_throttle_time shlib_directory
    sun_mailtool_compatibility tls_daemon_random_bytes tls_random_bytes tls_random_exchange_name
    tls_random_prng_update_period tls_random_reseed_period tls_random_source
    tls_legacy_public_key_fingerprints smtpd_tls_dh1024_param_file smtpd_tls_dh512_param_file
    smtpd_tls_eecdh_grade tls_export_cipherlist tls_low_cipherlist trigger_timeout
    smtp_tls_note_starttls_offer lmtp_tls_note_starttls_offer lmtp_tls_session_cache_database
    lmtp_tls_session_cache_timeout respectful_logging
"""
NOOP = frozenset(_NOOP.split())
NOOP_SUFFIXES = ("_service_name",)

_LEVEL = "mail would be exchanged without the protection asked for"
_MILTER = "mail would not be seen by the milters"
_REJECT = "mail that it refuses would be accepted"
_LOGIN = "mail would be sent without logging in"
_FILTER = "mail that the filter lets wait would be returned"
UNSAFE: dict[str, str] = {
    "smtpd_milters": _MILTER,
    "non_smtpd_milters": _MILTER,
    "smtpd_milter_maps": _MILTER,
    "content_filter": "mail would not pass the content filter",
    "smtpd_proxy_filter": "mail would not pass the content filter",
    "smtpd_upstream_proxy_protocol": "every client would look like the proxy",
    "smtpd_command_filter": "commands would not be filtered",
    "smtpd_dns_reply_filter": "DNS replies would not be filtered",
    "smtp_dns_reply_filter": "DNS replies would not be filtered",
    "smtp_reply_filter": _FILTER,
    "lmtp_reply_filter": _FILTER,
    "default_delivery_status_filter": _FILTER,
    "lmtp_delivery_status_filter": _FILTER,
    "local_delivery_status_filter": _FILTER,
    "smtp_delivery_status_filter": _FILTER,
    "virtual_delivery_status_filter": _FILTER,
    "smtpd_sasl_auth_enable": "clients would neither be asked to log in nor be able to",
    "smtp_sender_dependent_authentication": _LOGIN,
    "lmtp_sender_dependent_authentication": _LOGIN,
    "local_login_sender_maps": "local users could send under any address",
    "master_service_disable": "services that are to be off would be served",
    "smtp_bind_address_enforce": "mail would leave from another address",
    "lmtp_bind_address_enforce": "mail would leave from another address",
    "lmtp_tls_per_site": _LEVEL,
    "smtp_tls_fingerprint_cert_match": _LEVEL,
    "smtp_tls_trust_anchor_file": _LEVEL,
    "tls_server_sni_maps": "clients would be shown a wrong certificate",
    "strict_7bit_headers": _REJECT,
    "strict_8bitmime": _REJECT,
    "strict_8bitmime_body": _REJECT,
    "strict_mime_encoding_domain": _REJECT,
}


def read_defaults() -> dict[str, Param]:
    """Every parameter of postfix_defaults.txt as one that is known and not honoured."""
    found: dict[str, Param] = {}
    with open(os.path.join(os.path.dirname(__file__), "postfix_defaults.txt"), encoding="utf-8") as file:
        text = file.read()
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, _, default = line.partition(" =")
        noop = name in NOOP or name.endswith(NOOP_SUFFIXES)
        found[name] = Param(
            name, Kind.TEXT, default.strip(), honoured=False, noop=noop, unsafe_if_ignored=UNSAFE.get(name, "")
        )
    return found
