"""postsuper, postqueue, `mta queue` and `sendmail -v` beside a running mail system."""

import json
import re
import socket
import subprocess
import sys

from sendmail_compat.install import install
from tests.crash.system import ROOT, System
from tests.system.support_system import log_of, mail_system, queued, wait_for, whole_log

CAPTURED = {"mydestination": "", "default_transport": "retry:4.0.0 captured", "minimal_backoff_time": "300s",
            "maximal_backoff_time": "300s"}  # fmt: skip


def tool(system: System, name: str, *argv: str, stdin: str = "") -> str:
    """What a command of ours prints; it must end with 0."""
    stub = install(system.directory).parent / name
    line = [str(stub), *(("-C",) if name in ("sendmail", "mailq") else ("-c",)), str(system.etc), *argv]
    done = subprocess.run(line, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def mta(system: System, *argv: str) -> str:
    line = [sys.executable, "-m", "mta", "-c", str(system.etc), "queue", *argv]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, done
    return done.stdout


def fill(system: System, count: int) -> list[str]:
    """Messages that are deferred; their ids."""
    for n in range(count):
        tool(system, "sendmail", "-i", "-f", f"s{n}@x.test", f"r{n}@y.test", stdin="Subject: s\n\nbody\n")
    wait_for(lambda: len(queued(system, "deferred")) == count, "all are deferred")
    return queued(system, "deferred")


def test_messages_are_held_released_requeued_expired_and_deleted() -> None:
    with mail_system(CAPTURED) as system:
        ids = fill(system, 12)
        assert "Placed on hold: 12 messages" in tool(system, "postsuper", "-h", "ALL")
        assert queued(system, "hold") == ids
        assert tool(system, "postqueue", "-p").count("!") == 12
        assert f"{ids[0]}: released from hold" in tool(system, "postsuper", "-H", ids[0])
        wait_for(lambda: log_of(system).count(f"{ids[0]}: to=<") == 2, "it is tried at once")
        wait_for(lambda: queued(system, "deferred") == [ids[0]], "and deferred again")
        assert "Requeued: 12 messages" in tool(system, "postsuper", "-r", "ALL")
        wait_for(lambda: len(queued(system, "deferred")) == 12 and not queued(system, "maildrop", "hold"), "picked up")
        again = queued(system, "deferred")
        assert not set(again) & set(ids)
        listed = [json.loads(line) for line in mta(system, "list", "--json").splitlines()]
        assert sorted(row["queue_id"] for row in listed) == again
        assert sorted(row["sender"] for row in listed) == sorted(f"s{n}@x.test" for n in range(12))
        assert mta(system, "expire", "--recipient", "r1@*").endswith("Expired: 1 message\n")
        wait_for(lambda: "status=force-expired, returned to sender" in log_of(system), "it is returned")
        wait_for(lambda: len(queued(system, "deferred")) == 12, "its bounce is deferred too")
        assert mta(system, "delete", "--sender", "<>", "--dry-run").endswith("Would be deleted: 1 message\n")
        assert mta(system, "delete", "--sender", "<>").endswith("Deleted: 1 message\n")
        assert "Deleted: 11 messages" in tool(system, "postsuper", "-d", "ALL")
        assert tool(system, "mailq") == "Mail queue is empty\n"
        assert [p for paths in system.queue().values() for p in paths] == []
        logged = whole_log(system)
        assert "postfix/postsuper[" in logged and "internal error" not in logged and "Traceback" not in logged


def test_v_prints_the_id_and_what_becomes_of_the_message() -> None:
    with mail_system(CAPTURED) as system:
        out = tool(system, "sendmail", "-v", "-i", "a@y.test", "b@z.test", stdin="Subject: s\n\nbody\n").splitlines()
        assert re.fullmatch("[0-9A-Za-z]+", out[0])
        assert sorted(out[1:3]) == ["a@y.test... deferred (captured)", "b@z.test... deferred (captured)"]


def test_a_message_that_is_being_delivered_is_deleted_once_and_for_all() -> None:
    """The connection stays open without a greeting; what is deleted meanwhile does not come back."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        nexthop = f"smtp:[127.0.0.1]:{silent.getsockname()[1]}"
        with mail_system({**CAPTURED, "default_transport": nexthop, "smtp_helo_timeout": "20s"}) as system:
            tool(system, "sendmail", "-i", "a@y.test", stdin="Subject: s\n\nbody\n")
            wait_for(lambda: len(queued(system, "active")) == 1, "its delivery has begun")
            (queue_id,) = queued(system, "active")
            assert "cannot be requeued now" in tool(system, "postsuper", "-r", queue_id)
            assert "Deleted: 1 message" in tool(system, "postsuper", "-d", queue_id)
            connection, _ = silent.accept()
            connection.close()
            line = f"warning: {queue_id}: taken over by another process, forgotten"
            wait_for(lambda: line in log_of(system), "it is forgotten")
            assert [p for paths in system.queue().values() for p in paths] == []
