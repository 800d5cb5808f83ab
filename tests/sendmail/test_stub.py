"""The file /usr/sbin/sendmail itself: it finds its library, and says so in one line where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sendmail_compat
from sendmail_compat.install import install, interpreter, stub_text
from tests.sendmail.world import World

MESSAGE = b"To: bob@r.test\nSubject: s\n\nbody\n"


def test_stub_compiles_for_the_interpreter_that_runs_it(tmp_path: Path) -> None:
    stub = install(tmp_path)
    done = subprocess.run([str(stub), "--version"], capture_output=True, text=True, check=False, env={})
    assert done.returncode == 0, done
    assert done.stdout.startswith("aiomta ")
    assert (stub.parent / "mailq").is_symlink()
    assert sys.version_info >= (3, 11)


def test_a_stub_finds_its_library_wherever_it_is(tmp_path: Path) -> None:
    """Names that need quoting, long ones, and the stub that pip installs."""
    library = str(Path(sendmail_compat.__file__).parents[1])
    python = interpreter()
    (tmp_path / "a 'b\"").symlink_to(library)
    (tmp_path / ("long" * 30)).symlink_to(library)
    (tmp_path / "pip/lib/python3").mkdir(parents=True)
    (tmp_path / "pip/lib/python3/dist-packages").symlink_to(library)
    (tmp_path / "pip/bin").mkdir()
    texts = {
        "plain": stub_text(python, library),
        "quoted": stub_text(python, f"{tmp_path}/a 'b\""),
        "long": stub_text(python, f"{tmp_path}/{'long' * 30}"),
        "pip/bin/sendmail": (Path(library) / "sendmail_compat/bin/sendmail").read_text(),
    }
    for name, text in texts.items():
        stub = tmp_path / name
        stub.write_text(text)
        stub.chmod(0o755)
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(stub)
        done = subprocess.run([tmp_path / "link", "--version"], capture_output=True, text=True, check=False, env={})
        assert (done.returncode, done.stdout[:7]) == (0, "aiomta "), done


@pytest.mark.parametrize("what", ["missing", "a directory", "damaged", "no text", "another's"])
@pytest.mark.parametrize("which", ["installed", "pip"])
def test_a_stub_without_its_library_says_so_in_one_line_and_try_later(which: str, what: str, tmp_path: Path) -> None:
    library = tmp_path / "lib/python3/dist-packages"
    fast = library / "sendmail_compat/fast.py"
    fast.parent.mkdir(parents=True)
    match what:
        case "a directory":
            fast.mkdir()
        case "damaged":
            fast.write_text("def start(:\n")
        case "no text":
            fast.write_bytes(b"\0\xff")
        case "another's":
            fast.write_text("import nowhere_to_be_found\n")
    own = (Path(sendmail_compat.__file__).parent / "bin/sendmail").read_text()
    stub = tmp_path / "bin/sendmail"
    stub.parent.mkdir()
    stub.write_text(stub_text(interpreter(), str(library)) if which == "installed" else own)
    stub.chmod(0o755)
    done = subprocess.run([stub, "bob@r.test"], input="x\n", capture_output=True, text=True, check=False, env={})
    assert done.returncode == 75
    assert done.stderr == (
        "sendmail: fatal: installation incomplete: sendmail_compat cannot be read; nothing was queued\n"
    )


async def test_a_module_that_is_missing_later_is_one_line_and_try_later(world: World) -> None:
    """The daemon is away, and so is what would write to its maildrop."""
    await world.stop()
    here = Path(sendmail_compat.__file__).parents[1]
    library = world.root / "part"
    shutil.copytree(here / "sendmail_compat", library / "sendmail_compat", ignore=shutil.ignore_patterns("maildrop*"))
    shutil.copytree(here / "mta", library / "mta")
    world.stub.write_text(stub_text(interpreter(), str(library)))
    done = await world.run(["-t"], MESSAGE)
    assert done.status == 75, done
    assert done.stderr.count("\n") == 1
    assert "installation incomplete" in done.stderr
    assert os.listdir(world.queue / "maildrop") == []


def test_a_compiled_file_of_another_source_or_interpreter_is_not_used(tmp_path: Path) -> None:
    copy = tmp_path / "sendmail_compat"
    (copy / "__pycache__").mkdir(parents=True)
    source = "import posix\ndef start():\n    posix._exit(%d)\n"
    (copy / "fast.py").write_text(source % 3)
    stub = tmp_path / "sendmail"
    stub.write_text(stub_text(interpreter(), str(tmp_path)))
    stub.chmod(0o755)
    assert subprocess.run([stub], check=False, env={}).returncode == 3  # nothing compiled
    tag = "import sys; print(sys.implementation.cache_tag)"
    words = subprocess.run([interpreter(), "-Ic", tag], capture_output=True, text=True, check=True).stdout.split()
    (compiled,) = (copy / "__pycache__" / f"fast.{word}.pyc" for word in words)
    subprocess.run([interpreter(), "-Im", "py_compile", copy / "fast.py"], check=True)
    assert compiled.exists()
    stamp = (copy / "fast.py").stat()
    (copy / "fast.py").write_text(source % 4)
    os.utime(copy / "fast.py", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert subprocess.run([stub], check=False, env={}).returncode == 3  # compiled: same time and size
    os.utime(copy / "fast.py", (1, 1))
    assert subprocess.run([stub], check=False, env={}).returncode == 4  # another time
    for wrong in (b"", b"XXXX" + compiled.read_bytes()[4:]):
        os.utime(copy / "fast.py", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        compiled.write_bytes(wrong)
        assert subprocess.run([stub], check=False, env={}).returncode == 4
