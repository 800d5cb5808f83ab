"""Damaged queue files under a whole MTA: nobody gets anything altered, or anything that was not for him."""

import os
import random
from pathlib import Path

import pytest

from mta.queue.queue_reader import DamagedError, _Decoder
from tests.crash import bit_rot
from tests.crash.bit_rot import Rot, boundaries, cut, cutter, flipped, run
from tests.crash.bit_rot_kinds import KINDS, Message, parent, plain, refused_large

FILES = int(os.environ.get("AIOMTA_ROTTEN", "1000"))
CUT_EACH = int(os.environ.get("AIOMTA_CUT_EACH", "16"))  # of the places in a long text
SEED = int(os.environ.get("AIOMTA_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)


def test_one_flipped_bit_in_each_of_a_thousand_files_harms_nobody(tmp_path: Path) -> None:
    wrong, rot = run(tmp_path, lambda rot: flipped(rot, FILES, SEED))
    assert wrong == [], f"seed {SEED}"
    assert sum(bool(m.damage) for m in rot.messages) == FILES


def test_a_file_cut_off_at_any_block_or_record_is_put_aside_and_no_other(tmp_path: Path) -> None:
    kinds = [make for make in KINDS if make is not refused_large]  # its records are those of the others
    wrong, rot = run(tmp_path, lambda rot: cut(rot, kinds, CUT_EACH))
    assert wrong == []
    assert {m.kind for m in rot.messages if m.damage} >= {make(0, "").kind for make in kinds if make is not parent}


def test_a_count_of_crashes_that_rots_holds_a_message_at_most(tmp_path: Path) -> None:
    """The digit stands behind the checksum: "8" instead of "0" is the worst that one bit can say."""

    def eight(message: Message, data: bytes) -> bytes:
        at = bit_rot.decode_bytes(data).crashes_offset
        message.damage, message.harmless = "crashes = 8", True
        return data[:at] + b"8" + data[at + 1 :]

    async def fill(rot: Rot) -> None:
        for _ in range(3):
            await rot.add(plain, eight)
            await rot.add(plain, None)

    wrong, rot = run(tmp_path, fill)
    assert wrong == []
    held = {p.name for p in (tmp_path / "a/spool/hold").iterdir()}
    assert held == {m.queue_id for m in rot.messages if m.damage}


def test_the_judge_sees_what_a_store_without_checksums_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = _Decoder._check

    def unchecked(self: _Decoder, extracted: int) -> None:
        try:
            checked(self, extracted)
        except DamagedError:
            self.file.uid = "0" * 32
        self.file.content_crc = None

    monkeypatch.setattr(_Decoder, "_check", unchecked)
    text = "\n".join(run(tmp_path, lambda rot: flipped(rot, 400, 1))[0])
    assert "was never given" in text
    assert "altered for <" in text
    assert "altered original" in text
    assert "not noticed" in text


def test_the_judge_sees_a_message_that_is_lost_or_stays(tmp_path: Path) -> None:
    async def fill(rot: Rot) -> None:
        await rot.add(plain, None)
        await rot.add(plain, None)
        rot.messages[0].path.unlink()
        rot.messages[1].path.rename(tmp_path / "a/spool/corrupt" / rot.messages[1].queue_id)

    wrong, rot = run(tmp_path, fill)
    lost, stays = (m.queue_id for m in rot.messages)
    assert any(lost in line and "delivered [0]" in line for line in wrong)
    assert any(stays in line and "in corrupt" in line for line in wrong)


def test_a_cut_at_every_boundary_means_every_record(tmp_path: Path) -> None:
    async def fill(rot: Rot) -> None:
        await rot.add(plain, None)
        data = rot.messages[0].path.read_bytes()
        kinds = bytes(data[at] for at in boundaries(data))
        assert kinds.startswith(b"CTASORM")
        assert kinds.endswith(b"NXAAAAE")
        await rot.add(plain, cutter(len(data) - 1))

    assert run(tmp_path, fill)[0] == []
