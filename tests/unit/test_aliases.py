"""aliases(5): syntax, expansion to leaves, and what to do with what cannot be expanded."""

import asyncio
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.deliver.alias_syntax import Destination, DestinationKind, check_aliases, parse_destinations
from mta.deliver.aliases import AliasExpander, AliasProblemError, AliasRules, Found
from mta.deliver.local_plan import Plan, ToOthers, ToUser
from mta.lookup.table import Maps
from mta.message_address import SLICE
from mta.smtp.reply import Reply
from tests.unit.local_fixture import Site

ADDRESS, COMMAND = DestinationKind.ADDRESS, DestinationKind.COMMAND
FILE, INCLUDE = DestinationKind.FILE, DestinationKind.INCLUDE

ALIASES = """\
one: alice
two: alice, bob
remote: x@ok.test
mixed: alice, x@ok.test
slash: \\quoted2
quoted2: carol
owner-list: bob
list: alice, bob
nested: two, x@ok.test
ownednest: list, x@ok.test
onlynest: list
inc: :include:{directory}/inc.txt
incempty: :include:{directory}/empty.txt
incloop: alice, :include:{directory}/incloop.txt
pureinc: :include:{directory}/incloop.txt
inctwo: :include:{directory}/inctwo.txt
shared: :include:{directory}/shared.txt
dora: :include:{directory}/shared.txt
spelled: carol@mx.test, carol@localhost, CAROL@mx.test, carol+x, carol@ok.test
spelled2: spelled3, spelled4
spelled3: carol@mx.test
spelled4: carol@localhost, y@ok.test
odd: carol, "c\td"@ok.test, {long}@ok.test, "n\x00n", y@ok.test
loop1: loop2
loop2: loop1
self: self
alice: alice, x@ok.test
bob: \\bob
viabob: bob, x@ok.test
crossa: crossb, y@ok.test
crossb: crossa, z@ok.test
unk: nosuchuser
unk2: bob, nosuchuser
cmd: bob, "|cat > /tmp/x"
file: /tmp/file.out
quoted: "bob"
"with space": bob
withext: carol+foo
twice: carol, CAROL, carol@mx.test
MiXed2: carol
broken: "carol
many: u1@r.test, u2@r.test, u3@r.test
"""


async def plan(tmp_path: Path, name: str, sender: str = "s@src.test", main_cf: str = "") -> Plan:
    (tmp_path / "inc.txt").write_text("alice\nbob, x@ok.test\n# comment\n")
    (tmp_path / "empty.txt").write_text("# nobody\n")
    (tmp_path / "incloop.txt").write_text(f":include:{tmp_path}/incloop.txt\n")
    (tmp_path / "inctwo.txt").write_text(f"bob\n:include:{tmp_path}/inctwo2.txt\n")
    (tmp_path / "inctwo2.txt").write_text(f":include:{tmp_path}/inctwo.txt\ny@ok.test\n")
    (tmp_path / "shared.txt").write_text("dora, x@ok.test\n")
    aliases = ALIASES.format(directory=tmp_path, long="l" * 3000)
    site = Site(tmp_path, aliases, main_cf=main_cf, carol=4711, dora=4712)
    found = await site.planner().plan(name if "@" in name else f"{name}@mx.test", sender)
    if isinstance(found, ToOthers):
        assert found.recipients
    return found


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("carol", "carol"),
        ("CAROL", "carol"),  # names of users and aliases have no case
        ("quoted", "bob"),
        ("with space", "bob"),
        ("bob", "bob"),  # itself
        ("slash", "carol"),  # a backslash means nothing here
        ("self+x", "self"),
        ("withext", "carol"),
        ("twice", "carol"),  # the same leaf three times is one
        ("mixed2", "carol"),
        ("MIXED2", "carol"),
        ("mixed2+ext", "carol"),  # the extension is dropped, as propagate_unmatched_extensions says
    ],
)
async def test_an_alias_for_one_local_user_is_that_users_mailbox(tmp_path: Path, name: str, user: str) -> None:
    found = await plan(tmp_path, name)
    if user == "self":
        assert found == Reply(550, "5.1.1", 'unknown user: "self"')
    else:
        assert isinstance(found, ToUser) and found.user.name == user


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("two", "alice@mx.test x@ok.test bob@mx.test"),  # alice is an alias herself
        ("remote", "x@ok.test"),
        ("mixed", "alice@mx.test x@ok.test"),
        ("nested", "alice@mx.test x@ok.test bob@mx.test"),
        ("inc", "alice@mx.test x@ok.test bob@mx.test"),
        ("unk2", "bob@mx.test nosuchuser@mx.test"),  # the child bounces the one, not the other
        ("many", "u1@r.test u2@r.test u3@r.test"),
        ("ownednest", "list@mx.test x@ok.test"),  # a list with an owner stays whole, for its own sender
        ("onlynest", "list@mx.test"),
        ("alice", "\\alice@mx.test x@ok.test"),  # itself: the mailbox, without another look
    ],
)
async def test_an_alias_for_several_becomes_one_message_to_all_of_them(tmp_path: Path, name: str, leaves: str) -> None:
    found = await plan(tmp_path, name)
    assert isinstance(found, ToOthers)
    assert {leaf.replace("\\", "") for leaf in found.recipients} == {x.replace("\\", "") for x in leaves.split()}
    assert found.sender == "s@src.test"


