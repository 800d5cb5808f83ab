"""cidr, regexp, pcre, inline, static, unix ...: results as `postmap -q` of Postfix 3.7.11 gives them."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.lookup.cidr import parse_address, parse_network
from mta.lookup.lines import Warnings
from mta.lookup.open import open_table, open_tables, problems, split_list
from mta.lookup.regexp import _parse, _posix
from mta.lookup.rules import parse_rules
from mta.lookup.table import TableError
from tests.unit.lookup_fixture import World

REGEXP = r"""/^(.*)-out@(.*)$/ 550 Use ${1}@$2 $$5
!/x/ nox
if /a/
/b$/ ab
if !/q/
/c/i cI
endif
endif
/[[:digit:]]{2}x/ dig
~til~ tt
/a\/xb/ sl
/(x)/ $2
/un/q r
/bad(/ r
/[\]x]/ br
/xq.z/ dot
endif
if /zz/
"""
CIDR = """192.168.1.1 OK
192.168.0.0/16 REJECT
2001:db8::/32 six
[2001:db9::1] br
!10.0.0.0/8 notten
if 10.1.0.0/16
10.1.2.3 in
endif
10.0.0.0/8 ten
10.0.0.1/8 bad
foo x
"""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("joe-out@d.x", "550 Use joe@d.x $5"), ("ab", "nox"), ("axb", "ab"), ("12x", "dig"), ("a/xb", "ab")),
        *(("]q", "nox"), ("xq\nz", "dot"), ("cx", None), ("AXB", "ab"), ("zzx", None), ("zz", "nox")),
    ],
)
async def test_regular_expressions_match_as_in_postfix(tmp_path: Path, key: str, value: str | None) -> None:
    (tmp_path / "re").write_text(REGEXP)
    assert await open_table(f"regexp:{tmp_path}/re", World().context).get(key) == value


async def test_a_line_that_is_no_rule_is_skipped_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "re").write_text(REGEXP)
    world = World()
    await open_table(f"regexp:{tmp_path}/re", world.context).get("x")
    where = f"regexp map {tmp_path}/re, line"
    assert world.log.lines == [
        f'{where} 12: out of range replacement index "2": skipping this rule',
        f'{where} 13: unknown regexp option "q": skipping this rule',
        f"{where} 14: missing ), unterminated subpattern at position 3: skipping this rule",
        f"{where} 17: ignoring ENDIF without matching IF",
        f"{where} 18: IF has no matching ENDIF",
    ]


@pytest.mark.parametrize(("kind", "rule"), [("regexp", "/x/ OK"), ("pcre", "/x/ OK"), ("cidr", "::/0 OK")])
async def test_a_table_of_rules_that_begins_with_a_continuation_loses_only_that_line(
    tmp_path: Path, kind: str, rule: str
) -> None:
    (tmp_path / "rules").write_text(f" {rule}\n{rule[:-2]}second\n")
    world = World()
    assert await open_table(f"{kind}:{tmp_path}/rules", world.context).get("::" if kind == "cidr" else "x") == "second"
    assert world.log.lines == [f'{tmp_path}/rules, line 1: logical line must not start with whitespace: " {rule}"']


@pytest.mark.parametrize(
    ("rule", "key", "value"),
    [
        ("/^A$/ r", "a", "r"),
        ("/^A$/i r", "a", None),
        ("/a.b/ r", "a\nb", "r"),
        ("/a.b/s r", "a\nb", None),
        ("/^b/m r", "a\nb", "r"),
        ("/a b/x r", "ab", "r"),
        (r"/\d+(\w)?/ <$1>", "12", "<>"),
        ("!/a/ r", "b", "r"),
        ("!!/a/ r", "a", "r"),
        ("/(?P<n>a)(b)/ $2$1", "ab", "ba"),
        ("/a/ cost $$1", "a", "cost $1"),
        ("!/b/ cost $$1", "a", "cost $1"),
        ("/^(?i)a(?is)b.c/ r", "AB\nC", "r"),
        ("/^[(?i)]+$/ r", "?i)", "r"),
        ("/(?-i:a(?i)b)/ r", "ab", None),  # skipped
        ("/(?i:^x|^y(?i))z/ r", "Xz", "r"),
        ("/(?i)ab/i r", "AB", "r"),
        ("/^a{,2}$/ r", "a", None),
        ("/^a{,2}$/ r", "a{,2}", "r"),
        ("/^[{,2}]$/ r", "{", "r"),
        ("/b/A r", "ab", None),
        ("/a|b/A r", "ba", "r"),
        ("/(a)b/EX $1", "ab", "a"),
        ("/a+/U r", "a", "r"),
        ("/(?<n>a)(?<!b)c/ $1", "ac", "a"),
        (r"/^\Qa.b\E$/ r", "a.b", "r"),
        (r"/^\Qa.b\E$/ r", "axb", None),
        (r"/^\x{61}\N$/ r", "ab", "r"),
        ("/^[[:^digit:]]+$/ r", "a-b", "r"),
        ("/^[[:^digit:]]+$/ r", "a1", None),
        (r"/^[\h.]$/ r", " ", "r"),
    ],
)
async def test_pcre_flags_and_substitution(rule: str, key: str, value: str | None) -> None:
    assert await open_table(f"pcre:{{ {{{rule}}} }}", World().context).get(key) == value


@pytest.mark.parametrize("kind", ["regexp", "pcre"])
@pytest.mark.parametrize(
    ("rule", "key", "value"),
    [
        (r"/[^\w.@-]/ not ASCII", "jos\u00e9@d.x", "not ASCII"),
        (r"/^\w+$/ r", "jos\u00e9", None),
        (r"/a\sb/ r", "a\u00a0b", None),
        ("/^postmaster@k/ r", "postma\u017fter@\u212a", None),
        ("/\u00e9/ r", "\u00c9", None),
        ("/\u00e9/ r", "\u00e9", "r"),
    ],
)
async def test_letters_blanks_and_cases_are_those_of_ascii(kind: str, rule: str, key: str, value: str | None) -> None:
    assert await open_table(f"{kind}:{{ {{{rule}}} }}", World().context).get(key) == value


@pytest.mark.parametrize("kind", ["regexp", "pcre"])
async def test_a_rule_with_dollar_0_is_skipped(kind: str) -> None:
    world = World()
    assert await open_table(f"{kind}:{{ {{/a/ $0}} {{/a/ r}} }}", world.context).get("a") == "r"
    assert world.log.lines == [f'{kind} map {kind}, line 1: out of range replacement index "0": skipping this rule']


@pytest.mark.parametrize(
    "rule",
    [
        *("/^(?!.*@good.example)/ REJECT", "/(?:x)/ REJECT", "/(?i)x/ REJECT", "/x{/ REJECT", "/x{a}?/ REJECT"),
        *("/(x)/ ${1 REJECT", "/(x)/ $(1 REJECT", "/x/ $x"),
    ],
)
async def test_a_rule_that_posix_does_not_know_is_skipped(tmp_path: Path, rule: str) -> None:
    (tmp_path / "re").write_text(f"{rule}\n/x/ r\n")
    world = World()
    assert await open_table(f"regexp:{tmp_path}/re", world.context).get("x@bad.example") == "r"
    assert len(world.log.lines) == 1 and world.log.lines[0].endswith(": skipping this rule")


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"\d+|a", "a", "1"),
        (r"\d?a", "1a", "d"),
        (r"\`a\'", "a", "ab"),
        ("^.*+b$", "ab", "a"),
        ("^a**$", "aa", "b"),
        ("^(ab)+?$", "", "a"),
        ("^[[.a.][=b=]]+$", "ab", "."),
        (r"a\.b\/", "a.b/", "axb/"),
    ],
)
async def test_posix_expressions_mean_what_the_c_library_says(pattern: str, yes: str, no: str) -> None:
    table = open_table(f"regexp:{{ {{%{pattern}% r}} }}", World().context)
    assert (await table.get(yes), await table.get(no)) == ("r", None)


async def test_an_expression_that_would_take_years_is_a_failure_of_the_table() -> None:
    table = open_table("pcre:{ {/^([a-z]+[._-]?)+@spam/ REJECT} }", World().context)
    with pytest.raises(TableError, match="takes more than"):
        await table.get("a" * 60 + "@x.example")
    assert await table.get("a@spam") == "REJECT"


@pytest.mark.parametrize("kind", ["regexp", "pcre"])
async def test_text_behind_a_condition_does_not_change_it(tmp_path: Path, kind: str) -> None:
    (tmp_path / "re").write_text("if /^a/ # addresses of $1\n/b/ r\nendif\n")
    world = World()
    table = open_table(f"{kind}:{tmp_path}/re", world.context)
    assert (await table.get("ab"), await table.get("b")) == ("r", None)
    assert world.log.lines[0].endswith('line 1: ignoring extra text after IF statement: "# addresses of $1"')


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"[\]x]", r"[\\]x]"),
        ("[]a]", r"[\]a]"),
        ("[^]a]", r"[^\]a]"),
        ("[[:alpha:]_]", "[a-zA-Z_]"),
        ("[[a]", r"[\[a]"),
    ],
)
def test_posix_brackets_keep_their_meaning(pattern: str, text: str) -> None:
    assert _posix(pattern) == text


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text(alphabet="/!if endr$1{}()[]\\:a\n#~", max_size=60))
def test_any_text_is_rules_or_warnings(text: str) -> None:
    warnings = Warnings("f")
    steps = parse_rules(text.encode(), warnings, lambda t, c: _parse(t, condition=c, posix=True), "regexp")
    assert len(steps) <= text.count("\n") + 1
    assert all(line.startswith(("regexp map f, line ", "f, line ")) for line in warnings)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("192.168.1.1", "OK"), ("192.168.3.4", "REJECT"), ("2001:db8::5", "six"), ("2001:db9:0::1", "br")),
        *(("10.1.2.3", "in"), ("10.9.9.9", "ten"), ("11.1.1.1", "notten"), ("foo", None), ("", None)),
    ],
)
async def test_networks_match_as_in_postfix(tmp_path: Path, key: str, value: str | None) -> None:
    (tmp_path / "ci").write_text(CIDR)
    world = World()
    assert await open_table(f"cidr:{tmp_path}/ci", world.context).get(key) == value
    assert world.log.lines == [
        f'cidr map {tmp_path}/ci, line 10: non-null host address bits in "10.0.0.1/8", perhaps you should use '
        '"10.0.0.0/8" instead: skipping this rule',
        f'cidr map {tmp_path}/ci, line 11: bad net/mask pattern: "foo": skipping this rule',
    ]


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ("{!10.0.0.0/8 r}", [None, "r", None]),
        ("{! 10.0.0.0/8 r}", [None, "r", None]),
        ("{!!10.0.0.0/8 r}", ["r", None, None]),
        ("{!2001:db9::/32 r}", [None, None, "r"]),
        ("{if !10.0.0.0/8} {::/0 six} {0.0.0.0/0 r} {endif}", [None, "r", None]),
    ],
)
async def test_a_negated_network_says_nothing_about_the_other_family(rules: str, found: list[str | None]) -> None:
    table = open_table(f"cidr:{{ {rules} }}", World().context)
    assert [await table.get(key) for key in ("10.1.2.3", "192.0.2.1", "2001:db8::1")] == found


async def test_in_a_plain_network_list_the_first_match_wins() -> None:
    table = open_table(
        "cidr:{ {10.1.2.3 host} {10.1.0.0/16 net} {10.0.0.0/8 big} {10.1.2.0/24 late} }", World().context
    )
    assert [await table.get(k) for k in ("10.1.2.3", "10.1.2.4", "10.2.0.1", "11.0.0.1")] == [
        "host",
        "net",
        "big",
        None,
    ]


@pytest.mark.parametrize(
    "text", ["1.2.3", "1.2.3.4.5", "1.2.3.256", "a.b.c.d", "0x7f.0.0.1", "::1::", "", "1.2.3.-4", "\u0661.2.3.4"]
)
def test_what_only_looks_like_an_address_is_none(text: str) -> None:
    assert parse_address(text) is None


@pytest.mark.parametrize("text", ["1.2.3.4/33", "1.2.3.4/", "1.2.3.4/x", "::/129", "1.2.3.1/24", "[::1/64]", "x/8"])
def test_a_bad_network_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_network(text)


async def test_small_types() -> None:
    context = World("alice", environ={"PATH": "/bin"}).context
    get: dict[str, dict[str, str | None]] = {
        "inline:{a=b, { c = d e }}": {"A": "b", "c": "d e", "x": None},
        "inline:{a=b, A=c}": {"a": "c"},
        "static:zz": {"any": "zz"},
        "static:{ a b }": {"any": "a b"},
        "environ:": {"PATH": "/bin", "path": None},
        "unix:passwd.byname": {"Alice": "alice:x:1000:1000::/home/alice:/bin/sh", "bob": None},
        "proxy:unix:group.byname": {"alice": "alice:x:1000:a,b", "bob": None},
        "unionmap:{inline:{a=b},static:c}": {"a": "b,c", "z": "c"},
        "pipemap:{inline:{foo=bar},inline:{bar=q}}": {"foo": "q", "bar": None},
    }
    for spec, expected in get.items():
        assert {key: await open_table(spec, context).get(key) for key in expected} == expected, spec


BROKEN_TEXTS = (
    *("cidr:{127.0.0.0/8 REJECT}", "regexp:{/^127/ REJECT}", "pcre:{ {/a/ b} x }", "cidr:{ {::/0 a}"),
    *("regexp:{{/a/ b}c}", "cidr:{ {::/0 a} } }", "inline:{a=b} c=d}", "inline:{ {a=b}c }", "inline:{}"),
    *("static:{ a", "static:{a} b", "unionmap:{}", "unionmap:inline:{a=b}", "pipemap:{inline:{a=b}"),
    "pipemap:static:x",
)


@pytest.mark.parametrize(
    "spec",
    [*("mysql:/x", "nosuch:/x", "fail:x", "unix:nope", "inline:x", "inline:{a}", "tcp:1.2.3.4:5"), *BROKEN_TEXTS],
)
async def test_a_table_that_cannot_work_fails_and_never_says_not_found(spec: str) -> None:
    with pytest.raises(TableError):
        await open_table(spec, World().context).get("x")


async def test_a_failing_user_database_is_no_unknown_user() -> None:
    world = World("alice")
    world.people.code = 5
    for key in ("alice", "bob"):
        with pytest.raises(TableError):
            await open_table("unix:passwd.byname", world.context).get(key)


def test_problems_are_known_before_the_first_lookup_with_what_helps() -> None:
    assert problems("hash:/x, cidr:/y, static:z, proxy:unix:passwd.byname") == []
    assert problems("mysql:/etc/x.cf") == [
        "mysql:/etc/x.cf: unsupported dictionary type: mysql; export it with a query to a texthash: file"
    ]
    assert all(problems(spec) for spec in BROKEN_TEXTS if split_list(spec) == [spec])
    assert len(problems(("pgsql:/x", "unionmap:{mysql:/y}", "unix:z", "inline:{a}"))) == 4


async def test_several_tables_are_asked_in_order_and_a_failure_ends_the_search() -> None:
    context = World().context
    assert await open_tables("inline:{a=1}, inline:{a=2,b=3}", context).get("a") == "1"
    assert await open_tables("inline:{a=1}, inline:{a=2,b=3}", context).get("b") == "3"
    with pytest.raises(TableError):
        await open_tables("fail:x inline:{a=1}", context).get("a")
    assert await open_tables("inline:{a=1} fail:x", context).get("a") == "1"
    assert not open_tables("", context)


async def test_parts_of_an_address_are_not_matched_against_patterns() -> None:
    maps = open_tables("regexp:{ {/./ re} }, inline:{a=in}", World().context)
    assert await maps.get("a") == "re"
    assert await maps.get("a", fixed=True) == "in"


def test_lists_keep_braces_together() -> None:
    assert split_list("hash:/a, inline:{ {k = v w}, b=c } static:x,,") == [
        "hash:/a",
        "inline:{ {k = v w}, b=c }",
        "static:x",
    ]
    assert split_list(("a, b", "c")) == ["a", "b", "c"]
