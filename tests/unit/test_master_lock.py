"""Two masters on one spool exclude each other."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mta.clock import Clock
from mta.master.lock import AlreadyRunningError, read_pid, running, take, wait_until_stopped


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    (tmp_path / "spool" / "pid").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    return tmp_path


def test_the_holder_is_named_while_it_lives_and_nobody_afterwards(spool: Path) -> None:
    assert running(str(spool / "spool")) == 0
    fds = take(str(spool / "spool"), str(spool / "data"))
    assert running(str(spool / "spool")) == os.getpid()
    with pytest.raises(AlreadyRunningError) as caught:
        take(str(spool / "spool"), str(spool / "data"))
    assert caught.value.args[0] == os.getpid()
    for fd in fds:
        os.close(fd)
    assert running(str(spool / "spool")) == 0
    assert read_pid(str(spool / "spool" / "pid" / "master.pid")) == os.getpid()


def test_a_lock_on_the_data_directory_alone_is_enough_to_refuse(spool: Path) -> None:
    fd = os.open(spool / "data" / "master.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(AlreadyRunningError):
        take(str(spool / "spool"), str(spool / "data"))
    os.close(fd)
    for fd in take(str(spool / "spool"), str(spool / "data")):
        os.close(fd)


def test_the_lock_dies_with_the_process(spool: Path) -> None:
    code = (
        "import sys; from mta.master.lock import take; take(sys.argv[1], sys.argv[2]); "
        "print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(spool / "spool"), str(spool / "data")],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"held\n"
    assert running(str(spool / "spool")) == process.pid
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert wait_until_stopped(str(spool / "spool"), Clock(), 5.0)