async def test_a_user_who_also_is_an_alias_is_marked_so_that_the_child_does_not_expand_it_again(
    tmp_path: Path,
) -> None:
    assert await plan(tmp_path, "alice") == ToOthers(("\\alice@mx.test", "x@ok.test"), "s@src.test")
    assert await plan(tmp_path, "viabob") == ToOthers(("\\bob@mx.test", "x@ok.test"), "s@src.test")
    found = await plan(tmp_path, "\\alice@mx.test")
    assert isinstance(found, ToUser) and found.user.name == "alice"


@pytest.mark.parametrize(
    ("name", "leaves"),
    [
        ("spelled", "carol@mx.test carol+x@mx.test carol@ok.test"),
        ("spelled2", "carol@mx.test y@ok.test"),
    ],
)
async def test_a_user_gets_one_copy_however_the_name_is_written(tmp_path: Path, name: str, leaves: str) -> None:
    assert await plan(tmp_path, name) == ToOthers(tuple(leaves.split()), "s@src.test")


async def test_a_member_that_can_be_no_address_fails_alone(tmp_path: Path) -> None:
    site = Site(tmp_path, ALIASES.format(directory=tmp_path, long="l" * 3000), carol=4711)
    found = await site.planner().plan("odd@mx.test", "s@src.test")
    assert isinstance(found, ToOthers)
    good = [x for x in found.recipients if not x.endswith("..")]
    bad = [x for x in found.recipients if x.endswith("..")]
    assert good == ["carol@mx.test", "y@ok.test"]
    assert [x[:12] for x in bad] == ["c?d@ok.test.", "llllllllllll", "n?n@mx.test."]
    assert {(await site.router.resolve(x)).nexthop for x in bad} == {"5.1.3 bad address syntax"}
    assert all(x.isprintable() and len(x) < 1024 for x in bad)
    assert [w for w in site.warnings if w.startswith('alias "odd": bad address "c?d@ok.test"')]


async def test_a_list_with_an_owner_is_sent_on_in_the_owners_name(tmp_path: Path) -> None:
    found = await plan(tmp_path, "list")
    assert isinstance(found, ToOthers) and found.sender == "owner-list@mx.test"
    found = await plan(tmp_path, "list", main_cf="expand_owner_alias = yes\n")
    assert isinstance(found, ToOthers) and found.sender == "bob@mx.test"


async def test_without_owner_request_special_an_owner_is_an_alias_like_any_other(tmp_path: Path) -> None:
    off = "owner_request_special = no\n"
    assert await plan(tmp_path, "list", main_cf=off) == await plan(tmp_path, "two", main_cf=off)
    found = await plan(tmp_path, "ownednest", main_cf=off)
    assert isinstance(found, ToOthers) and found.sender == "s@src.test"
    assert set(found.recipients) == {"\\alice@mx.test", "x@ok.test", "\\bob@mx.test"}


async def test_a_notice_to_a_list_keeps_the_null_sender(tmp_path: Path) -> None:
    found = await plan(tmp_path, "list", sender="")
    assert isinstance(found, ToOthers) and found.sender == ""


async def test_an_extension_is_passed_on_when_asked_for(tmp_path: Path) -> None:
    found = await plan(tmp_path, "many+x", main_cf="propagate_unmatched_extensions = alias\n")
    assert isinstance(found, ToOthers) and found.recipients == ("u1+x@r.test", "u2+x@r.test", "u3+x@r.test")


@pytest.mark.parametrize(
    ("passed_on", "members"),
    [
        ("alias", "u+x@r.test v@r.test w@r.test"),
        ("include", "u@r.test v@r.test w@r.test"),  # the alias has dropped it
        ("alias, include", "u+x@r.test v+x@r.test w+x@r.test"),
    ],
)
async def test_include_files_have_a_word_of_their_own_for_extensions(
    tmp_path: Path, passed_on: str, members: str
) -> None:
    (tmp_path / "members.txt").write_text("v@r.test\nnested\n")
    text = f"list: u@r.test, :include:{tmp_path}/members.txt\nnested: w@r.test\n"
    site = Site(tmp_path, text, main_cf=f"propagate_unmatched_extensions = {passed_on}\n")
    assert await site.planner().plan("list+x@mx.test", "s@src.test") == ToOthers(tuple(members.split()), "s@src.test")


