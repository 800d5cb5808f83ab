"""The log tools of Debian: fetched as packages, unpacked into a directory of their own, nothing installed.

$AIOMTA_LOG_TOOLS names the directory (/var/tmp/aiomta-log-tools); it is made once.  Works as any user where the
package lists are there (root fetches them when they are not).
"""

import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

TOOLS = Path(os.environ.get("AIOMTA_LOG_TOOLS", f"/var/tmp/aiomta-log-tools-{os.getuid()}"))
PACKAGES = (
    *("pflogsumm", "libdate-calc-perl", "libdate-calc-xs-perl", "libbit-vector-perl", "libcarp-clan-perl"),
    *("logwatch", "libdate-manip-perl", "fail2ban"),
)
TIMEOUT = 300.0


def missing() -> str:
    """Why the tools cannot be had here; "" when they can."""
    for program in ("apt-get", "dpkg-deb", "perl", "/usr/bin/python3"):
        if shutil.which(program) is None:
            return f"no {program}"
    return ""


def prepare() -> None:
    """Fetch and unpack, once."""
    TOOLS.mkdir(parents=True, exist_ok=True)
    with (TOOLS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = TOOLS / "packages"
        if stamp.exists() and stamp.read_text().split() == list(PACKAGES):
            return
        shutil.rmtree(TOOLS / "root", ignore_errors=True)
        (TOOLS / "debs").mkdir(exist_ok=True)
        if not _download() and os.getuid() == 0:
            _call("apt-get", "update", "-q")
            _download()
        for package in (TOOLS / "debs").glob("*.deb"):
            _call("dpkg-deb", "-x", str(package), str(TOOLS / "root"))
        shutil.rmtree(TOOLS / "debs")
        script = TOOLS / "root/usr/share/logwatch/scripts/logwatch.pl"
        text = script.read_text().replace('"/usr/share/logwatch"', f'"{TOOLS}/root/usr/share/logwatch"')
        script.write_text(text.replace('"/etc/logwatch"', f'"{TOOLS}/root/etc/logwatch"'))
        stamp.write_text(" ".join(PACKAGES))


def _download() -> bool:
    return _call("apt-get", "download", "-q", *PACKAGES, check=False) == 0


def _call(*argv: str, check: bool = True) -> int:
    done = subprocess.run(argv, cwd=TOOLS / "debs", capture_output=True, timeout=TIMEOUT, check=False)
    assert not check or done.returncode == 0, (argv, done.stderr)
    return done.returncode


def _run(*argv: str) -> str:
    """A tool's report."""
    root = TOOLS / "root"
    arch = next((root / "usr/lib").glob("*-linux-gnu/perl5/*"))
    environ = {
        "PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(TOOLS), "PERL5LIB": f"{root}/usr/share/perl5:{arch}",
        "PYTHONPATH": f"{root}/usr/lib/python3/dist-packages", "PYTHONDONTWRITEBYTECODE": "1",
        **({"TZ": os.environ["TZ"]} if "TZ" in os.environ else {}),
    }  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=environ)
    assert done.returncode == 0, (argv, done.stderr[-2000:], done.stdout[-2000:])
    return done.stdout


def pflogsumm(log: Path) -> str:
    """Its report, with nothing left out."""
    return _run("perl", str(TOOLS / "root/usr/sbin/pflogsumm"), "--verbose_msg_detail", str(log))


def fail2ban(log: Path, mode: str) -> tuple[int, int]:
    """(lines that its postfix filter matches in a mode, lines whose date it reads)."""
    root = TOOLS / "root"
    report = _run(
        "/usr/bin/python3", str(root / "usr/bin/fail2ban-regex"), "-c", str(root / "etc/fail2ban"), str(log),
        f"{root}/etc/fail2ban/filter.d/postfix.conf[mode={mode}]",
    )  # fmt: skip
    matched = re.search(r"Failregex: (\d+) total", report)
    dated = re.search(r"\|  \[(\d+)\] \{\^LN-BEG\}", report)
    assert matched and dated, report
    return int(matched[1]), int(dated[1])


def logwatch(log: Path) -> str:
    """Its postfix report at high detail.  log: named mail.log, alone in its directory."""
    return _run(
        "perl", str(TOOLS / "root/usr/share/logwatch/scripts/logwatch.pl"), "--service", "postfix", "--range", "all",
        "--logdir", str(log.parent), "--detail", "High", "--output", "stdout", "--format", "text",
    )  # fmt: skip
