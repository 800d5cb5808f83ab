"""The wire form of DNS answers -> our own small values; only here and in mta/dns/exchange.py is dnspython known.

No I/O and no state: a datagram is judged against the question it may answer, and a message is read into an MXAnswer or
a tuple of texts, with the seconds it may be kept.  What is not a clear answer is never "does not exist": it is an
exception of this module (another server, or TCP, may know) or DnsTemporary.

Parsing is slow, and whoever owns a zone decides how much there is of it.  So an answer that is too long for the
records we keep is none, and no more records than these are parsed.

See also: RFC 1035, RFC 2308 (negative answers)
"""

import re
import struct
import unicodedata

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.CNAME
import dns.rdtypes.ANY.MX
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.SOA
import dns.rdtypes.ANY.TXT
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.reversename
import dns.rrset

from mta.dns.mx import MX, DnsError, DnsNoData, DnsNotFound, DnsTemporary, MXAnswer
from mta.dns.system import is_address

MAX_RECORDS = 150  # of one answer that are kept
MAX_SIZE = 16384  # octets of an answer: MAX_RECORDS with names of 90 octets
MAX_ADDRESSES = 100  # of one host
MAX_BESIDE = 50  # records that are read of what stands beside the answer
MAX_CNAMES = 8
MAX_EFFORT = 50_000  # squares of labels in the names of an answer; 150 MX hosts of ten labels make 16,000
_RECORD = struct.Struct("!H6xH")  # RFC 1035 s4.1.3: type and length of the data, behind the name
_NAME_AT = {5: 0, 12: 0, 15: 2}  # where the data of CNAME, PTR and MX have a name
_NO_NAME = (1, 28)  # A and AAAA
_OTHER = 2500  # effort for the data of a type that nobody asked for
_COUNTS = struct.Struct("!4x4H")  # RFC 1035 s4.1.1: how many records the sections have, after the question
MAX_TTL = 600.0  # seconds an answer is kept at most: a local caching resolver knows better than we do
MAX_NEGATIVE_TTL = 60.0
_DOTS = re.compile("[.\u3002\uff0e\uff61]")  # RFC 3490 s3.1
_DEVIATIONS = re.compile("([\u00df\u03c2\u200c\u200d])")  # UTS 46 s3.1.2: sharp s, final sigma, ZWNJ, ZWJ

Found = MXAnswer | tuple[str, ...]
Answer = Found | type[DnsError]


class TruncatedError(Exception):
    """TC=1: ask again over TCP."""


class RefusedError(Exception):
    """This server cannot answer: try the next one.  no_edns: it did not like the question's EDNS record."""

    def __init__(self, *, no_edns: bool = False) -> None:
        super().__init__()
        self.no_edns = no_edns


def judge(query: dns.message.Message, wire: bytes, *, tcp: bool) -> dns.message.Message | None:
    """Return the message when it is an answer to the question, None when it is something else.

    TC is set in a message that is not whole: it came over TCP that way, or has more than we read.
    Raises TruncatedError, or RefusedError when the server answered that it cannot.
    """
    if len(wire) > MAX_SIZE:
        return None
    wire, cut = _bounded(wire)
    try:
        answer = dns.message.from_wire(wire, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError, LookupError):
        if not tcp and _looks_cut(query, wire):
            raise TruncatedError from None
        return None
    rcode = answer.rcode()
    bad_question = rcode in (dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS)
    if not query.is_response(answer):
        about_us = answer.id == query.id and answer.flags & dns.flags.QR and not answer.question
        if not (about_us and bad_question):
            return None
    if bad_question:
        raise RefusedError(no_edns=query.edns >= 0)
    if answer.flags & dns.flags.TC and not tcp:
        raise TruncatedError
    if rcode not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise RefusedError
    if cut:
        answer.flags |= dns.flags.TC
    referral = any(rrset.rdtype == dns.rdatatype.NS for rrset in answer.authority)
    if rcode == dns.rcode.NOERROR and not answer.answer and not _soa(answer) and (referral or not _knows(answer)):
        raise RefusedError  # this server neither knows nor asks on our behalf (lame)
    return answer


