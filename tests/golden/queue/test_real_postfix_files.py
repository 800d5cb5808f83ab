"""Queue files that Postfix 3.7.11 wrote (the .bin files beside this one) are read as Postfix reads them."""

from pathlib import Path

from mta.envelope import Notify, Recipient, Ret
from mta.queue.content_reader import ContentReader
from mta.queue.queue_reader import QueueFile, decode
from mta.queue.reasons import decode_reasons, encode_reasons

HERE = Path(__file__).parent


def load(name: str) -> tuple[bytes, QueueFile]:
    raw = (HERE / name).read_bytes()
    return raw, decode(lambda offset, size: raw[offset : offset + size])


def text_of(raw: bytes, file: QueueFile) -> list[bytes]:
    reader, out = ContentReader(file.content_offset), b""
    while not reader.done:
        out += reader.feed(raw[reader.offset : reader.offset + 1000])
    assert out.endswith(b"\n")
    return out[:-1].split(b"\n")


def test_dsn_parameters() -> None:
    raw, file = load("dsn.bin")
    envelope = file.envelope
    assert (envelope.sender, envelope.envelope_id, envelope.ret) == ("alice@src.test", "QQ314159", Ret.HDRS)
    assert envelope.encoding == "8bit"
    assert envelope.warn_time == int(envelope.arrival) + 3600
    first, second = envelope.recipients
    assert (first.address, first.dsn_orig_rcpt) == ("bob@dst.test", "rfc822;Bob@dst.test")
    assert first.notify == Notify.SUCCESS | Notify.DELAY
    assert second == Recipient("b c@dst.test", dsn_orig_rcpt='rfc822;"b c"@dst.test', offset=second.offset)
    assert envelope.attributes["log_helo_name"] == "client.test"
    assert text_of(raw, file)[-3:] == [b"hello", b"..dot", b""]


def test_long_lines_are_joined() -> None:
    raw, file = load("long-lines.bin")
    assert file.envelope.sender == ""
    assert [len(line) for line in text_of(raw, file)[-4:]] == [5000, 2048, 2049, 3]
    assert file.size == len(raw) - file.content_offset - 4


def test_edits_of_a_milter_are_followed_by_pointers() -> None:
    raw, file = load("milter.bin")
    found = [(r.address, r.state) for r in file.envelope.recipients]
    assert found == [("n0@dst.test", "R"), ("n1@dst.test", "/"), ("n2@dst.test", "R"), ("added@dst.test", "R")]
    lines = text_of(raw, file)
    assert b"X-Milter: yes, it was here" in lines
    assert b"Subject: changed by the milter, rather longer than before" in lines
    assert lines[lines.index(b"") + 1] == b"replaced body"
    assert all(raw[r.offset : r.offset + 1] == r.state.encode() for r in file.envelope.recipients)


def test_sendmail_with_delay_warning() -> None:
    raw, file = load("sendmail-warn.bin")
    assert file.envelope.full_name == "root"
    assert raw[file.warn_offset : file.warn_offset + 1] == b"W"
    assert text_of(raw, file)[-2:] == [b"hi there", b".x"]


def test_maildrop_file_of_postdrop() -> None:
    raw, file = load("maildrop.bin")
    assert [r.address for r in file.envelope.recipients] == ["carol@dst.test", "dave@dst.test"]
    assert file.envelope.envelope_id == "ENV1"
    assert file.envelope.recipients[0].notify == Notify.SUCCESS | Notify.DELAY
    assert text_of(raw, file) == [b"Subject: dropped", b"", b"hi there", b".x", b"last"]
    assert file.end == len(raw)


def test_reasons_are_read_and_written_as_postfix_does() -> None:
    for name in ("dsn", "milter"):
        data = (HERE / f"{name}.defer.txt").read_bytes()
        by_offset = {r.offset: r for r in load(f"{name}.bin")[1].envelope.recipients}
        entries = decode_reasons(data)
        assert entries
        assert all(by_offset[offset].address == address for address, offset, _ in entries)
        assert encode_reasons([(by_offset[o], r) for _, o, r in entries], compatible=True) == data
