"""One connection to an SMTP or LMTP server: the sans-io dialogue on a transport.

The dialogue runs in data_received: a command follows a reply without a task being woken, and a recipient's fate is
reported in the very call that read the reply.

Up to READ_AHEAD octets of the message are read while the peer answers MAIL and RCPT; a small message then goes out
with its final dot in one write, as does the last piece of a larger one.  The final dot is written only after the
content has ended, which is when a wrong checksum is found (CorruptContentError): then the connection is dropped.

See also: mta/smtp/client.py, mta/deliver/smtp_wire.py (octets and deadlines)
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterable

from mta.deadlines import NEVER
from mta.deliver.request import CorruptContentError
from mta.deliver.smtp_failure import MAX_WORDS, UNREADABLE, Failure, words
from mta.deliver.smtp_wire import Wire
from mta.smtp.client_events import (
    Broken,
    Closed,
    Event,
    Fate,
    Finished,
    Ready,
    Refused,
    Send,
    StartTls,
    Step,
    WantBody,
)
from mta.smtp.commands import Transaction
from mta.smtp.data import DotStuffer
from mta.smtp.folding import LineFolder
from mta.smtp.reply import Reply
from mta.tls import why_no_tls

READ_AHEAD = 64 * 1024  # octets


class Session(Wire):
    """See the module."""

    _fate: Callable[[Fate], None] | None = None
    _body_wanted = False
    _tls_wanted = False
    _prepared: bytes | None = None

    # -- what the agent does ----------------------------------------------------------------------

    async def open(self, context: ssl.SSLContext | None) -> Failure | None:
        """Wait for greeting and EHLO, start TLS when the dialogue asks for it; None: ready for a message."""
        self._arm()
        try:
            while self._failure is None and self._busy:
                await self._wait()
                if self._tls_wanted and self._failure is None:
                    self._tls_wanted = False
                    await self._start_tls(context)
        except BaseException:
            self.abort()
            raise
        return self._failure

    async def send(
        self, message: Transaction, content: Callable[[], AsyncIterator[bytes]], fate: Callable[[Fate], None]
    ) -> Failure | None:
        """Run one transaction; fate is called for each recipient that the peer has decided upon.

        Returns why the others have no fate, None when all have.  The session stays usable when `reusable`.
        """
        self.uses += 1
        self.reusable = self._body_wanted = False
        self._prepared = None
        self._fate = fate
        if not self.alive:
            return self._failure or self._lost_failure()
        self._busy = True
        try:
            self._put(self.client.begin(message))
            self._arm()
            await self._send_body(content)
            while self._busy and self._failure is None:
                await self._wait()
        except CorruptContentError:
            self.abort()
            return UNREADABLE
        except BaseException:
            self.abort()
            raise
        finally:
            self._busy = False
            self._fate = None
        return self._failure

    async def reset(self) -> bool:
        """Leave an unfinished transaction; False when the connection is of no more use."""
        if not self.alive:
            return False
        self._busy = True
        self._put(self.client.reset())
        self._arm()
        while self._busy and self._failure is None:
            await self._wait()
        return self._failure is None and not self._lost

    def quit(self) -> None:
        """Say QUIT and let the connection end by itself; its outcome means nothing."""
        self.reusable = self._busy = False
        if self._transport is None or self._transport.is_closing():
            return
        if self.client.closed:
            self._transport.close()
            self._arm()  # nobody may want to read what was not sent yet
            return
        self._put(self.client.quit())
        self._arm()

    # -- the message ------------------------------------------------------------------------------

    async def _send_body(self, content: Callable[[], AsyncIterator[bytes]]) -> None:
        stuffer, folder = DotStuffer(), LineFolder(self._settings.smtp_line_length_limit)
        ahead: list[bytes] = []
        size = 0
        streaming = False
        last = b""  # goes out with the final dot
        chunks = content()
        try:
            async for chunk in chunks:
                if not self._busy or self._failure is not None:
                    return
                piece = stuffer.feed(folder.feed(chunk))
                if not streaming:
                    ahead.append(piece)
                    size += len(piece)
                    if size <= READ_AHEAD:
                        continue
                    if not await self._until_wanted():
                        return
                    streaming, piece = True, b"".join(ahead)
                    ahead.clear()
                if last and not await self._write(last):
                    return
                last = piece
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None:
                await close()
        if streaming:
            self._end_body(last + stuffer.finish())
        elif self._busy:
            ahead.append(stuffer.finish())
            self._prepared = b"".join(ahead)
            if self._body_wanted:
                self._send_prepared()

    async def _until_wanted(self) -> bool:
        while self._busy and self._failure is None and not self._body_wanted:
            await self._wait()
        if not self._body_wanted or self._failure is not None or self._transport is None:
            return False
        # One chunk in our memory, the rest in the kernel's.  Not 0: asyncio's TLS would pause at an empty buffer.
        self._transport.set_write_buffer_limits(high=1, low=0)
        return True

    async def _write(self, piece: bytes) -> bool:
        """Write and wait until the kernel has it all; False when the session ended meanwhile."""
        if self._failure is not None or not self._busy:
            return False
        self._put(piece, now=True)
        while self._paused and self._busy and self._failure is None:
            self._arm()
            await self._wait()
        self.deadline = NEVER
        return self._failure is None and self._busy

    def _end_body(self, tail: bytes) -> None:
        if self._busy and self._failure is None:
            self.client.end_body()
            self._put(tail)
            self._arm()

    def _send_prepared(self) -> None:
        whole, self._prepared = self._prepared, None
        if whole is not None:
            self._end_body(whole)

    # -- events -----------------------------------------------------------------------------------

    def _handle(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Send(data):
                    self._put(data)
                case Fate():
                    if self._fate is not None:
                        self._fate(event)
                case WantBody():
                    self._body_wanted = True
                    if self._prepared is None:
                        self._wake()
                    else:
                        self._send_prepared()
                case Finished(reusable, reset_needed):
                    self.reusable, self.reset_needed = reusable and not self._lost, reset_needed
                    self._done()
                case Ready():
                    self._done()
                case StartTls():
                    self._tls_wanted = True
                    self._wake()
                case Refused():
                    self._refused(event)
                case Broken():
                    self._broken(event)
                case Closed():
                    self._lost_idle()

    def _done(self) -> None:
        self._busy = False
        self.deadline = NEVER
        self._wake()

    def _refused(self, event: Refused) -> None:
        heard = event.heard
        reply = heard.reply
        if reply.is_permanent and event.step is Step.GREETING and self._settings.smtp_skip_5xx_greeting:
            reply = Reply(reply.code - 100, f"4{reply.enhanced[1:]}", reply.text)
        elif not (reply.is_temporary or reply.is_permanent):
            reply = Reply(451, "4.5.0", reply.text)
        text = f"host {self.namaddr} refused to talk to me: {words(heard)}"
        self._put(b"QUIT\r\n", now=True)
        if self._transport is not None:
            self._transport.close()
        self._fail(Failure(reply, text, heard, tls=heard.reply.is_permanent and self._blames_tls(event.step)))

    def _broken(self, event: Broken) -> None:
        text = f"protocol error from {self.namaddr} while {event.step.where}: {event.problem[:MAX_WORDS]}"
        if self._busy:
            self._fail(Failure(Reply(451, "4.5.0", "protocol error"), text, tls=self._blames_tls(event.step)))
        self.abort()

    def _lost_idle(self) -> None:
        self.reusable = False
        if self._busy:
            self._fail(self._lost_failure())
        if self._transport is not None:
            self._transport.close()

    # -- TLS --------------------------------------------------------------------------------------

    async def _start_tls(self, context: ssl.SSLContext | None) -> None:
        transport = self._transport
        if transport is None or context is None:
            raise RuntimeError("no TLS context")
        self.deadline = NEVER
        loop = asyncio.get_running_loop()
        limit = self._settings.smtp_starttls_timeout
        try:
            secured = await loop.start_tls(transport, self, context, ssl_handshake_timeout=limit)
            why = "lost connection"
        except OSError as error:  # ssl.SSLError and TimeoutError are among them
            secured, why = None, why_no_tls(error)
        if secured is None:
            text = "Cannot start TLS: handshake failure"
            self._fail(Failure(Reply(451, "4.7.5", text), text, tls=True, handshake=why))
            self._deadlines.forget(self)  # the loops do not always say that its transport is gone
            with contextlib.suppress(OSError):
                transport.abort()
            return
        self._transport = secured
        self._handle(self.client.tls_started())
        self._arm()
