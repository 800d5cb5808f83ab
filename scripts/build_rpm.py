"""`make rpm`: dist/aiomta-VERSION-1.noarch.rpm for Fedora and EL10, from this checkout.

Where several mail systems may be installed, each has its programs under names of its own, and `alternatives` leads
sendmail, mailq and the others to one of them.  `--stage` is what the spec file calls to fill the build root.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scripts import package_tree as tree
from scripts.package_tree import Item
from sendmail_compat.commands import LINKS

HERE = tree.ROOT / "packaging/rpm"
MAN = "usr/share/man"
MASTER = "usr/sbin/sendmail.aiomta"
SOURCES = ("mta", "sendmail_compat", "scripts", "packaging", "systemd", "conf", "man", "completions", "docs",
           "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml")  # fmt: skip
SLAVES = {  # name among the alternatives -> (link, our file)
    "mta-mailq": ("usr/bin/mailq", "usr/bin/mailq.aiomta"),
    "mta-newaliases": ("usr/bin/newaliases", "usr/bin/newaliases.aiomta"),
    "mta-rmail": ("usr/bin/rmail", "usr/bin/rmail.aiomta"),
    "mta-sendmail": ("usr/lib/sendmail", "usr/lib/sendmail.aiomta"),
    "mta-pam": ("etc/pam.d/smtp", "etc/pam.d/smtp.aiomta"),
    "mta-makemap": ("usr/sbin/makemap", "usr/sbin/makemap.aiomta"),
    "mta-runq": ("usr/bin/runq", "usr/bin/runq.aiomta"),
    "mta-rsmtp": ("usr/bin/rsmtp", "usr/bin/rsmtp.aiomta"),
    "mta-mailqman": (f"{MAN}/man1/mailq.1.gz", f"{MAN}/man1/mailq.aiomta.1.gz"),
    "mta-newaliasesman": (f"{MAN}/man1/newaliases.1.gz", f"{MAN}/man1/newaliases.aiomta.1.gz"),
    "mta-sendmailman": (f"{MAN}/man8/sendmail.8.gz", f"{MAN}/man1/sendmail.aiomta.1.gz"),
    "mta-aliasesman": (f"{MAN}/man5/aliases.5.gz", f"{MAN}/man5/aliases.aiomta.5.gz"),
    "mta-rmailman": (f"{MAN}/man8/rmail.8.gz", f"{MAN}/man8/rmail.aiomta.8.gz"),
    "mta-makemapman": (f"{MAN}/man8/makemap.8.gz", f"{MAN}/man8/makemap.aiomta.8.gz"),
}


def commands() -> Iterator[Item]:
    """sendmail and its names; Postfix's own tools, which a Postfix beside us has too, in a directory of their own."""
    yield Item(MASTER, tree.stub(), 0o755)
    yield Item("usr/lib/sendmail.aiomta", link=f"/{MASTER}")
    for command in LINKS:
        if f"mta-{command.name}" in SLAVES:
            yield Item(SLAVES[f"mta-{command.name}"][1], link=f"/{MASTER}")
        else:
            yield Item(f"usr/libexec/aiomta/{command.name}", link=f"/{MASTER}")


def manuals() -> Iterator[Item]:
    """Pages of what is ours alone under their names, the others under ours."""
    pages = {path.name: text for path, text in ((Path(name), text) for name, text in tree.manuals())}
    pages["aliases.5"] = (HERE / "aliases.5").read_bytes()
    for page, text in sorted(pages.items()):
        name, _, section = page.rpartition(".")
        if not name.startswith("mta"):
            page = f"{name}.aiomta.{section}"
        yield Item(f"{MAN}/man{section}/{page}.gz", tree.compressed(text))


