"""Every parameter, by name: declared here, or known from Postfix.

    find("queue_run_delay")                          declared in params_queue.py
    find("smtpd_milters")                            known, not honoured
    find("dovecot_destination_concurrency_limit")    made from the default_... parameter it falls back to
    find("nobody_knows_this")                        None

See also: docs/parameters.md (generated), `python -m mta.config.document`
"""

from collections.abc import Mapping
from types import MappingProxyType

from mta.config import (
    params_admin,
    params_cleanup,
    params_known,
    params_local,
    params_queue,
    params_smtp,
    params_smtpd,
    params_tls,
)
from mta.config.param import Param

TOPICS: tuple[tuple[str, tuple[Param, ...]], ...] = (
    ("The system", params_admin.PARAMS),
    ("SMTP server: dialogue", params_smtpd.DIALOGUE),
    ("SMTP server: limits", params_smtpd.LIMITS),
    ("SMTP server: access", params_smtpd.ACCESS),
    ("Address rewriting", params_cleanup.REWRITING),
    ("Routing", params_cleanup.ROUTING),
    ("Message content", params_cleanup.MESSAGE),
    ("Queue", params_queue.QUEUE),
    ("Bounces and notices", params_queue.BOUNCE),
    ("SMTP client", params_smtp.CLIENT + params_smtp.DNS),
    ("LMTP client", params_smtp.LMTP),
    ("Local delivery", params_local.PARAMS),
    ("TLS", params_tls.PARAMS),
)

# Not expanded when main.cf is read: their $names are filled in for each recipient or reply.
UNEXPANDED = frozenset({
    "command_execution_directory", "default_rbl_reply", "forward_path", "luser_relay", "mailbox_command",
    "postscreen_expansion_filter", "postscreen_reject_footer", "smtpd_expansion_filter", "smtpd_reject_footer",
})  # fmt: skip
READ_ONLY = frozenset({"process_id", "process_name", "service_name"})  # setting them has no effect

# Suffixes of per-transport parameters, with the parameter whose value they default to.
PER_TRANSPORT = {
    "destination_concurrency_limit": "default_destination_concurrency_limit",
    "destination_recipient_limit": "default_destination_recipient_limit",
    "destination_concurrency_failed_cohort_limit": "default_destination_concurrency_failed_cohort_limit",
    "destination_concurrency_positive_feedback": "default_destination_concurrency_positive_feedback",
    "destination_concurrency_negative_feedback": "default_destination_concurrency_negative_feedback",
    "destination_rate_delay": "default_destination_rate_delay",
    "transport_rate_delay": "default_transport_rate_delay",
    "initial_destination_concurrency": "initial_destination_concurrency",
    "time_limit": "command_time_limit",
    "delivery_slot_cost": "default_delivery_slot_cost",
    "delivery_slot_discount": "default_delivery_slot_discount",
    "delivery_slot_loan": "default_delivery_slot_loan",
    "minimum_delivery_slots": "default_minimum_delivery_slots",
    "extra_recipient_limit": "default_extra_recipient_limit",
    "recipient_refill_delay": "default_recipient_refill_delay",
    "recipient_refill_limit": "default_recipient_refill_limit",
    "recipient_limit": "default_recipient_limit",
}


def declared() -> list[Param]:
    """All declared parameters in the order of the documentation."""
    return [param for _, params in TOPICS for param in params]


def _registry() -> dict[str, Param]:
    found = params_known.read_defaults()
    for param in declared():
        if param.name in found:
            raise RuntimeError(f"{param.name} is declared twice, or declared and in postfix_defaults.txt")
        found[param.name] = param
    return found


PARAMS: Mapping[str, Param] = MappingProxyType(_registry())


def find(name: str) -> Param | None:
    """The parameter, None for a name that neither we nor Postfix know."""
    return PARAMS.get(name) or _per_transport(name)


def _per_transport(name: str) -> Param | None:
    for suffix, fallback in PER_TRANSPORT.items():
        if name.endswith(f"_{suffix}") and len(name) > len(suffix) + 1:
            base = PARAMS[fallback]
            return Param(
                name, base.kind, f"${fallback}", f"{fallback} for one transport.", base.low, base.high, base.words,
                honoured=base.honoured, noop=base.noop,
            )  # fmt: skip
    return None