@pytest.mark.parametrize("list_", ["list+x, list", "list, list+x", "list+x, :include:{0}/lists.txt, list+y, list"])
async def test_a_list_named_with_and_without_an_extension_goes_to_both_when_it_is_passed_on(
    tmp_path: Path, list_: str
) -> None:
    text = ("list: u@r.test, :include:{0}/members.txt\nall: " + list_ + "\n").format(tmp_path)
    (tmp_path / "members.txt").write_text("v@r.test\n")
    (tmp_path / "lists.txt").write_text("list\n")
    site = Site(tmp_path, text, main_cf="propagate_unmatched_extensions = alias, include\n")
    found = await site.planner().plan("all@mx.test", "s@src.test")
    assert isinstance(found, ToOthers)
    extensions = ("", "+x", "+y") if "+y" in list_ else ("", "+x")
    assert sorted(found.recipients) == sorted(f"{user}{x}@r.test" for user in "uv" for x in extensions)
    found = await Site(tmp_path, text).planner().plan("all@mx.test", "s@src.test")
    assert found == ToOthers(("u@r.test", "v@r.test"), "s@src.test")


async def test_extensions_that_double_with_each_level_end(tmp_path: Path) -> None:
    levels = "".join(f"a{n}: a{n + 1}+x, a{n + 1}+y\n" for n in range(40))
    site = Site(tmp_path, levels + "a40: a0\n", main_cf="propagate_unmatched_extensions = alias\n")
    found = await site.planner().plan("a0@mx.test", "s@src.test")
    assert isinstance(found, Reply) and found.enhanced == "4.3.5"


@pytest.mark.parametrize("name", ["cmd", "file", "incempty", "broken2", "noinclude", "relinclude"])
async def test_what_is_not_built_or_not_readable_waits_and_is_never_bounced(tmp_path: Path, name: str) -> None:
    extra = f'broken2: "al ice\nnoinclude: :include:{tmp_path}/none.txt\nrelinclude: :include:none.txt\n'
    site = Site(tmp_path, ALIASES.replace('broken: "carol\n', "").format(directory=tmp_path, long="l") + extra)
    (tmp_path / "empty.txt").write_text("# nobody\n")

    def include(path: str) -> bytes:
        if not Path(path).exists():
            raise AliasProblemError(f"unable to read {path}")
        return Path(path).read_bytes()

    found = await site.planner(include).plan(f"{name}@mx.test", "s@src.test")
    assert isinstance(found, Reply) and found.code == 451 and found.enhanced == "4.3.5"
    assert site.warnings and "deferred" in site.warnings[-1]


async def test_a_pure_loop_is_a_permanent_error(tmp_path: Path) -> None:
    found = await plan(tmp_path, "loop1")
    assert isinstance(found, Reply) and found.enhanced == "5.4.6" and found.text.startswith("alias database loop for ")
    found = await plan(tmp_path, "pureinc")
    assert isinstance(found, Reply) and found.enhanced == "5.4.6"


async def test_an_include_file_that_includes_itself_loses_no_member(tmp_path: Path) -> None:
    assert await plan(tmp_path, "incloop") == ToOthers(("\\alice@mx.test", "x@ok.test"), "s@src.test")
    assert await plan(tmp_path, "inctwo") == ToOthers(("\\bob@mx.test", "y@ok.test"), "s@src.test")


async def test_an_alias_inside_an_include_file_of_its_own_is_the_user_wherever_the_file_was_read_before(
    tmp_path: Path,
) -> None:
    found = await plan(tmp_path, "shared")
    assert isinstance(found, ToOthers) and set(found.recipients) == {"\\dora@mx.test", "x@ok.test"}


async def test_a_loop_with_members_reaches_the_members(tmp_path: Path) -> None:
    found = await plan(tmp_path, "crossa")
    assert isinstance(found, ToOthers) and set(found.recipients) == {"y@ok.test", "z@ok.test"}


async def test_nesting_beyond_the_limit_goes_on_in_the_child(tmp_path: Path) -> None:
    site = Site(tmp_path, "".join(f"a{i}: a{i + 1}\n" for i in range(150)) + "a150: x@ok.test\n")
    assert await site.planner().plan("a0@mx.test", "s@src.test") == ToOthers(("a100@mx.test",), "s@src.test")
    assert await site.planner().plan("a100@mx.test", "s@src.test") == ToOthers(("x@ok.test",), "s@src.test")


