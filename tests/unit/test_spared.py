"""Modules that a library loads and nobody uses: not loaded, and there when they are wanted."""

import subprocess
import sys

import pytest

UNUSED = """
    aiofiles.tempfile attr.validators bz2 csv datetime difflib email._header_value_parser email.message email.utils
    importlib.metadata importlib.resources locale lzma pathlib shutil stringprep tempfile urllib.parse zipfile
"""


def run(program: str) -> str:
    """Its output, from an interpreter that has loaded nothing yet."""
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="other versions load other modules of their own")
def test_the_mail_system_does_not_load_what_nobody_uses() -> None:
    loaded = set(run("import sys, mta.__main__, mta.master.master\nprint(*sys.modules)").split())
    assert not loaded & set(UNUSED.split())


def test_what_was_spared_is_loaded_when_it_is_used() -> None:
    assert run(
        "import sys\n"
        "from mta.spared import spared\n"
        "with spared('email.utils'):\n"
        "    from email.utils import quote\n"
        "    import email.utils\n"
        "assert 'email.utils' not in sys.modules\n"
        "print(quote('a\"b'), email.utils.unquote('<c>'), 'email.utils' in sys.modules)\n"
        "import email.utils\n"
        "print(email.utils is sys.modules['email.utils'], hasattr(email.utils, '__nonsense__'))"
    ).split() == ['a\\"b', "c", "True", "True", "False"]


def test_a_module_that_is_there_stays() -> None:
    assert run(
        "import sys, email.utils\n"
        "from mta.spared import spared\n"
        "there = email.utils\n"
        "with spared('email.utils'):\n"
        "    assert sys.modules['email.utils'] is there\n"
        "print(sys.modules['email.utils'] is there)"
    ).split() == ["True"]


def test_dnspython_reads_names_that_are_not_ascii() -> None:
    program = "import mta.dns, dns.name\nprint(ascii(dns.name.from_text('b\\xfccher.test')))"
    assert "xn--bcher-kva.test." in run(program)


def test_programs_write_text_all_the_same() -> None:
    program = "import mta.__main__, subprocess as s\nprint(s.run(['echo', 'a'], capture_output=True, text=True).stdout)"
    assert run(program).split() == ["a"]


def test_aiosmtpd_understands_addresses_all_the_same() -> None:
    """Its own parser of paths, which our sessions do not call, still finds the one of the email package."""
    assert run(
        "import asyncio\n"
        "import mta.smtpd.server, aiosmtpd.smtp\n"
        "async def main():\n"
        "    smtp = aiosmtpd.smtp.SMTP(object(), hostname='here.test', loop=asyncio.get_running_loop())\n"
        "    return smtp._getaddr('<user@here.test> SIZE=5')\n"
        "print(*asyncio.run(main()))"
    ).split() == ["user@here.test", "SIZE=5"]
