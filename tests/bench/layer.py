"""Build the root file system of OpenSMTPD: `python -m tests.bench.layer`, as root; only the benchmark needs it."""

import os
import shutil
import sys

from tests.bench.lab import BENCH
from tests.peers.build import PEERS, SUITE, call, mount, prepare, say

ANSWERS = (
    "printf '%s\\n' 'opensmtpd opensmtpd/mailname string mx.bench.test' "
    "'opensmtpd opensmtpd/root_address string' | debconf-set-selections"
)
INSTALL = "apt-get install -y -q --no-install-recommends opensmtpd"


def main() -> int:
    """An overlay on the laboratory's base, in a mount namespace of our own."""
    if os.environ.get("AIOMTA_BENCH_NS") != "mount":
        os.environ["AIOMTA_BENCH_NS"] = "mount"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, "-m", "tests.bench.layer"])  # noqa: S606
    directory, log = BENCH / "layers/opensmtpd", BENCH / "build.log"
    shutil.rmtree(directory, ignore_errors=True)
    upper, work, root = (directory / name for name in ("upper", "work", "root"))
    for path in (upper, work, root):
        path.mkdir(parents=True)
    say("opensmtpd: installing packages")
    options = f"lowerdir={PEERS}/base,upperdir={upper},workdir={work}"
    mount("-t", "overlay", "overlay", "-o", options, root)
    prepare(root)
    for command in (
        ANSWERS,
        "apt-get update -q",
        "apt-get install -y -q --no-install-recommends opensmtpd",
        "apt-get clean",
    ):
        call("chroot", root, "sh", "-ec", command, log=log)
    (directory / "stamp").write_text(SUITE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
