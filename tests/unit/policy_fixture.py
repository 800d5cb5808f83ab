"""A policy as port 25 of mx.test.example has it: nobody may relay, test.example is ours."""

from collections.abc import Mapping, Sequence

from mta.clock import Clock
from mta.dns.mx import MX, DnsNotFound, DnsTemporary, MXAnswer
from mta.smtpd.facts import Facts, Stage, Verdict
from mta.smtpd.restrict_core import RestrictionSettings
from mta.smtpd.restrictions import Restrictions
from mta.trivial_rewrite import Rewriter, RewriterSettings
from tests.unit.lookup_fixture import World

PARENTS = ("fast_flush_domains", "mynetworks", "permit_mx_backup_networks", "relay_domains", "smtpd_access_maps")
REWRITER: dict[str, object] = {
    **{"myhostname": "mx.test.example", "mydomain": "test.example", "myorigin": "test.example"},
    **{"remote_header_rewrite_domain": "", "append_at_myorigin": True, "append_dot_mydomain": False},
    **{"swap_bangpath": True, "allow_percent_hack": True, "resolve_dequoted_address": True},
    **{"resolve_null_domain": False, "resolve_numeric_domain": False, "allow_min_user": False},
    **{"empty_address_recipient": "MAILER-DAEMON", "mydestination": ("mx.test.example", "test.example", "localhost")},
    **{"relay_domains": (), "virtual_alias_domains": (), "virtual_mailbox_domains": ()},
    **{"parent_domain_matches_subdomains": PARENTS, "local_transport": "local:mx.test.example"},
    **{"virtual_transport": "virtual", "relay_transport": "relay", "default_transport": "smtp", "relayhost": ""},
    **{"transport_maps": (), "relocated_maps": (), "sender_dependent_relayhost_maps": ()},
    **{"sender_dependent_default_transport_maps": (), "empty_address_relayhost_maps_lookup_key": "<>"},
    **{"empty_address_default_transport_maps_lookup_key": "<>", "show_user_unknown_table_name": True},
    **{"recipient_delimiter": "+", "owner_request_special": True, "double_bounce_sender": "double-bounce"},
}
POLICY: dict[str, object] = {
    **{f"smtpd_{w}_restrictions": () for w in ("client", "helo", "sender", "recipient", "data", "end_of_data", "etrn")},
    "smtpd_relay_restrictions": ("permit_mynetworks", "permit_sasl_authenticated", "defer_unauth_destination"),
    **{"smtpd_restriction_classes": (), "smtpd_delay_reject": True, "smtpd_reject_unlisted_recipient": True},
    **{"smtpd_relay_before_recipient_restrictions": True, "smtpd_reject_unlisted_sender": False},
    **{"smtpd_null_access_lookup_key": "<>", "mynetworks": ("10.0.0.0/8",)},
    **{"parent_domain_matches_subdomains": PARENTS, "allow_untrusted_routing": False, "soft_bounce": False},
    **{"show_user_unknown_table_name": True, "double_bounce_sender": "double-bounce"},
    **{"local_recipient_maps": ("proxy:unix:passwd.byname", "inline:{abuse=root,postmaster=root}")},
    **{f"{w}_maps": () for w in ("alias", "virtual_alias", "virtual_mailbox", "relay_recipient", "canonical")},
    **{"recipient_canonical_maps": (), "sender_canonical_maps": ()},
    **{f"unknown_{w}_reject_code": 550 for w in ("local_recipient", "virtual_alias", "virtual_mailbox")},
    **{"unknown_relay_recipient_reject_code": 550, "unknown_address_reject_code": 450},
    **{"unknown_client_reject_code": 450, "unknown_hostname_reject_code": 450, "access_map_reject_code": 554},
    **{"access_map_defer_code": 450, "reject_code": 554, "defer_code": 450, "relay_domains_reject_code": 554},
    **{"invalid_hostname_reject_code": 501, "non_fqdn_reject_code": 504, "maps_rbl_reject_code": 554},
    **{"multi_recipient_bounce_reject_code": 550, "plaintext_reject_code": 450},
}
OWN = ("127.0.0.1", "192.0.2.25")


class Zone:
    """DNS: names that exist, with MX hosts; "" = null MX.  Everything below "fails." fails."""

    def __init__(self) -> None:
        self.domains = {"good.example": "mx.good.example", "c.example": "c.example", "null.example": ""}
        self.domains["literal.example"] = "203.0.113.9"
        self.hosts = {"mx.good.example": ["203.0.113.9"], "4.3.2.1.bl.example": ["127.0.0.2"]}
        self.hosts["bad.example.dbl.example"] = ["127.0.0.2"]
        self.said: dict[str, list[str]] = {}

    async def mx(self, domain: str) -> MXAnswer:
        self._fail(domain)
        if domain not in self.domains:
            raise DnsNotFound(domain, "MX")
        return MXAnswer((MX(0, self.domains[domain]),))

    async def addresses(self, host: str, wanted: Sequence[int] = ()) -> list[str]:
        self._fail(host)
        if host not in self.hosts:
            raise DnsNotFound(host, "A")
        return self.hosts[host]

    async def texts(self, name: str) -> list[str]:
        if name not in self.said:
            raise DnsTemporary(name, "TXT")
        return self.said[name]

    async def exists(self, domain: str) -> bool:
        self._fail(domain)
        return domain in self.domains or domain in self.hosts

    def _fail(self, name: str) -> None:
        if name.startswith("fails."):
            raise DnsTemporary(name, "MX")


class Site:
    """Rewriter and restrictions with settings changed by name; `ask` is one RCPT."""

    def __init__(
        self, *, classes: Mapping[str, Sequence[str]] | None = None, clock: Clock | None = None, **changes: object
    ):
        self.world = World("user", "root", clock=clock)
        self.dns = Zone()
        rewriter: dict[str, object] = {**REWRITER, **{k: v for k, v in changes.items() if k in REWRITER}}
        policy: dict[str, object] = {**POLICY, **{k: v for k, v in changes.items() if k in POLICY}}
        unknown = set(changes) - set(REWRITER) - set(POLICY)
        if unknown:
            raise ValueError(f"no such setting: {unknown}")
        addresses = RewriterSettings(**rewriter)  # type: ignore[arg-type]  # settings by name, defaults above
        restrictions = RestrictionSettings(**policy)  # type: ignore[arg-type]  # as above
        self.rewriter = Rewriter(addresses, self.world.context, OWN)
        self.restrictions = Restrictions(
            restrictions, self.rewriter, self.world.context, self.dns, classes=classes, own_addresses=OWN
        )

    async def check(self, stage: Stage, recipient: str = "user@test.example", **facts: object) -> Verdict:
        """Ask with a stranger's facts, changed by name."""
        stranger: dict[str, object] = {
            **{"client_address": "192.0.2.99", "protocol": "ESMTP", "helo": "c.example", "sender": "s@c.example"},
            **{"recipient": recipient, "recipient_count": 0},
        }
        known = Facts(**{**stranger, **facts})  # type: ignore[arg-type]  # facts by name
        return await self.restrictions.check(stage, known)

    async def rcpt(self, recipient: str = "user@test.example", **facts: object) -> str:
        """The reply to RCPT as text, "" when permitted."""
        verdict = await self.check(Stage.RCPT, recipient, **facts)
        return str(verdict.reply) if verdict.reply else ""
