"""Parameters of the SMTP server: dialogue, limits, access, reply codes."""

from mta.config.declare import (
    changed,
    code,
    count,
    ignored_by_design,
    items,
    not_yet,
    size,
    tables,
    text,
    time,
    word,
    yes_no,
)
from mta.config.param import Param

_RELAY = (
    "${{$compatibility_level} <level {1} ? {} : "
    "{permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination}}"
)
_DEADLINE = "${smtpd_per_record_deadline?{$smtpd_per_record_deadline}:{${stress?{yes}:{no}}}}"

DIALOGUE: tuple[Param, ...] = (
    text("smtpd_banner", "$myhostname ESMTP $mail_name", "Text after 220 in the greeting; begins with $myhostname."),
    yes_no("smtpd_helo_required", "no", "Refuse MAIL before HELO or EHLO."),
    yes_no("strict_rfc821_envelopes", "no", "Demand < > around addresses in MAIL and RCPT."),
    yes_no("disable_vrfy_command", "no", "Answer VRFY with 502."),
    yes_no("allow_min_user", "no", "Allow addresses that begin with -, which could look like options to programs."),
    items("smtpd_discard_ehlo_keywords", "", "EHLO keywords not to offer; silent-discard: and not to log that."),
    items("smtpd_forbidden_commands", "CONNECT GET POST regexp:{{/^[^A-Z]/ Bogus}}",
          "First words that end the session at once: other protocols, headers, binary junk."),
    items("smtpd_noop_commands", "", "Commands answered 250 without doing anything."),
    changed(word("smtpd_forbid_bare_newline", "no",
                 "Lines ended by LF alone. normalize or yes: accepted, but only CR LF . CR LF ends a message;\n"
                 "reject: refused, of clients in mynetworks too; no: accepted, and no LF . LF ends a message either.",
                 "normalize", "yes", "note", "reject", "no"), "normalize"),
    changed(yes_no("smtpd_forbid_unauth_pipelining", "no",
                   "Disconnect clients that send commands before they may (RFC 2920)."), "yes"),
    size("message_size_limit", "10240000", "Largest message accepted, envelope included; 0: no limit."),
    size("line_length_limit", "2048", "Longest command line; longer text lines take several queue file records."),
    yes_no("smtpd_peername_lookup", "yes", "Look up the client's name; no: it is unknown."),
    time("smtpd_timeout", "${stress?{10}:{300}}s", "Longest wait for the client to send a command or take a reply."),
    time("smtpd_starttls_timeout", "${stress?{10}:{300}}s", "Longest TLS handshake."),
    size("smtpd_min_data_rate", "500", "Least bytes per second in which a message must arrive.", 1),
    ignored_by_design(yes_no("smtpd_per_request_deadline", _DEADLINE,
                             "Limits count per command and message here in any case, not per read.")),
    *not_yet(
        tables("smtpd_discard_ehlo_keyword_address_maps", "", "The same by client address."),
        items("smtpd_forbid_bare_newline_exclusions", "$mynetworks", "Clients not held to smtpd_forbid_bare_newline."),
        code("smtpd_forbid_bare_newline_reject_code", "550", "Reply code with smtpd_forbid_bare_newline = reject."),
        text("smtpd_reject_footer", "", "Text added to every 4xx and 5xx reply."),
        yes_no("smtpd_client_port_logging", "no", "Log the client's port too: name[address]:port."),
    ),
)  # fmt: skip

LIMITS: tuple[Param, ...] = (
    count("smtpd_recipient_limit", "1000", "Recipients per message; more get 452.", 1),
    count("smtpd_recipient_overshoot_limit", "1000", "How many over the limit do not count as errors.", 1),
    time("smtpd_error_sleep_time", "1s", "Delay of error replies after smtpd_soft_error_limit errors.", 0),
    count("smtpd_soft_error_limit", "10", "Errors after which replies to errors are delayed.", 1),
    count("smtpd_hard_error_limit", "${stress?{1}:{20}}", "Errors after which the session ends with 421.", 1),
    count("smtpd_junk_command_limit", "${stress?{1}:{100}}",
          "NOOP, VRFY, ETRN and RSET between two messages; more are errors.", 1),
    count("smtpd_client_connection_count_limit", "50", "Connections at once per client address; 0: no limit."),
    count("smtpd_client_connection_rate_limit", "0", "Connections per client and anvil_rate_time_unit; 0: no limit."),
    count("smtpd_client_message_rate_limit", "0", "Messages per client and time unit; 0: no limit."),
    count("smtpd_client_recipient_rate_limit", "0", "Recipients per client and time unit; 0: no limit."),
    items("smtpd_client_event_limit_exceptions", "${smtpd_client_connection_limit_exceptions:$mynetworks}",
          "Clients free of these limits: networks, host names, .domains, tables."),
    time("anvil_rate_time_unit", "60s", "The time unit of client rates."),
    *not_yet(
        count("smtpd_history_flush_threshold", "100", "Lines of dialogue kept for a protocol notice to postmaster.", 1),
        count("smtpd_client_new_tls_session_rate_limit", "0",
              "New TLS sessions per client and time unit; 0: no limit."),
        count("smtpd_client_auth_rate_limit", "0", "AUTH commands per client and time unit; 0: no limit."),
        time("anvil_status_update_time", "600s", "How often peak counts and rates are logged."),
    ),
)  # fmt: skip

