"""Parameters of the queue, the queue manager, bounces and notices."""

from mta.config.declare import count, items, not_yet, size, text, time, yes_no
from mta.config.param import Param

_MOST = 100 * 86400  # seconds; Postfix's limit for lifetimes

QUEUE: tuple[Param, ...] = (
    size("queue_minfree", "0", "Free bytes in the queue below which mail is refused; 0: 1.5 * message_size_limit."),
    items("hash_queue_names", "deferred, defer", "Queue directories with one level of subdirectories per id character.",
          "incoming", "active", "deferred", "bounce", "defer", "flush", "hold", "trace"),
    count("hash_queue_depth", "1", "Levels of subdirectories.", 1, 16),
    yes_no("enable_long_queue_ids", "no", "Queue ids that are not used again soon, ordered by time."),
    time("queue_run_delay", "300s", "Between two looks for mail that is due; not more than minimal_backoff_time."),
    time("minimal_backoff_time", "300s", "Least time between two tries of a message; also for a dead destination."),
    time("maximal_backoff_time", "4000s", "Most time between two tries of a message."),
    time("maximal_queue_lifetime", "5d", "Age at which undelivered mail is bounced; 0: one try.", 0, _MOST),
    time("bounce_queue_lifetime", "5d", "The same for mail with the null sender.", 0, _MOST),
    time("delay_warning_time", "0h", "Age at which the sender is told that a message waits; 0: never.", 0),
    count("qmgr_message_active_limit", "20000", "Messages in the active queue.", 1),
    items("defer_transports", "", "Transports whose mail waits until flushed by hand."),
    count("initial_destination_concurrency", "5", "Deliveries at once to a destination not yet known to be well.", 1),
    count("default_destination_concurrency_limit", "20",
          "Deliveries at once to one destination; TRANSPORT_destination_concurrency_limit for one transport.\n"
          "0: no limit."),
    count("default_destination_recipient_limit", "50",
          "Recipients per delivery; TRANSPORT_destination_recipient_limit for one transport. 1: the destination\n"
          "is the recipient; 0: no limit."),
    count("default_destination_concurrency_failed_cohort_limit", "1",
          "Failed rounds of deliveries after which a destination counts as dead; 0: never."),
    count("local_destination_concurrency_limit", "2", "Deliveries at once to one mailbox."),
    count("local_destination_recipient_limit", "1", "Recipients per local delivery."),
    time("stale_lock_time", "500s", "Age at which a mailbox lock file counts as left behind."),
    yes_no("backwards_bounce_logfile_compatibility", "yes", "Keep the one-line form in files of defer/ too."),
    *not_yet(
        yes_no("confirm_delay_cleared", "no", "Tell a sender who got such a warning about the delivery in the end."),
        count("qmgr_message_recipient_limit", "20000", "Recipients in memory.", 1),
        time("in_flow_delay", "1s", "Pause of new mail while more arrives than is delivered; 0: off.", 0, 10),
        text("default_destination_concurrency_positive_feedback", "1",
             "Growth of the concurrency per success: a number,\n"
             "number / concurrency, or number / sqrt_concurrency."),
        text("default_destination_concurrency_negative_feedback", "1", "Decline of the concurrency per failure."),
        time("default_destination_rate_delay", "0s", "Pause between two deliveries to one destination.", 0),
        time("default_transport_rate_delay", "0s", "Pause between two deliveries of one transport.", 0),
        time("transport_retry_time", "60s", "Wait after a transport broke down."),
    ),
)  # fmt: skip

BOUNCE: tuple[Param, ...] = (
    items("notify_classes", "resource, software",
          "What postmaster is told about: bounce, 2bounce, delay. The other classes are not honoured yet.",
          "bounce", "2bounce", "data", "delay", "policy", "protocol", "resource", "software"),
    size("bounce_size_limit", "50000", "Bytes of the original message quoted in a notice."),
    text("bounce_notice_recipient", "postmaster", "Gets copies of bounces (class bounce)."),
    text("2bounce_notice_recipient", "postmaster", "Gets bounces that could not be delivered (class 2bounce)."),
    text("delay_notice_recipient", "postmaster", "Gets copies of delay warnings (class delay)."),
    yes_no("disable_verp_bounces", "no", "Send one bounce per message although VERP was asked for."),
    *not_yet(
        text("error_notice_recipient", "postmaster", "Gets notices of software and resource problems."),
        yes_no("enable_threaded_bounces", "no", "Bounces answer the original in its thread (In-Reply-To:)."),
    ),
)  # fmt: skip

PARAMS = QUEUE + BOUNCE
