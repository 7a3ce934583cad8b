"""A gate says what was measured, against which limit, and on which side; manifests and the report hold the same."""

import dataclasses
import json
import math

import pytest

from athena_vla.bundle import Bundle, mark
from athena_vla.errors import BundleError
from athena_vla.gate import Gate, by_name, failed
from athena_vla.manifest import Manifest
from athena_vla.report.deploying_evidence import gate_table

CASES = [
    (Gate.at_most, 0.5, True), (Gate.at_most, 1.0, True), (Gate.at_most, 1.1, False), (Gate.at_most, math.nan, False),
    (Gate.at_least, 1.1, True), (Gate.at_least, 1.0, True), (Gate.at_least, 0.5, False),
    (Gate.at_least, math.nan, False),
    (Gate.exactly, 1, True), (Gate.exactly, 2, False), (Gate.exactly, math.nan, False),
]  # fmt: skip


@pytest.mark.parametrize(("make", "value", "passed"), CASES)
def test_the_direction_decides_and_survives_json(make, value, passed) -> None:
    gate = make("error_max", value, 1.0, "rad")
    assert gate.passed is passed
    raw = json.loads(json.dumps(gate.to_dict(), allow_nan=False))
    again = Gate.from_dict("error_max", raw)
    assert (again.limit, again.direction, again.unit, again.passed) == (1.0, gate.direction, "rad", passed)
    assert again.value == value or math.isnan(value)
    assert f"{gate.direction} 1 rad" in str(gate)


@pytest.mark.parametrize("raw", [{"passed": True}, {"passed": False, "change": 0.3, "threshold": 1e-5},
                                 {"passed": False, "value": 0.9, "limit": 0.5}])  # fmt: skip
def test_gates_of_older_bundles_are_read_without_a_direction(raw) -> None:
    gate = Gate.from_dict("sensitivity_language", raw)
    assert (gate.direction, gate.passed, gate.sign) == (None, raw["passed"], "")
    assert gate.value == raw.get("change", raw.get("value")) or math.isnan(gate.value)


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        ("passed", "does not say whether it passed"),
        ({"value": 1.0, "limit": 2.0}, "does not say whether it passed"),
        ({"passed": 1}, "does not say whether it passed"),
        ({"passed": True, "worth": 1.0}, "unknown entries.*worth"),
        ({"passed": True, "direction": "below"}, "direction 'below'; known: at most, at least, exactly"),
        ({"passed": True, "value": "0.1"}, "'0.1', which is no number"),
        ({"passed": True, "unit": 3}, "unit 3"),
        ({"passed": True, "value": 0.9, "limit": 0.5, "direction": "at most"}, "0.9 is not at most 0.5"),
    ],
)
def test_what_is_no_gate_is_refused(raw, match) -> None:
    with pytest.raises(BundleError, match=match):
        Gate.from_dict("error_max", raw)


def test_a_bundle_keeps_its_gates_and_its_hash(tmp_path, toy) -> None:
    from small_bundles import write_base

    bundle = write_base(tmp_path / "b", toy)
    gates = by_name([Gate.at_most("error_p95_rad", 0.2, 0.05, "rad"), Gate.at_least("bin_agreement", 0.9, 0.8)])
    mark(bundle, gates)
    again = Bundle.open(tmp_path / "b")
    assert again.manifest.gates == gates
    assert again.hash == bundle.hash
    assert [g.name for g in failed(again.manifest.gates.values())] == ["error_p95_rad"]
    raw = json.loads((tmp_path / "b" / "manifest.json").read_text())
    raw["gates"]["error_p95_rad"]["passed"] = True
    with pytest.raises(BundleError, match="says it passed, but 0.2 is not at most 0.05 rad"):
        Manifest.from_dict(raw, "b")
    assert dataclasses.replace(gates["bin_agreement"], value=0.95).passed


def test_the_report_shows_direction_unit_and_outcome_of_each_bundle() -> None:
    reports = {
        "int8": {"gates": {"error_max_rad": Gate.at_most("error_max_rad", 0.1, 0.35, "rad").to_dict()}},
        "int4": {
            "gates": {
                "error_max_rad": Gate.at_most("error_max_rad", 0.4, 0.35, "rad").to_dict(),
                "bin_agreement": Gate.at_least("bin_agreement", 0.9, 0.8).to_dict(),
                "vision_calls": Gate.exactly("vision_calls", 1, 1).to_dict(),
            }
        },
    }
    head, rows = gate_table(reports)
    assert head == ["gate", "limit", "int8", "", "int4", ""]
    assert [r[:2] for r in rows] == [
        ["error max rad", "≤ 0.35 rad"],
        ["bin agreement", "≥ 0.8"],
        ["vision calls", "= 1"],
    ]
    assert [r[3] for r in rows] == ["passed", "", ""]
    assert [r[5] for r in rows] == ["FAILED", "passed", "passed"]
