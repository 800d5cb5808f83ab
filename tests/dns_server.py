"""A small real DNS server for tests: UDP and TCP on a loopback port.

    server = await DnsServer.start()
    server.add("dst.test", "MX", "10 mx1.dst.test.", "20 mx2.dst.test.")
    server.add("mx1.dst.test", "A", "127.0.0.2")
    server.add("www.dst.test", "CNAME", "mx1.dst.test.", ttl=5)
    server.rcode("broken.test", "SERVFAIL")          # any type; rcode("x.test", "REFUSED", "MX"): only this type
    server.silent("slow.test")                       # never answers
    server.special("odd.test", lambda query: b"...") # wire bytes of your own (or None, or several in a list)
    settings = ResolverSettings(dns_servers=(server.address,), inet_protocols=("all",))
    ... server.count("dst.test", "MX") ...           # questions seen
    await server.close()

A name that was never mentioned is NXDOMAIN with an SOA; a known name without that type is NODATA.  CNAMEs are
followed as a resolver would; `chase = False` returns the CNAME alone.  A UDP answer over the client's payload
size is truncated (TC=1); `tcp = False` makes the TCP port refuse connections.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

Wires = bytes | list[bytes] | None
SOA = "ns.test. hostmaster.test. 1 3600 600 86400 30"


def _key(name: str, kind: str) -> tuple[str, str]:
    return name.lower().rstrip(".") + ".", kind


class DnsServer:
    """See above.  address: "127.0.0.1:PORT" as in dns_servers."""

    def __init__(self) -> None:
        self.tcp = True
        self.chase = True
        self.address = ""
        self._records: dict[tuple[str, str], list[dns.rrset.RRset]] = {}
        self._rcodes: dict[tuple[str, str], dns.rcode.Rcode] = {}
        self._special: dict[str, Callable[[dns.message.Message], Wires]] = {}
        self._asked: Counter[tuple[str, str]] = Counter()
        self._udp: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None

    @classmethod
    async def start(cls) -> "DnsServer":
        """Listen on a free port, the same for UDP and TCP."""
        self = cls()
        loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Udp(self), local_addr=("127.0.0.1", port))
        self._server = await asyncio.start_server(self._serve_tcp, sock=listener)
        self.address = f"127.0.0.1:{port}"
        return self

    async def close(self) -> None:
        """Stop listening."""
        if self._udp is not None:
            self._udp.close()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def add(self, name: str, kind: str, *values: str, ttl: int = 300) -> None:
        """Set the records of a name and type, in zone-file form; no values = the name exists without them."""
        owner, kind = _key(name, kind)
        self._records[owner, kind] = [dns.rrset.from_text(owner, ttl, "IN", kind, *values)] if values else []

    def rcode(self, name: str, rcode: str, kind: str = "") -> None:
        """Answer questions about this name with an error."""
        self._rcodes[_key(name, kind)] = dns.rcode.from_text(rcode)

    def silent(self, name: str) -> None:
        """Never answer questions about this name."""
        self.special(name, lambda _: None)

    def special(self, name: str, make: Callable[[dns.message.Message], Wires]) -> None:
        """Answer UDP questions about this name with datagrams of your own."""
        self._special[_key(name, "")[0]] = make

    def count(self, name: str, kind: str) -> int:
        """How often this was asked, over UDP or TCP."""
        return self._asked[_key(name, kind)]

    def respond(self, query: dns.message.Message) -> dns.message.Message:
        """The ordinary answer."""
        question = query.question[0]
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        answer = dns.message.make_response(query, recursion_available=True)
        rcode = self._rcodes.get((name, kind), self._rcodes.get((name, "")))
        if rcode is not None:
            answer.set_rcode(rcode)
            return answer
        while (name, "CNAME") in self._records and kind != "CNAME":
            alias = self._records[name, "CNAME"][0]
            if alias in answer.answer:
                break
            answer.answer.append(alias)
            if not self.chase:
                return answer
            name = alias[0].target.to_text().lower()
        found = self._records.get((name, kind), [])
        answer.answer.extend(found)
        if not found and kind != "CNAME":
            answer.authority.append(dns.rrset.from_text("test.", 30, "IN", "SOA", SOA))
            if not any(owner == name for owner, _ in self._records):
                answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer

    def udp_answers(self, wire: bytes) -> list[bytes]:
        """Datagrams to send back for one datagram."""
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        self._asked[name, kind] += 1
        make = self._special.get(name)
        if make is not None:
            made = make(query)
            return [] if made is None else made if isinstance(made, list) else [made]
        answer = self.respond(query)
        full = answer.to_wire(max_size=65535)
        if len(full) > (query.payload or 512):
            answer.answer.clear()
            answer.flags |= dns.flags.TC
            full = answer.to_wire()
        return [full]

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.tcp:
                length = int.from_bytes(await reader.readexactly(2), "big")
                query = dns.message.from_wire(await reader.readexactly(length))
                question = query.question[0]
                self._asked[question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)] += 1
                wire = self.respond(query).to_wire(max_size=65535)
                writer.write(len(wire).to_bytes(2, "big") + wire)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # before 3.12 it is one only by behaviour

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._transport is not None:
            for wire in self._server.udp_answers(data):
                self._transport.sendto(wire, addr)
