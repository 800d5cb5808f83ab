"""Any bytes either decode as a queue file or raise DamagedError, never any other error, and never hang."""

import random
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from mta.envelope import Envelope, Recipient
from mta.queue.content_reader import ContentReader
from mta.queue.queue_file import record
from mta.queue.queue_reader import DamagedError, decode
from tests.unit.test_queue_file import encoded, simple

GOLDEN = sorted((Path(__file__).parents[1] / "golden/queue").glob("*.bin"))
kinds = st.sampled_from([bytes([c]) for c in b"CTcFILSWVARDO/KMNLpwXErefdPm><ioq\x00\xff"])
numbers = st.one_of(st.integers(-5, 400), st.integers(0, 2**63)).map(lambda n: b"%15d" % n)
payloads = st.one_of(st.binary(max_size=30), numbers, st.sampled_from([b"dsn_orig_rcpt=x", b"uid=1", b"crashes=x"]))
files = st.lists(st.one_of(st.builds(record, kinds, payloads), st.binary(max_size=8)), max_size=20).map(b"".join)


def survives(raw: bytes) -> bool:
    """Decode a file and its content; True when it was accepted."""
    try:
        file = decode(lambda offset, size: raw[max(0, offset) : max(0, offset) + size])
        reader = ContentReader(file.content_offset)
        for _ in range(2 * len(raw) + 10_000):
            if reader.done:
                return True
            reader.feed(raw[reader.offset : reader.offset + 64])
        raise AssertionError("does not end")
    except DamagedError:
        return False


@settings(deadline=None, derandomize=True, max_examples=1500)
@given(files)
def test_records_of_any_kind_in_any_order(raw: bytes) -> None:
    survives(raw)


@settings(deadline=None, derandomize=True, max_examples=500)
@given(files)
def test_any_content_behind_a_good_envelope(raw: bytes) -> None:
    survives(record(b"T", b"1 2") + record(b"S", b"a") + record(b"R", b"b") + b"M\0" + raw + b"X\0E\0")


def test_every_cut_of_every_real_file_is_refused() -> None:
    for path in GOLDEN:
        raw = path.read_bytes()
        assert survives(raw)
        step = 1 if len(raw) < 2000 else 37
        for n in range(0, len(raw) - 1, step):
            assert not survives(raw[:n]), (path.name, n)


def test_flipped_bytes_in_real_files_never_surprise() -> None:
    source = random.Random(7)
    for path in GOLDEN:
        raw = bytearray(path.read_bytes())
        for _ in range(400):
            at, old = source.randrange(len(raw)), 0
            old, raw[at] = raw[at], source.randrange(256)
            survives(bytes(raw))
            raw[at] = old


def test_trailing_data_is_not_looked_at() -> None:
    assert survives(encoded(simple(), b"x\n") + b"trailing")


def test_a_huge_number_of_recipients_is_read() -> None:
    raw = encoded(Envelope("a", [Recipient(f"u{i}@d") for i in range(20_000)], 1.0), b"x\n")
    assert survives(raw)
