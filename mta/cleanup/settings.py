"""Settings of cleanup, under their names in postconf(5)."""

from mta.record import dataclass


@dataclass(frozen=True, slots=True)
class CleanupSettings:
    """postconf(5); sizes in bytes, times in seconds, 0 = no limit."""

    myhostname: str
    mail_name: str
    message_size_limit: int
    header_size_limit: int
    hopcount_limit: int
    message_drop_headers: tuple[str, ...]
    always_add_missing_headers: bool
    remote_header_rewrite_domain: str
    enable_long_queue_ids: bool
    detect_8bit_encoding_header: bool
    propagate_unmatched_extensions: tuple[str, ...]
    duplicate_filter_limit: int
    virtual_alias_maps: tuple[str, ...]
    virtual_alias_expansion_limit: int
    virtual_alias_recursion_limit: int
    virtual_alias_address_length_limit: int
    canonical_maps: tuple[str, ...]
    sender_canonical_maps: tuple[str, ...]
    recipient_canonical_maps: tuple[str, ...]
    canonical_classes: tuple[str, ...]
    sender_canonical_classes: tuple[str, ...]
    recipient_canonical_classes: tuple[str, ...]
    always_bcc: str
    delay_warning_time: float
    sender_bcc_maps: tuple[str, ...]
    recipient_bcc_maps: tuple[str, ...]
