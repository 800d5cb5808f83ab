"""The cases, and what ours has to reach beside Postfix in each."""

from dataclasses import dataclass

from tests.bench.relay import Load


@dataclass(frozen=True, slots=True)
class Relay:
    """Mail through SMTP to the sink.  target: messages/s end to end, ours / Postfix's."""

    name: str
    title: str
    load: Load
    target: float | None = None


CASES: tuple[Relay, ...] = (
    Relay("5k-1", "5 KB, 1 session", Load(1200, 1), 1.2),
    Relay("5k-10", "5 KB, 10 sessions", Load(3000, 10), 2.0),
    Relay("5k-100", "5 KB, 100 sessions", Load(4000, 100), 3.0),
)