def _bounded(wire: bytes) -> tuple[bytes, bool]:
    """The message with as many records as we are willing to read, and whether that left some out.

    The parser goes by the counts in front, so nothing but these is changed.
    """
    if len(wire) < _COUNTS.size:
        return wire, False
    found = _COUNTS.unpack_from(wire)
    kept: list[int] = []
    limits = (1, MAX_RECORDS + MAX_CNAMES, MAX_BESIDE, MAX_BESIDE)
    for count, limit in zip(found, limits, strict=True):
        whole = kept == list(found[: len(kept)])  # a section is found only where those before it are read
        kept.append(min(count, limit) if whole else 0)
    worth = _worth(wire, kept[1])
    if worth < kept[1]:
        kept[1:] = worth, 0, 0
    if kept == list(found):
        return wire, False
    return wire[:4] + struct.pack("!4H", *kept) + wire[_COUNTS.size :], True


def _worth(wire: bytes, count: int) -> int:
    """How many records of the answer are parsed: the parser's time grows with the square of a name's labels, of
    which a pointer of two octets makes a hundred."""
    effort = 0
    try:
        at = _name(wire, 12)[1] + 4
        for number in range(count):
            labels, at = _name(wire, at)
            kind, length = _RECORD.unpack_from(wire, at)
            at += 10
            effort += labels * labels
            if kind in _NAME_AT:
                effort += _name(wire, at + _NAME_AT[kind])[0] ** 2
            elif kind not in _NO_NAME:
                effort += _OTHER
            if effort > MAX_EFFORT:
                return number
            at += length
    except (IndexError, struct.error):
        return count  # the parser will say so
    return count


def _name(wire: bytes, at: int) -> tuple[int, int]:
    """-> (labels of the name that begins here, where it ends); 128 labels are as many as can be."""
    labels = end = 0
    while (octet := wire[at]) and labels < 128:
        if octet >= 0xC0:
            end = end or at + 2
            at = (octet & 0x3F) << 8 | wire[at + 1]
        else:
            at += 1 + octet
        labels += 1
    return labels, end or at + 1


def _looks_cut(query: dns.message.Message, wire: bytes) -> bool:
    """An answer to our id with TC set that ends in the middle of a record."""
    return len(wire) > 12 and wire[:2] == query.id.to_bytes(2, "big") and bool(wire[2] & 0x80) and bool(wire[2] & 2)


def _soa(answer: dns.message.Message) -> dns.rrset.RRset | None:
    for rrset in answer.authority:
        if rrset.rdtype == dns.rdatatype.SOA:
            return rrset
    return None


def read(answer: dns.message.Message, name: dns.name.Name, kind: str) -> tuple[Answer | None, dns.name.Name, float]:
    """-> (answer, the name at the end of the CNAME chain, seconds to keep this); None: ask for that name.

    Raises DnsTemporary for a message that is not whole and has not what was wanted, for an answer section that has
    nothing to do with the question, and for CNAMEs without end.
    """
    wanted, cut = dns.rdatatype.from_text(kind), bool(answer.flags & dns.flags.TC)
    by_name: dict[tuple[dns.name.Name, int], dns.rrset.RRset] = {}
    for rrset in answer.answer:
        if rrset.rdclass == dns.rdataclass.IN:
            by_name.setdefault((rrset.name, int(rrset.rdtype)), rrset)
    ttl, end = MAX_TTL, name
    for _ in range(MAX_CNAMES + 1):
        records = by_name.get((end, int(wanted)))
        if records is not None:
            return _values(records, cut=cut), end, min(ttl, records.ttl)
        alias = by_name.get((end, int(dns.rdatatype.CNAME)))
        if alias is None:
            break
        ttl = min(ttl, alias.ttl)
        target = next(iter(alias))
        if isinstance(target, dns.rdtypes.ANY.CNAME.CNAME):
            end = target.target
    else:
        raise DnsTemporary(name.to_text(), kind)
    if answer.rcode() == dns.rcode.NXDOMAIN and not cut:
        return DnsNotFound, end, min(ttl, _negative_ttl(answer))
    if end != name and not _soa(answer):
        return None, end, ttl
    if cut or (end == name and answer.answer and not _is_about(answer, name)):
        raise DnsTemporary(name.to_text(), kind)
    return DnsNoData, end, min(ttl, _negative_ttl(answer))


def _knows(answer: dns.message.Message) -> bool:
    """Is it from a server that knows the name, or has asked for us?"""
    return bool(answer.flags & (dns.flags.AA | dns.flags.RA))


