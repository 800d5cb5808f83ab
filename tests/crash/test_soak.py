"""The soak driver: a few seconds of it, and what its parts promise."""

import csv
import xml.etree.ElementTree as ET
from pathlib import Path

from tests.crash.soak import Soak
from tests.crash.soak_ledger import AGE, SoakLedger
from tests.crash.soak_plot import curves, slope
from tests.system.support_system import directory


def test_a_soak_of_seconds_with_every_fault_breaks_no_promise_and_writes_its_table(tmp_path: Path) -> None:
    with directory() as path:
        soak = Soak(path, 20.0)
        assert soak.run(8.0, 1.0, ["kill", "reload", "restart"], 2.5, tmp_path) == []
    with (tmp_path / "soak.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(soak.samples) >= 2  # as many as the machine had time for
    assert int(rows[-1]["sent"]) > 5
    assert all(int(row["pss"]) > 10_000_000 and int(row["descriptors"]) > 20 for row in rows)
    assert int(rows[-1]["faults"]) >= 1
    assert "messages" in soak.figures()
    ET.parse(tmp_path / "soak.svg")  # noqa: S314 (our own)


def test_a_ledger_that_forgets_still_knows_what_was_lost_and_what_came_twice() -> None:
    ledger = SoakLedger()
    for name in ("m0-1", "m0-2", "m0-3"):
        ledger.begin(name, 1000.0)
        ledger.promise(name, "ok@sink.test")
    ledger.deliver("m0-1", "ok@sink.test", 1001.0)
    ledger.deliver("m0-2", "ok@sink.test", 1001.0)
    ledger.deliver("m0-2", "ok@sink.test", 1100.0)
    ledger.settle(1001.0 + AGE)
    assert ledger.wrong == ["duplicate outside W2: ('m0-2', 'ok@sink.test') at 1001.000"]
    assert ledger.settled == 2 and list(ledger.started) == ["m0-3"]  # who still waits is not forgotten
    ledger.deliver("m0-1", "ok@sink.test")
    assert ledger.wrong[1:] == ["delivered again, long after it had ended: m0-1 to ok@sink.test"]
    assert ledger.verdict(set()) == ["lost: ('m0-3', 'ok@sink.test')"]


def test_a_ledger_that_forgets_judges_bounces_before_it_does() -> None:
    ledger = SoakLedger()
    ledger.begin("m1-7", 1000.0)
    for recipient in ("permx@sink.test", "ok@sink.test"):
        ledger.promise("m1-7", recipient)
        ledger.bounce("m1-7", recipient)
    ledger.settle(1001.0 + AGE)
    assert ledger.wrong == ["falsely bounced: ('m1-7', 'ok@sink.test')"]
    ledger.bounce("m1-7", "ok@sink.test")
    assert ledger.wrong[1:] == ["bounced long after it had ended: m1-7 to ok@sink.test"]
    assert ledger.totals == {"promised": 2, "delivered": 0, "bounced": 2}


def test_the_slope_is_that_of_the_line_through_the_points() -> None:
    assert slope([0.0, 1.0, 2.0, 3.0], [5.0, 7.0, 9.0, 11.0]) == 2.0
    assert slope([1.0], [5.0]) == 0.0


def test_the_plot_has_a_curve_for_each_column_inside_its_panel() -> None:
    panels = {"a": {"": [0.0, 5.0, 10.0]}, "b": {"x": [1.0, 1.0, 1.0], "<y>": [0.0, 0.0, 0.0]}}
    drawn = ET.fromstring(curves([0.0, 1.0, 2.0], panels, "t"))  # noqa: S314 (our own)
    lines = [element.attrib["points"] for element in drawn.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == 3
    first = [tuple(map(float, point.split(","))) for point in lines[0].split()]
    assert first[0][1] - first[2][1] == 150.0  # from the bottom of its panel to the top
    assert first[0][0] < first[1][0] < first[2][0]
