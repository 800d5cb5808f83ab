"""SMTP clients that use STARTTLS: `python -m tests.bench.tls_source PORT MESSAGES SESSIONS SIZE`.

A connection and a full handshake per message; smtp-source has no TLS.  Threads: handshake and I/O let others run.
"""

import socket
import ssl
import sys
import threading

LINE = b"x" * 70 + b"\r\n"


class Client:
    """One connection."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), 60)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expect(b"220")
        self._say(b"EHLO src.test\r\n", b"250")
        self._say(b"STARTTLS\r\n", b"220")
        self._sock = context.wrap_socket(self._sock)
        self._say(b"EHLO src.test\r\n", b"250")

    def _expect(self, code: bytes) -> None:
        reply = b""
        while not (reply.endswith(b"\r\n") and reply.rpartition(b"\r\n")[0].rpartition(b"\r\n")[2][3:4] == b" "):
            piece = self._sock.recv(4096)
            if not piece:
                raise ConnectionError(f"closed after {reply!r}")
            reply += piece
        if not reply.startswith(code):
            raise ConnectionError(f"{reply!r} instead of {code!r}")

    def _say(self, text: bytes, code: bytes) -> None:
        self._sock.sendall(text)
        self._expect(code)

    def send(self, body: bytes) -> None:
        """One message, and goodbye."""
        self._say(b"MAIL FROM:<from@src.test>\r\n", b"250")
        self._say(b"RCPT TO:<to@dst.test>\r\n", b"250")
        self._say(b"DATA\r\n", b"354")
        self._say(body + b".\r\n", b"250")
        self._say(b"QUIT\r\n", b"221")
        self._sock.close()


def main() -> int:
    """Status 1 when a message is refused."""
    port, messages, sessions, size = map(int, sys.argv[1:])
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    body = b"Subject: bench\r\n\r\n" + LINE * (size // len(LINE))
    left = iter(range(messages))
    lock = threading.Lock()
    failed: list[Exception] = []

    def work() -> None:
        while True:
            with lock:
                if next(left, None) is None or failed:
                    return
            try:
                Client(port, context).send(body)
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in failed:
        print(f"tls_source: {error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
