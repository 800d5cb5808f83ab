"""What a caller may leave closed, full, short or strange around sendmail: an exit status that is true, and a line."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sendmail.world import Done, World

MESSAGE = b"To: bob@r.test\nSubject: s\n\nbody\n"
BIG = MESSAGE + b"xxxxxxxxx\n" * 150_000  # more than is kept in memory


def closed(*fds: int) -> Callable[[], None]:
    def close() -> None:
        for fd in fds:
            os.close(fd)

    return close


def full(fd: int) -> Callable[[], None]:
    def put() -> None:
        device = os.open("/dev/full", os.O_WRONLY)
        os.dup2(device, fd)
        os.close(device)

    return put


def limited(what: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(what, (value, value))


def one_line(done: Done, text: str) -> None:
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("fds", [(1,), (2,), (1, 2), (0, 1, 2)])
async def test_a_message_is_queued_whatever_else_is_closed(fds: tuple[int, ...], world: World) -> None:
    argv = ["-t", "-i"] if 0 not in fds else ["bob@r.test"]  # a closed stdin is an empty message
    assert (await world.run(argv, MESSAGE, before=closed(*fds))).status == 0
    assert len(await world.queued()) == 1


@pytest.mark.parametrize(("program", "argv"), [("mailq", []), ("sendmail", ["-bp"]), ("sendmail", ["--help"])])
async def test_nobody_is_told_where_stdout_is_closed(program: str, argv: list[str], world: World) -> None:
    done = await world.run(argv, program=program, before=closed(1))
    assert done.status == 0, done
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("argv", "status", "who"),
    [(["-bp"], 69, "postqueue"), (["--help"], 74, "sendmail"), (["--version"], 74, "sendmail")],
)
async def test_output_that_is_lost_is_an_error(argv: list[str], status: int, who: str, world: World) -> None:
    done = await world.run(argv, before=full(1))
    assert done.status == status, done
    one_line(done, f"{who}: fatal: output write error: No space left on device")


async def test_the_queue_id_of_v_may_be_lost_and_the_message_is_not(world: World) -> None:
    assert (await world.run(["-v", "-t"], MESSAGE, before=full(1))).status == 0
    assert len(await world.queued()) == 1


def standing_for(fd: int, path: str, flags: int) -> Callable[[], None]:
    def put() -> None:
        os.dup2(os.open(path, flags), fd)

    return put


def hung_up() -> None:
    """stdin is a terminal whose other end is gone."""
    near, far = os.openpty()
    os.close(far)
    os.dup2(near, 0)


@pytest.mark.parametrize("argv", [["-t"], ["-i", "bob@r.test"], ["-bm", "bob@r.test"]])
@pytest.mark.parametrize("before", [standing_for(0, "/dev/null", os.O_WRONLY), hung_up], ids=["write-only", "EIO"])
async def test_a_message_that_cannot_be_read_is_not_queued(
    before: Callable[[], None], argv: list[str], world: World
) -> None:
    done = await world.run(argv, before=before)
    assert done.status == 66, done
    one_line(done, "sendmail: fatal: cannot read the message; nothing was queued")
    assert await world.queued() == []


async def test_a_directory_as_input_is_refused_by_the_interpreter_itself(world: World) -> None:
    """Python does not start on one, so the status is its own; nothing of ours has run."""
    done = await world.run(["bob@r.test"], before=standing_for(0, "/", os.O_RDONLY))
    assert done.status == 1, done
    assert "<stdin> is a directory" in done.stderr
    assert await world.queued() == []


async def test_a_message_over_the_callers_own_limit_is_too_big(world: World) -> None:
    done = await world.run(["-t"], BIG, before=limited(resource.RLIMIT_FSIZE, 0))
    assert done.status == 65, done
    one_line(done, "message file too big")
    assert await world.queued() == []


@pytest.mark.parametrize("argv", [["-t"], ["-bp"]])
async def test_nobody_waits_for_a_configuration_in_a_fifo(argv: list[str], world: World, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "main.cf")
    done = await world.run(argv, MESSAGE, env={"MAIL_CONFIG": str(tmp_path)})
    assert done.status == 78, done
    one_line(done, "main.cf: not a regular file")


async def test_a_variable_that_is_too_long_counts_as_missing(world: World) -> None:
    assert (await world.run(["-t"], MESSAGE, env={"NAME": "x" * 70_000})).status == 0
    (message,) = await world.queued()
    assert message.header("From") == 'From: "Alice Q. Tester" <alice@example.test>'


async def test_a_command_line_that_is_too_long_for_the_socket_goes_by_maildrop_without_a_word(world: World) -> None:
    recipients = [f"u{n}@r.test" for n in range(6000)]
    done = await world.run(["-i", *recipients], MESSAGE)
    assert done.status == 0
    assert done.stderr == ""
    assert await world.pickup.scan() == 1
    (message,) = await world.queued()
    assert len(message.envelope.recipients) == 6000
