"""Parameters of addresses and of messages on their way into the queue: rewriting, routing, cleanup."""

from mta.config.declare import count, items, not_yet, only_default, size, tables, text, word, yes_no
from mta.config.param import Param

_CLASSES = ("envelope_sender", "envelope_recipient", "header_sender", "header_recipient")
_CHECKS = "messages that the checks reject, hold or redirect would pass"

REWRITING: tuple[Param, ...] = (
    yes_no("append_at_myorigin", "yes", "Complete user to user@$myorigin."),
    yes_no("append_dot_mydomain", "${{$compatibility_level} <level {1} ? {yes} : {no}}",
           "Complete user@host to user@host.$mydomain."),
    yes_no("swap_bangpath", "yes", "Rewrite site!user to user@site."),
    yes_no("allow_percent_hack", "yes", "Rewrite user%domain to user@domain."),
    yes_no("resolve_dequoted_address", "yes", "Find the domain after removing quotes from the local part."),
    yes_no("resolve_null_domain", "no", "Treat user@ as local."),
    yes_no("resolve_numeric_domain", "no", "Treat user@1.2.3.4 as user@[1.2.3.4]."),
    items("local_header_rewrite_clients", "permit_inet_interfaces",
          "Clients whose message headers are completed and rewritten; mail from sendmail always is."),
    text("remote_header_rewrite_domain", "",
         "Domain that completes header addresses of other clients; their headers are then rewritten too."),
    text("empty_address_recipient", "MAILER-DAEMON", "Recipient of mail addressed to the null address."),
    text("double_bounce_sender", "double-bounce", "Sender of mail whose failure must not be reported any more."),
    tables("canonical_maps", "", "Rewrites addresses in envelope and headers, after the two below."),
    items("canonical_classes", "envelope_sender, envelope_recipient, header_sender, header_recipient",
          "What canonical_maps applies to.", *_CLASSES),
    tables("sender_canonical_maps", "", "Rewrites sender addresses."),
    items("sender_canonical_classes", "envelope_sender, header_sender", "What sender_canonical_maps applies to.",
          *_CLASSES),
    tables("recipient_canonical_maps", "", "Rewrites recipient addresses."),
    items("recipient_canonical_classes", "envelope_recipient, header_recipient",
          "What recipient_canonical_maps applies to.", *_CLASSES),
    items("propagate_unmatched_extensions", "canonical, virtual",
          "Tables that copy an address extension from the key to the result.",
          "canonical", "virtual", "alias", "forward", "include", "generic"),
    tables("virtual_alias_maps", "$virtual_maps", "Redirects recipients, local or not, before the message is queued."),
    items("virtual_alias_domains", "$virtual_alias_maps", "Domains that exist only in virtual_alias_maps."),
    count("virtual_alias_expansion_limit", "1000", "Addresses one recipient may become.", 1),
    count("virtual_alias_recursion_limit", "1000", "Depth of nested expansion.", 1),
    count("virtual_alias_address_length_limit", "1000", "Characters of one result.", 1),
    text("always_bcc", "", "Address that gets a copy of every message received."),
    tables("sender_bcc_maps", "", "Address that gets a copy, by sender."),
    tables("recipient_bcc_maps", "", "Address that gets a copy, by recipient."),
    count("duplicate_filter_limit", "1000", "Addresses remembered to drop a recipient named twice; 0: no limit."),
    *not_yet(
        items("masquerade_domains", "", "Domains whose subdomains are stripped off addresses; !name: not this one."),
        items("masquerade_classes", "envelope_sender, header_sender, header_recipient",
              "What masquerade_domains applies to.", *_CLASSES),
        items("masquerade_exceptions", "", "User names that are not masqueraded."),
        yes_no("enable_original_recipient", "yes", "Record the recipient as it was before rewriting."),
    ),
)  # fmt: skip

ROUTING: tuple[Param, ...] = (
    text("local_transport", "local:$myhostname", "transport:nexthop for domains in mydestination."),
    text("virtual_transport", "virtual", "transport:nexthop for virtual_mailbox_domains."),
    text("relay_transport", "relay", "transport:nexthop for relay_domains."),
    text("default_transport", "smtp", "transport:nexthop for all other domains."),
    tables("transport_maps", "", "transport:nexthop by recipient or domain, see transport(5)."),
    text("relayhost", "", "Next hop for mail to other domains: domain, [host] or [host]:port; empty: by MX."),
    tables("sender_dependent_relayhost_maps", "", "relayhost by sender."),
    tables("sender_dependent_default_transport_maps", "", "default_transport by sender."),
    text("empty_address_relayhost_maps_lookup_key", "<>",
         "Key for the null sender in sender_dependent_relayhost_maps."),
    text("empty_address_default_transport_maps_lookup_key", "<>",
         "Key for the null sender in sender_dependent_default_transport_maps."),
    tables("relocated_maps", "", "New addresses of people who left; mail to the old one is bounced with it."),
    items("virtual_mailbox_domains", "$virtual_mailbox_maps", "Domains with mailboxes that are not system accounts."),
    tables("virtual_mailbox_maps", "", "Tables of all recipients in virtual_mailbox_domains."),
)  # fmt: skip

MESSAGE: tuple[Param, ...] = (
    size("header_size_limit", "102400", "Bytes of one header; the rest is cut off.", 1),
    count("hopcount_limit", "50", "Received: headers a message may have; more: it loops and is bounced.", 1),
    items("message_drop_headers", "bcc, content-length, resent-bcc, return-path", "Headers removed from all mail."),
    yes_no("always_add_missing_headers", "no", "Add From:, Date:, Message-ID: to remote mail too."),
    yes_no("detect_8bit_encoding_header", "yes", "Believe Content-Transfer-Encoding: 8bit."),
    *(only_default(tables(name, default, "Inspects headers or body lines, see header_checks(5)."), _CHECKS)
      for name, default in (
          ("header_checks", ""), ("mime_header_checks", "$header_checks"), ("nested_header_checks", "$header_checks"),
          ("body_checks", ""), ("milter_header_checks", ""))),
    only_default(text("message_reject_characters", "", "Characters that make a message unacceptable."), _CHECKS),
    only_default(text("message_strip_characters", "", "Characters removed from messages."),
                 "the characters would stay in"),
    *not_yet(
        count("header_address_token_limit", "10240", "Address tokens looked at in one header.", 1),
        text("undisclosed_recipients_header", "", "Header added to a message without recipient headers."),
        word("header_from_format", "standard", "Form of a From: that is added.", "standard", "obsolete"),
        count("queue_file_attribute_count_limit", "100", "Named attributes per queue file.", 1),
    ),
)  # fmt: skip

PARAMS = REWRITING + ROUTING + MESSAGE