ACCESS: tuple[Param, ...] = (
    yes_no("smtpd_delay_reject", "yes",
           "Evaluate the client, helo and sender restrictions at RCPT TO, so that the log names everyone involved."),
    items("smtpd_client_restrictions", "", "Restrictions on the client's name and address."),
    items("smtpd_helo_restrictions", "", "Restrictions on the HELO or EHLO name."),
    items("smtpd_sender_restrictions", "", "Restrictions on the MAIL FROM address."),
    items("smtpd_relay_restrictions", _RELAY, "Restrictions on RCPT TO that decide about relaying."),
    items("smtpd_recipient_restrictions", "", "Restrictions on RCPT TO that decide about unwanted mail."),
    yes_no("smtpd_relay_before_recipient_restrictions", "${{$compatibility_level} <level {3.6} ? {no} : {yes}}",
           "Evaluate smtpd_relay_restrictions before smtpd_recipient_restrictions."),
    items("smtpd_data_restrictions", "", "Restrictions at DATA."),
    items("smtpd_end_of_data_restrictions", "", "Restrictions when the message has arrived, before its 250."),
    items("smtpd_etrn_restrictions", "", "Restrictions on ETRN."),
    yes_no("smtpd_reject_unlisted_recipient", "yes", "Refuse unknown recipients even where no restriction says so."),
    yes_no("smtpd_reject_unlisted_sender", "no", "Refuse unknown senders of our own domains."),
    items("smtpd_restriction_classes", "", "Names of restriction lists of your own, for use in lists and tables."),
    text("smtpd_null_access_lookup_key", "<>", "Key for the null sender in access tables."),
    tables("local_recipient_maps", "proxy:unix:passwd.byname $alias_maps",
           "Tables of all local recipients; empty: every local address is accepted."),
    tables("relay_recipient_maps", "", "Tables of all recipients in relay_domains; empty: all are accepted."),
    yes_no("show_user_unknown_table_name", "yes", "Name the table in \"User unknown in local recipient table\"."),
    yes_no("allow_untrusted_routing", "no", "Relay user@remote@here and the like for clients that are not trusted."),
    code("access_map_reject_code", "554", "Reply code of REJECT in an access table."),
    code("access_map_defer_code", "450", "Reply code of DEFER in an access table."),
    code("defer_code", "450", "Reply code of the restriction defer."),
    code("reject_code", "554", "Reply code of the restriction reject."),
    code("relay_domains_reject_code", "554", "Reply code of reject_unauth_destination."),
    code("invalid_hostname_reject_code", "501", "Reply code of reject_invalid_helo_hostname."),
    code("non_fqdn_reject_code", "504", "Reply code of the reject_non_fqdn_... restrictions."),
    code("unknown_address_reject_code", "450", "Reply code of reject_unknown_sender_domain and ..._recipient_domain."),
    code("unknown_client_reject_code", "450", "Reply code of reject_unknown_client_hostname."),
    code("unknown_hostname_reject_code", "450", "Reply code of reject_unknown_helo_hostname."),
    code("multi_recipient_bounce_reject_code", "550", "Reply code of reject_multi_recipient_bounce."),
    code("maps_rbl_reject_code", "554", "Reply code of reject_rbl_client and reject_rhsbl_..."),
    code("plaintext_reject_code", "450", "Reply code of reject_plaintext_session."),
    code("unknown_local_recipient_reject_code", "550", "Reply code for a recipient that local_recipient_maps lacks."),
    code("unknown_relay_recipient_reject_code", "550", "Reply code for a recipient that relay_recipient_maps lacks."),
    code("unknown_virtual_alias_reject_code", "550", "Reply code for an unknown address in virtual_alias_domains."),
    code("unknown_virtual_mailbox_reject_code", "550", "Reply code for an unknown address in virtual_mailbox_domains."),
    *not_yet(
        items("smtpd_log_access_permit_actions", "", "Permit-type access actions to log."),
        items("permit_mx_backup_networks", "", "Networks whose hosts permit_mx_backup believes as primary MX."),
        text("reject_tempfail_action", "defer_if_permit",
             "What a failing lookup does in reject_unknown_... restrictions."),
        text("unknown_address_tempfail_action", "$reject_tempfail_action",
             "The same for sender and recipient domains."),
        text("unknown_helo_hostname_tempfail_action", "$reject_tempfail_action", "The same for HELO names."),
    ),
)  # fmt: skip

PARAMS = DIALOGUE + LIMITS + ACCESS
