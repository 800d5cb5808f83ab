"""`make deb`: dist/aiomta_VERSION_all.deb, from this checkout, with dpkg-deb and nothing else.

The same tree gives the same bytes: one time stamp (SOURCE_DATE_EPOCH, or the last commit's time), modes set here,
everything owned by root.  `--version V` builds it under another version (to test upgrades).
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from pathlib import Path

from scripts import package_tree as tree
from scripts.package_tree import Item
from sendmail_compat.commands import LINKS

HERE = tree.ROOT / "packaging/deb"
DOC = "usr/share/doc/aiomta"
CHANGELOG = """\
aiomta ({version}) unstable; urgency=medium

  * See NEWS in this directory.

 -- aiomta maintainers <aiomta@localhost.localdomain>  {date}
"""


def items(version: str, stamp: int) -> Iterator[Item]:
    """Everything but the control files."""
    yield from tree.python_files()
    yield from tree.programs()
    yield from commands()
    yield from tree.system_files("lib/systemd/system")
    for item in tree.configuration():
        if item.path == "etc/mta/main.cf":
            item = Item(item.path, debian_main_cf(item.content), conffile=True)
        yield item
    yield Item("etc/init.d/mta", (HERE / "init").read_bytes(), 0o755, conffile=True)
    yield Item("usr/share/python3/runtime.d/aiomta.rtupdate", (HERE / "rtupdate").read_bytes(), 0o755)
    for name, text in tree.manuals():
        yield Item(f"usr/share/man/{name}.gz", tree.compressed(text))
    yield from tree.completions("usr/share/zsh/vendor-completions")
    for name, text in tree.documents():
        yield Item(f"{DOC}/{name}", text)
    yield Item(f"{DOC}/copyright", (HERE / "copyright").read_bytes())
    yield Item(f"{DOC}/NEWS.gz", tree.compressed((tree.ROOT / "CHANGELOG.md").read_bytes()))
    changelog = CHANGELOG.format(version=version, date=formatdate(stamp, localtime=False).replace("-0000", "+0000"))
    yield Item(f"{DOC}/changelog.gz", tree.compressed(changelog.encode()))
    yield Item("usr/share/lintian/overrides/aiomta", (HERE / "lintian-overrides").read_bytes())


def debian_main_cf(text: bytes) -> bytes:
    """Debian Policy 11.6: the name after @ is in /etc/mailname.  Mail for it is delivered here."""
    for old, new in ((b"#myorigin = $mydomain", b"myorigin = /etc/mailname"),
                     (b"mydestination = $myhostname", b"mydestination = $myorigin, $myhostname")):  # fmt: skip
        if text.count(old) != 1:
            raise ValueError(f"conf/main.cf: no line {old.decode()!r}")
        text = text.replace(old, new)
    return text


def commands() -> Iterator[Item]:
    """sendmail and its names, where Debian's mail systems have them."""
    yield Item("usr/sbin/sendmail", tree.stub(), 0o755)
    yield Item("usr/lib/sendmail", link="../sbin/sendmail")
    for command in LINKS:
        for folder in {command.folder: 0, tree.ELSEWHERE.get(command.name, command.folder): 0}:
            target = "sendmail" if folder == "sbin" else "../sbin/sendmail"
            yield Item(f"usr/{folder}/{command.name}", link=target)


def control_files(version: str, content: Sequence[Item]) -> Iterator[Item]:
    """DEBIAN/*."""
    size = sum((len(item.content) + 1023) // 1024 for item in content if not item.link) + len(content) // 4
    units = [path.name for path in tree.units()]
    also = re.findall(r"(?m)^Also=(.*)$", (tree.ROOT / "systemd/mta.service").read_text())
    enable = ["mta.service", *" ".join(also).split()]
    fill = {
        "VERSION": version,
        "SIZE": str(size),
        "ENABLE": " ".join(enable),
        "START": " ".join(name for name in enable if name.endswith(".socket")),
        "UNITS": " ".join(name for name in units if "\n[Install]\n" in (tree.ROOT / "systemd" / name).read_text()),
        "SOCKETS": " ".join(name for name in units if name.endswith(".socket")),
        "HELPERS": " ".join(name for name in units if name.endswith(".service") and name != "mta.service"),
    }
    for name in ("control", "postinst", "prerm", "postrm"):
        text = (HERE / name).read_text()
        for key, value in fill.items():
            text = text.replace(f"@{key}@", value)
        yield Item(f"DEBIAN/{name}", text.encode(), 0o644 if name == "control" else 0o755)
    conffiles = "".join(f"/{item.path}\n" for item in content if item.conffile)
    yield Item("DEBIAN/conffiles", conffiles.encode())
    sums = [
        f"{hashlib.md5(item.content, usedforsecurity=False).hexdigest()}  {item.path}\n"
        for item in content
        if not item.link and not item.conffile
    ]
    yield Item("DEBIAN/md5sums", "".join(sorted(sums, key=lambda line: line[34:])).encode())


def build(version: str, directory: Path) -> Path:
    """Write the package into directory; returns its path."""
    stamp = tree.epoch()
    content = list(items(version, stamp))
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"aiomta_{version}_all.deb"
    with tempfile.TemporaryDirectory(prefix="aiomta-deb-") as temporary:
        stage = Path(temporary) / "root"
        tree.write([*content, *control_files(version, content)], stage, stamp)
        environ = {**os.environ, "SOURCE_DATE_EPOCH": str(stamp)}
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(stage), str(target)]
        subprocess.run(command, check=True, env=environ, stdout=subprocess.DEVNULL)  # noqa: S603  (fixed words)
    return target


def main() -> int:
    """Build, and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", default=tree.version())
    parser.add_argument("--directory", type=Path, default=tree.ROOT / "dist")
    args = parser.parse_args()
    print(build(args.version, args.directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