def items() -> Iterator[Item]:
    """Every file."""
    yield from tree.python_files()
    yield from tree.programs()
    yield from commands()
    yield from tree.system_files("usr/lib/systemd/system")
    yield from tree.configuration()
    yield from manuals()
    yield Item("etc/pam.d/smtp.aiomta", (HERE / "smtp.pam").read_bytes(), conffile=True)
    for item in tree.completions("usr/share/zsh/site-functions"):
        if item.path.endswith(("/mta", "/_aiomta")):  # the others' names belong to no one package
            yield item
    for name, text in tree.documents():
        yield Item(f"usr/share/doc/aiomta/{name}", text)
    yield Item("usr/share/licenses/aiomta/LICENSE", (tree.ROOT / "LICENSE").read_bytes())


def stage(destination: Path, listing: Path) -> None:
    """Fill the build root; write the list for %files."""
    content = list(items())
    tree.write(content, destination, tree.epoch())
    lines = []
    for item in content:
        mark = "%config(noreplace) " if item.conffile else "%doc " if "/doc/" in item.path else ""
        lines.append(f"{mark}%attr({'-' if item.link else f'{item.mode:04o}'},root,root) /{item.path}\n")
    folders = sorted({str(p) for item in content for p in Path(f"/{item.path}").parents if owned(str(p))})
    lines += [f"%dir %attr(0755,root,root) {folder}\n" for folder in folders]
    listing.write_text("".join(lines))


def owned(folder: str) -> bool:
    """Is this directory of the package's own?"""
    return any(part in ("aiomta", "mta") for part in Path(folder).parts)


def spec(version: str) -> str:
    """The spec file for this version."""
    slaves = [f"    --slave /{link} {name} /{path} \\" for name, (link, path) in SLAVES.items()]
    units = " ".join(path.name for path in tree.units())
    text = (HERE / "aiomta.spec").read_text()
    return text.replace("@VERSION@", version).replace("@SLAVES@", "\n".join(slaves)).replace("@UNITS@", units)


def sources(version: str, target: Path, stamp: int) -> None:
    """The source archive: what a build needs, the same bytes each time."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if "__pycache__" in info.name:
            return None
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        info.mtime = stamp
        info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
        return info

    with tempfile.TemporaryFile() as raw:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in SOURCES:
                if (tree.ROOT / name).exists():
                    tar.add(tree.ROOT / name, f"aiomta-{version}/{name}", filter=plain)
        raw.seek(0)
        target.write_bytes(tree.compressed(raw.read()))


def build(version: str, directory: Path) -> Path:
    """Write the package into directory; returns its path."""
    stamp = tree.epoch()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="aiomta-rpm-") as temporary:
        top = Path(temporary)
        for name in ("SOURCES", "SPECS", "BUILD", "RPMS", "SRPMS"):
            (top / name).mkdir()
        sources(version, top / f"SOURCES/aiomta-{version}.tar.gz", stamp)
        (top / "SPECS/aiomta.spec").write_text(spec(version))
        environ = {**os.environ, "SOURCE_DATE_EPOCH": str(stamp), "LC_ALL": "C"}
        command = ["rpmbuild", "-bb", "--quiet", "--define", f"_topdir {top}", str(top / "SPECS/aiomta.spec")]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603  (fixed words)
        if done.returncode:
            raise RuntimeError(done.stderr)
        (made,) = (top / "RPMS").rglob("*.rpm")
        target = directory / made.name
        target.write_bytes(made.read_bytes())
    return target


def main() -> int:
    """Build and print where it is, or --stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", default=tree.version())
    parser.add_argument("--directory", type=Path, default=tree.ROOT / "dist")
    parser.add_argument("--stage", type=Path, help="only fill this build root")
    parser.add_argument("--list", type=Path, help="where --stage writes the list for %%files")
    args = parser.parse_args()
    if args.stage:
        stage(args.stage, args.list)
        return 0
    try:
        print(build(args.version, args.directory))
    except FileNotFoundError as error:
        print(f"make rpm: {error.filename}: not found; on Debian: apt-get install rpm", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"make rpm: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
