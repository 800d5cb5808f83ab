"""postconf(5) parameters of the SMTP server beyond those of the dialogue."""

from mta.record import dataclass
from mta.smtpd.session_plan import SessionSettings


@dataclass(frozen=True, slots=True)
class ServerSettings(SessionSettings):
    """Times in seconds, rates in octets per second.

    smtpd_timeout limits each phase: one command line, one reply, one TLS handshake (with
    smtpd_starttls_timeout), and, for message text, any time in which less than smtpd_min_data_rate arrives
    (smtpd_per_request_deadline = yes in Postfix's terms; here it is always so).
    """

    smtpd_timeout: float
    smtpd_starttls_timeout: float
    smtpd_min_data_rate: int
    smtpd_peername_lookup: bool
    smtpd_tls_wrappermode: bool
    smtpd_tls_loglevel: int
    smtpd_client_message_rate_limit: int
    smtpd_client_recipient_rate_limit: int
