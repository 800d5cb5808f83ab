"""`python -m sendmail_compat.install PREFIX`: write PREFIX/bin/sendmail with the links of commands.py (mailq ...).

The stub names an interpreter that starts fast (the distribution's /usr/bin/python3, not a shim first on PATH) and
the directory of this package, and fast.py is compiled for that interpreter.  Also for packages: `--library` and
`--interpreter` say what holds on the target, `--destdir` where to write.

The stub is a few lines, compiled at every start: whatever is wrong with the files it loads is one line and "try again
later" for its caller.  It names the one file to load; looking for a module of that name would take 0.2 ms longer.
-Xutf8: an argument's bytes are what the caller wrote, whatever the locale makes of them.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from pathlib import Path

from sendmail_compat.commands import LINKS, STUB

SYSTEM_PYTHON = "/usr/bin/python3"
_CHECK = "import sys; sys.exit(sys.version_info < (3, 11))"
_STUB = """\
#!{python} -ISBXutf8
# sendmail, mailq, postqueue ...: written by sendmail_compat.install.
import sys

try:
    fast = sys.modules["fast"] = type(sys)("fast")
    fast.__file__ = {file!r}
    exec(type(__loader__)("fast", fast.__file__).get_code("fast"), fast.__dict__)
except Exception:
    import posix

    posix.write(2, b"sendmail: fatal: installation incomplete: sendmail_compat cannot be read; nothing was queued\\n")
    posix._exit(75)
fast.start()
"""
_COMPILE = (
    "import py_compile, sys; py_compile.compile(sys.argv[1], doraise=True,"
    " invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)"
)


def interpreter() -> str:
    """The system's Python when it is new enough, else the one that runs this."""
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-IS", "-c", _CHECK], capture_output=True, check=False)  # noqa: S603
        if done.returncode == 0:
            return SYSTEM_PYTHON
    except OSError:
        pass
    return os.path.realpath(sys.executable)


def stub_text(python: str, library: str) -> str:
    """The stub for one interpreter and library."""
    return _STUB.format(python=python, file=f"{library}/sendmail_compat/fast.py")


def install(prefix: Path, *, python: str = "", library: str = "", destdir: str = "") -> Path:
    """Write stub and links below destdir + prefix/bin; return the stub's path."""
    python = python or interpreter()
    package = Path(__file__).resolve().parent
    folder = Path(f"{destdir}{prefix}") / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    stub = folder / STUB.name
    fresh = folder / f".sendmail.{os.getpid()}"
    fresh.write_text(stub_text(python, library or str(package.parent)))
    fresh.chmod(0o755)
    fresh.rename(stub)
    for command in LINKS:
        link = folder / command.name
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
        link.symlink_to(STUB.name)
    # Read-only: it is then compiled at each start, which is slower but works.
    subprocess.run([python, "-I", "-c", _COMPILE, str(package / "fast.py")], capture_output=True, check=False)  # noqa: S603
    return stub


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sendmail_compat.install", description=__doc__.partition("\n")[0])
    parser.add_argument("prefix", type=Path, help="for example /usr or .venv")
    parser.add_argument("--interpreter", default="", help=f"default: {SYSTEM_PYTHON} when it is 3.11 or newer")
    parser.add_argument("--library", default="", help="directory that will hold sendmail_compat and mta")
    parser.add_argument("--destdir", default="", help="put in front of the prefix when writing")
    options = parser.parse_args()
    prefix = options.prefix if options.destdir else options.prefix.resolve()
    print(install(prefix, python=options.interpreter, library=options.library, destdir=options.destdir))
    return 0


if __name__ == "__main__":
    sys.exit(main())