def _is_about(answer: dns.message.Message, name: dns.name.Name) -> bool:
    """Other records of this name and no others, from a server that knows."""
    return _knows(answer) and all(rrset.name == name and rrset.rdclass == dns.rdataclass.IN for rrset in answer.answer)


def _negative_ttl(answer: dns.message.Message) -> float:
    """RFC 2308 s5: the lesser of the SOA's own TTL and its minimum field."""
    rrset = _soa(answer)
    first = next(iter(rrset)) if rrset is not None else None
    if rrset is None or not isinstance(first, dns.rdtypes.ANY.SOA.SOA):
        return 0.0
    return float(min(rrset.ttl, first.minimum, MAX_NEGATIVE_TTL))


def _values(rrset: dns.rrset.RRset, *, cut: bool) -> Found:
    """Our own small values of an RRset: an MXAnswer, or texts."""
    texts: list[str] = []
    records: list[MX] = []
    unusable = False  # somebody's typing error: what is left is not all that the domain meant
    for rdata in rrset:
        if isinstance(rdata, dns.rdtypes.ANY.MX.MX):
            host = _host(rdata.exchange)
            if not host or is_host(host) or is_address(host):  # an address stands for itself, as in Postfix
                records.append(MX(rdata.preference, host))
            else:
                unusable = True
        elif isinstance(rdata, dns.rdtypes.ANY.PTR.PTR):
            texts.append(_host(rdata.target))
        elif isinstance(rdata, dns.rdtypes.ANY.TXT.TXT):
            texts.append(_printable(b"".join(rdata.strings)))
        elif isinstance(rdata, dns.rdtypes.IN.A.A | dns.rdtypes.IN.AAAA.AAAA):
            texts.append(rdata.address)
    if rrset.rdtype != dns.rdatatype.MX:
        return tuple(texts[:MAX_ADDRESSES])
    if len(records) > 1:
        records = [record for record in records if record.host]  # "." says nothing beside others
    records.sort(key=lambda record: record.preference)
    return MXAnswer(tuple(records[:MAX_RECORDS]), cut or unusable or len(records) > MAX_RECORDS)


def texts(found: Found) -> list[str]:
    return list(found) if isinstance(found, tuple) else []


def _printable(text: bytes) -> str:
    """Of what stands in a zone only this can stand in a reply and in the log (as in Postfix)."""
    return "".join(chr(octet) if 32 <= octet < 127 else " " for octet in text)


def _host(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""


def is_host(host: str) -> bool:
    """A name that a host may have: no address, nothing that would be odd in a log or on the wire."""
    if not host or len(host) > 253 or is_address(host) or host.replace(".", "").isdigit():
        return False
    return host.isascii() and all(c.isalnum() or c in "-._" for c in host)


def wire_name(name: str) -> dns.name.Name:
    """Absolute name; U-labels become A-labels.  DnsNotFound: no such name can exist."""
    text = name.removesuffix(".")
    try:
        if not text.isascii():
            text = ".".join(map(_a_label, _DOTS.split(text)))
        if any(not label or len(label) > 63 for label in text.split(".")):
            raise DnsNotFound(name, "")
        return dns.name.from_text(text.replace("\\", "\\\\") + ".").canonicalize()
    except (UnicodeError, dns.exception.DNSException):
        raise DnsNotFound(name, "") from None


def _a_label(label: str) -> str:
    """IDNA2003, but for the four characters that it replaces or drops: in IDNA2008 they make another name, which may
    be another's (straße.de is not strasse.de; postconf(5) enable_idna2003_compatibility = no)."""
    if not _DEVIATIONS.search(label):
        try:
            return label.encode("idna").decode("ascii")
        except UnicodeError:
            # Its rule for names from right to left forbids what RFC 5893 allows: an end in a digit or a vowel sign.
            if not all(c.isalnum() or c == "-" or unicodedata.category(c)[0] == "M" for c in label):
                raise
        return "xn--" + unicodedata.normalize("NFC", label.lower()).encode("punycode").decode("ascii")
    from encodings.idna import nameprep  # with its tables, which few need

    prepared = "".join(part if _DEVIATIONS.match(part) else nameprep(part) for part in _DEVIATIONS.split(label))
    return "xn--" + prepared.encode("punycode").decode("ascii")


def pointer_name(address: str) -> str | None:
    """Return the name to ask for the PTR of an IP address, None when it is none."""
    try:
        return dns.reversename.from_address(address).to_text()
    except (ValueError, dns.exception.DNSException):
        return None
