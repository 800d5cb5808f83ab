"""Runs inside the container: mail by sendmail and by port 25 until told to stop; what was acknowledged is written down.

    python3 load.py LEDGER STOP RECIPIENT

A line in LEDGER is a token that somebody was told is durable: sendmail ended with 0, or the server said 250.
"""

import smtplib
import subprocess
import sys
import threading
import time
from pathlib import Path

PAUSE = 0.02  # seconds between messages of one sender


def by_program(token: str, recipient: str) -> bool:
    """One message through sendmail."""
    text = f"Subject: {token}\n\n{token}\n".encode()
    command = ["/usr/sbin/sendmail", "-i", recipient]
    return subprocess.run(command, input=text, stderr=subprocess.DEVNULL).returncode == 0


def by_port(token: str, recipient: str) -> bool:
    """One message through port 25."""
    try:
        with smtplib.SMTP("127.0.0.1", 25, timeout=60) as client:
            client.sendmail("load@example.test", [recipient], f"Subject: {token}\r\n\r\n{token}\r\n")
    except (OSError, smtplib.SMTPException):
        return False
    return True


def main() -> None:
    """Send until STOP exists."""
    ledger, stop, recipient = sys.argv[1:]
    lock = threading.Lock()
    with open(ledger, "a") as out:

        def sender(name: str) -> None:
            send = by_program if name.startswith("program") else by_port
            number = 0
            while not Path(stop).exists():
                token = f"{name}-{number:06d}-end"
                number += 1
                if send(token, recipient):
                    with lock:
                        out.write(token + "\n")
                        out.flush()
                time.sleep(PAUSE)

        threads = [threading.Thread(target=sender, args=(name,)) for name in ("program1", "program2", "port1", "port2")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