async def test_others_have_their_turns_while_a_list_of_thousands_is_expanded(tmp_path: Path) -> None:
    asked, most = 0, 0

    class Names:
        name = "names"

        async def get(self, key: str) -> str | None:
            nonlocal asked
            asked += 1
            return None

    async def read_include(path: str) -> bytes:
        return b"".join(b"u%d\n" % n for n in range(10 * SLICE))

    async def user_exists(name: str) -> bool:
        return True

    site = Site(tmp_path, "")
    rules = AliasRules(site.settings.extensions, False, False, "local")
    expander = AliasExpander(rules, Maps((Names(),)), site.router, user_exists, read_include)
    work = asyncio.ensure_future(expander.expand(Found("many", ":include:/list", ""), "s@src.test"))
    while not work.done():
        before = asked
        await asyncio.sleep(0)
        most = max(most, asked - before)
    assert len((await work).leaves) == 10 * SLICE and most <= 2 * SLICE


def test_a_right_hand_side_is_parsed_in_linear_time() -> None:
    def spent(count: int) -> float:
        best = float("inf")
        for _ in range(2):
            begun = time.process_time()
            parse_destinations("a[" + ":" * count + "];")
            best = min(best, time.process_time() - begun)
        return best

    assert spent(800_000) < 25 * spent(100_000)


async def test_an_unknown_user_at_the_end_of_an_alias_is_unknown(tmp_path: Path) -> None:
    assert await plan(tmp_path, "unk") == Reply(550, "5.1.1", 'unknown user: "nosuchuser"')


async def test_a_missing_alias_file_makes_everybody_wait(tmp_path: Path) -> None:
    site = Site(tmp_path)
    (tmp_path / "aliases").unlink()
    found = await site.planner().plan("alice@mx.test", "s@src.test")
    assert found == Reply(451, "4.3.0", "alias database unavailable")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("alice, bob", [(ADDRESS, "alice"), (ADDRESS, "bob")]),
        ("\\alice", [(ADDRESS, "alice")]),  # as "alice"
        ('"a b"@x.test', [(ADDRESS, "a b@x.test")]),
        ("A B <a@x.test> (c, d)", [(ADDRESS, "a@x.test")]),
        ('"|/bin/cmd -a, \\"b\\""', [(COMMAND, '/bin/cmd -a, "b"')]),
        ("|/bin/cmd", [(COMMAND, "/bin/cmd")]),
        ("/var/x, bob", [(FILE, "/var/x"), (ADDRESS, "bob")]),
        (":include:/etc/list", [(INCLUDE, "/etc/list")]),
        (':include:"/etc/my list"', [(INCLUDE, "/etc/my list")]),
        ('":include:/etc/list"', [(INCLUDE, "/etc/list")]),
        ("a,,b,", [(ADDRESS, "a"), (ADDRESS, "b")]),
        ("undisclosed:;", []),
        (
            "team: alice, bob; , carol",
            [(ADDRESS, "alice"), (ADDRESS, "bob"), (ADDRESS, "carol")],
        ),
        ("A: alice, :include:/x; B: ;", [(ADDRESS, "alice"), (INCLUDE, "/x")]),
        ("|/bin/a b: c; d", [(COMMAND, "/bin/a b: c; d")]),
        ("mailto:a@x.test, b\nc;", [(ADDRESS, n) for n in ("mailto:a@x.test", "b", "c")]),
        ("a@[IPv6:::1], t: b;", [(ADDRESS, "a@[IPv6:::1]"), (ADDRESS, "b")]),
    ],
)
def test_a_right_hand_side_is_parsed(text: str, expected: list[tuple[DestinationKind, str]]) -> None:
    assert parse_destinations(text) == [Destination(*item) for item in expected]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.sampled_from('ab,"\\|/:@<>() \n;include'), max_size=40))
def test_a_right_hand_side_is_parsed_or_refused_with_a_reason(text: str) -> None:
    try:
        found = parse_destinations(text)
    except ValueError as error:
        assert str(error)
    else:
        assert all(d.value or d.kind is COMMAND for d in found)


def test_an_aliases_file_is_checked_line_by_line() -> None:
    text = b"""\
# comment
postmaster: root
root: alice,
  bob
nocolon
user@domain: alice
postmaster: bob
broken: "alice
rel: :include:list
fine: "|cmd, with comma", /file
"""
    problems = check_aliases("/etc/aliases", text)
    assert [p.rsplit(":", 1)[0] if ": " not in p else p.partition(": ")[0] for p in problems] == [
        f"/etc/aliases:{n}" for n in (5, 6, 7, 8, 9)
    ]
    assert 'duplicate entry: "postmaster", the first is in line 2' in problems[2]
    assert check_aliases("x", b"root: alice\npostmaster: root\n") == []
