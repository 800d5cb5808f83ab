"""A scripted SMTP server for tests: runs the steps of tests/hostile_peer/hostile_peer.jsonl on real sockets.

    peer = await Peer.start(steps, tls=certificates)   # steps: a list as in the corpus, see Peer.run
    ... peer.port, peer.commands (list of lists: the lines of each connection), peer.messages (accepted texts) ...
    await peer.close()

A string is sent as it is (escapes of the corpus already decoded: decode_step).  {"rx": VERB} reads commands until
that one has come; {"rx": "EOD"} reads to the final dot.  After its last step the peer answers like an ordinary
server.  With `lenient_rx` (for the retry without TLS) commands that come instead of an awaited STARTTLS get
ordinary answers.
"""

import asyncio
import contextlib
import datetime
import ssl
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from socket import SO_LINGER, SO_RCVBUF, SOL_SOCKET
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Step = str | Mapping[str, object]


def decode_step(step: Step) -> bytes | Mapping[str, object]:
    """Corpus form -> bytes, or the mapping with its strings as bytes."""
    if isinstance(step, str):
        return unescape(step)
    return step


def unescape(text: str) -> bytes:
    """The corpus writes bytes as text with Python escapes."""
    return text.encode("latin1").decode("unicode_escape").encode("latin1")


class Certificates:
    """Self-signed key and certificate in a directory; context(kind) as the corpus names it."""

    def __init__(self, directory: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> None:
        key = key or ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "peer.test")])
        start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start).not_valid_after(start + datetime.timedelta(days=36500))
            .sign(key, hashes.SHA256())
        )  # fmt: skip
        self.file = directory / "peer.pem"
        self.file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )

    def context(self, kind: str) -> ssl.SSLContext:
        """dh512: no cipher that our side would take, which ends the handshake as a weak group does."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file)
        if kind == "dh512":
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers("PSK:@SECLEVEL=0")
        return context


class Peer:
    """One listening port; each connection runs the script from its first step."""

    def __init__(self, steps: Sequence[Step], certificates: Certificates | None, *, time_scale: float) -> None:
        self.port = 0
        self.connections = 0
        self.commands: list[list[str]] = []
        self.messages: list[bytes] = []
        self._steps = [decode_step(step) for step in steps]
        self._certificates = certificates
        self._scale = time_scale
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def start(
        cls, steps: Sequence[Step], certificates: Certificates | None = None, *, time_scale: float = 0.001,
        host: str = "127.0.0.1",
    ) -> "Peer":  # fmt: skip
        """time_scale: real seconds per second of {"sleep": n}."""
        self = cls(steps, certificates, time_scale=time_scale)
        self._server = await asyncio.start_server(self._accept, host, 0)
        self._server.sockets[0].setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)  # stop_reading must be felt early
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        """Stop listening and drop what is open."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.commands.append([])
        try:
            await _Conversation(self, reader, writer, self.commands[-1], first=self.connections == 1).run()
        except (OSError, EOFError, ssl.SSLError, asyncio.LimitOverrunError, ValueError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(Exception):
                writer.transport.abort()


class _Gone(Exception):
    """The script closed the connection."""


class _Conversation:
    def __init__(
        self, peer: Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: list[str], *, first: bool
    ) -> None:
        self.peer, self.reader, self.writer, self.seen = peer, reader, writer, seen
        self.first = first
        self.last_command = ""
        self.body = b""

    async def run(self) -> None:
        try:
            for step in self.peer._steps:
                if isinstance(step, bytes):
                    self.writer.write(step)
                    await self.writer.drain()
                    if self.last_command == "EOD" and step[:1] == b"2":
                        self.peer.messages.append(self.body)
                else:
                    await self._do(step)
            await self._ordinary()
        except _Gone:
            pass

    async def _do(self, step: Mapping[str, object]) -> None:
        match step:
            case {"rx": str(verb)}:
                await self._read_until(verb)
            case {"repeat": str(text), "n": int(times)}:
                piece = unescape(text)
                block = piece * min(times, max(1, 65536 // len(piece)))
                total = len(piece) * times
                while total > 0:
                    self.writer.write(block[:total])
                    total -= len(block)
                    await self.writer.drain()
            case {"sleep": int() | float() as seconds}:
                await asyncio.sleep(seconds * self.peer._scale)
            case {"hang": True}:
                await asyncio.Event().wait()
            case {"close": True}:
                self.writer.close()
                raise _Gone
            case {"rst": True}:
                sock = self.writer.get_extra_info("socket")
                sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                self.writer.transport.abort()
                raise _Gone
            case {"stop_reading": True}:
                cast(asyncio.Transport, self.writer.transport).pause_reading()
                await asyncio.sleep(0.02)
            case {"tls": str(kind)}:
                await self._tls(kind)
            case _:
                raise ValueError(f"unknown step {step}")

    async def _line(self) -> str:
        raw = await self.reader.readuntil(b"\r\n")
        line = raw[:-2].decode("latin1")
        self.seen.append(line)
        return line

    async def _read_body(self) -> None:
        lines = []
        while (line := await self.reader.readuntil(b"\r\n")) != b".\r\n":
            lines.append(line[1:] if line.startswith(b"..") else line)
        self.body = b"".join(lines)
        self.last_command = "EOD"

    async def _read_until(self, verb: str) -> None:
        if verb == "EOD":
            await self._read_body()
            return
        while True:
            line = await self._line()
            self.last_command = line.split(" ")[0].upper()
            if self.last_command == verb or (verb == "EHLO" and self.last_command in ("HELO", "LHLO")):
                return
            if verb == "STARTTLS" and not self.first:
                await self._answer(self.last_command)

    async def _ordinary(self) -> None:
        while True:
            line = await self._line()
            await self._answer(line.split(" ")[0].upper())

    async def _answer(self, verb: str) -> None:
        self.last_command = verb
        if verb == "DATA":
            self.writer.write(b"354 go\r\n")
            await self._read_body()
            self.peer.messages.append(self.body)
            self.writer.write(b"250 2.0.0 ok\r\n")
        elif verb == "QUIT":
            self.writer.write(b"221 bye\r\n")
            await self.writer.drain()
            self.writer.close()
            raise _Gone
        else:
            self.writer.write(b"250 ok\r\n")
        await self.writer.drain()

    async def _tls(self, kind: str) -> None:
        if self.peer._certificates is None:
            raise ValueError("no certificates")
        await self.writer.start_tls(self.peer._certificates.context(kind))
        if kind == "close-after-ehlo":
            await self._line()
            self.writer.close()
            raise _Gone
