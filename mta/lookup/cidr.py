"""cidr_table(5): rules on networks.  A list without if and "!" costs one dictionary probe per prefix length."""

import ipaddress
import re

from mta.lookup.context import LookupContext
from mta.lookup.lines import Warnings
from mta.lookup.rules import RuleTable, Step, first_match, parse_rules

Address = tuple[int, int]  # (bits: 32 or 128, value)
Network = tuple[int, int, int]  # (bits, prefix length, value of the leading bits, shifted right)


def parse_address(text: str) -> Address | None:
    """Return (32 or 128, number), None when text is no address.  "[...]" and "IPv6:" are taken off."""
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    if text[:5].lower() == "ipv6:":
        text = text[5:]
    if ":" not in text:
        parts = text.split(".")
        if len(parts) != 4 or not all(p.isdigit() and p.isascii() and len(p) <= 3 for p in parts):
            return None
        a, b, c, d = map(int, parts)
        return (32, a << 24 | b << 16 | c << 8 | d) if max(a, b, c, d) < 256 else None
    try:
        return 128, int(ipaddress.IPv6Address(text.partition("%")[0]))
    except ValueError:
        return None


def unmapped(address: Address) -> Address:
    """An IPv4 address in IPv6 form (::ffff:a.b.c.d) is the IPv4 address."""
    bits, value = address
    return (32, value & 0xFFFFFFFF) if bits == 128 and value >> 32 == 0xFFFF else address


def parse_network(text: str) -> Network:
    """Return a network; ValueError in Postfix's words when it is none, or has bits set behind its prefix."""
    base, slash, length = text.partition("/")
    if base.startswith("[") and text.endswith("]"):  # [v6/n]
        base, _, length = text[1:-1].partition("/")
        slash = "/" if length else ""
    address = parse_address(base)
    if address is None:
        raise ValueError(f'bad net/mask pattern: "{text}"')
    bits, value = address
    if not slash:
        return bits, bits, value
    if not (length.isascii() and length.isdigit() and int(length) <= bits):
        raise ValueError(f'bad net/mask pattern: "{text}"')
    shift = bits - int(length)
    if value & ((1 << shift) - 1):
        right = ipaddress.ip_network((value >> shift << shift, int(length))) if bits == 128 else None
        fixed = right or ipaddress.IPv4Network((value >> shift << shift, int(length)))
        raise ValueError(f'non-null host address bits in "{text}", perhaps you should use "{fixed}" instead')
    return bits, int(length), value >> shift


class _NetworkRule:
    """One line."""

    def __init__(self, network: Network, result: str, *, negated: bool) -> None:
        self.network, self.result, self.negated = network, result, negated

    def match(self, key: Address) -> str | None:
        """The result when the address is in the network or, negated, is another one of its family."""
        bits, length, lead = self.network
        if key[0] != bits:
            return None
        inside = key[1] >> (bits - length) == lead
        return self.result if inside is not self.negated else None


def _parse(text: str, condition: bool) -> _NetworkRule:
    negated = False
    while text.startswith("!"):
        negated, text = not negated, text[1:].lstrip()
    match = re.match(r"(\S+)\s*(.*)", text, re.DOTALL)
    if match is None:
        raise ValueError("no address pattern")
    if condition and match[2]:
        raise ValueError("garbage after IF pattern")
    if not condition and not match[2]:
        raise ValueError("no lookup result")
    return _NetworkRule(parse_network(match[1]), match[2], negated=negated)


class NetworkIndex:
    """Plain networks by prefix length; a match is the one that stood first in the list."""

    def __init__(self) -> None:
        self._by_bits: dict[int, list[tuple[int, dict[int, tuple[int, str]]]]] = {32: [], 128: []}

    def add(self, network: Network, order: int, result: str) -> None:
        """Add a network; an equal one that came before stays."""
        bits, length, lead = network
        for shift, entries in self._by_bits[bits]:
            if shift == bits - length:
                entries.setdefault(lead, (order, result))
                return
        self._by_bits[bits].append((bits - length, {lead: (order, result)}))

    def find(self, address: Address) -> str | None:
        """The result of the first network in the list that holds the address."""
        bits, value = address
        best: tuple[int, str] | None = None
        for shift, entries in self._by_bits[bits]:
            found = entries.get(value >> shift)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
        return best[1] if best else None


class _CidrLookup:
    """A whole table."""

    def __init__(self, steps: list[Step[Address]]) -> None:
        self._steps = steps
        self._index: NetworkIndex | None = None
        rules = [s.rule for s in steps if isinstance(s.rule, _NetworkRule) and not s.end and not s.rule.negated]
        if len(rules) == len(steps):
            self._index = NetworkIndex()
            for order, rule in enumerate(rules):
                self._index.add(rule.network, order, rule.result)

    def __call__(self, key: str) -> str | None:
        address = parse_address(key)
        if address is None:
            return None
        return self._index.find(address) if self._index else first_match(self._steps, address)


def cidr_table(name: str, path: str, context: LookupContext) -> RuleTable[Address]:
    """Open cidr:path."""

    def compile_table(data: bytes, warnings: Warnings) -> _CidrLookup:
        return _CidrLookup(parse_rules(data, warnings, _parse, "cidr"))

    return RuleTable(name, path, context, compile_table)
