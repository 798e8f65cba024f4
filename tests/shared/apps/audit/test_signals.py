"""What tells the label: fields are asked of patients that were not seen; red is decided by the interval."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shared.apps.audit import signals as module
from shared.apps.audit.rows import AuditRow
from shared.apps.audit.signals import ask, day_of, name_fields, signals, split_dates
from shared.metrics.delong import delong_interval


def rows_of(labels, units):
    given = [
        (f"r{k}", unit, unit, "training", "training", int(label))
        for k, (label, unit) in enumerate(zip(labels, units, strict=True))
    ]
    return [AuditRow(*row, (Path("a.nii"),), None, k) for k, row in enumerate(given)]


def test_a_field_that_only_knows_the_patient_knows_nothing_of_others():
    random = np.random.default_rng(0)
    labels = np.repeat(random.permutation(np.arange(40) % 2), 4)
    units = np.repeat([f"P{k}" for k in range(40)], 4)
    own = np.repeat(random.permutation(40), 4) + random.normal(0, 0.01, 160)  # each patient has a value of its own
    found = ask(labels, units.tolist(), {"x": own.tolist()})
    assert roc_auc_score(labels, found) < 0.65
    leaked = ask(labels, [f"R{k}" for k in range(160)], {"x": own.tolist()})
    assert roc_auc_score(labels, leaked) > 0.9


@pytest.mark.parametrize(("shift", "statuses"), [(0.0, {"green", "amber"}), (0.45, {"amber", "green"}), (3.0, {"red"})])
def test_the_status_is_that_of_the_interval(shift, statuses):
    random = np.random.default_rng(3)
    labels = np.arange(60) % 2
    x = (random.normal(size=60) + shift * labels).tolist()
    units = [f"P{k}" for k in range(60)]
    found = signals("files", rows_of(labels, units), {"x": x, "constant": [1] * 60}, {})
    assert [signal.item for signal in found] == ["x"] and found[0].status in statuses
    expected = delong_interval(labels, ask(labels, units, {"x": x}))
    assert (found[0].auc, found[0].low) == (expected["value"], expected["low"])
    assert found[0].status == ("red" if found[0].low > module.RED else "amber" if found[0].low > 0.5 else "green")


def test_a_high_value_with_a_wide_interval_is_amber(monkeypatch):
    labels = np.arange(60) % 2
    probability = np.where(np.arange(60) % 7 < 5, labels, 1 - labels) * 0.8 + np.linspace(0, 0.1, 60)
    monkeypatch.setattr(module, "ask", lambda *_: probability)
    found = signals("files", rows_of(labels, [f"P{k}" for k in range(60)]), {"x": list(range(60))}, {})[0]
    assert found.auc > module.RED > found.low > module.AMBER and found.status == "amber"


def test_a_field_that_is_excused_is_at_most_amber_and_says_why():
    labels = np.arange(60) % 2
    rows = rows_of(labels, [f"P{k}" for k in range(60)])
    columns = {"size": (labels * 5).tolist(), "other": np.random.default_rng(0).normal(size=60).tolist()}
    found = {signal.item: signal for signal in signals("files", rows, columns, {"size": "why"})}
    assert (found["size"].status, found["size"].found) == ("amber", "why")
    assert found["all together"].status == "red"  # not all of them are excused


def test_few_patients_are_told_and_one_patient_is_not_asked():
    rows = rows_of([0, 1] * 6, [f"P{k}" for k in range(12)])
    found = signals("names", rows, {"x": [0, 1] * 6}, {})[0]
    assert "fewer than 10 patients" in found.found
    rows = rows_of([0, 0, 1, 1], ["A", "B", "C", "C"])
    assert signals("names", rows, {"x": [1, 2, 3, 4]}, {})[0].auc is None


def test_numbers_that_differ_in_the_last_digits_and_infinite_ones_are_told_apart():
    labels = np.arange(60) % 2
    units = [f"P{k}" for k in range(60)]
    seconds = [1_700_000_000 + k // 2 + 30 * int(label) for k, label in enumerate(labels)]  # one number in 32 bits
    assert roc_auc_score(labels, ask(labels, units, {"time of the file": seconds})) > 0.95
    ends = [float("inf") if label else None if k % 8 else -1e300 for k, label in enumerate(labels)]
    assert roc_auc_score(labels, ask(labels, units, {"x": ends})) > 0.95


def test_texts_are_categories_and_unknown_values_are_allowed():
    labels = np.arange(80) % 2
    site = [None if k % 5 == 0 else ("GE", "Siemens")[label] for k, label in enumerate(labels)]
    found = ask(labels, [f"P{k}" for k in range(80)], {"site": site, "field": [1.5, None] * 40})
    assert roc_auc_score(labels, found) > 0.9


def test_names_are_taken_apart_and_dates_are_days():
    assert name_fields(["TCGA_7_20140301", "X_12_20140302"]) == {
        "text 1": ["TCGA", "X"],
        "number 1": [7, 12],
        "length": [15, 13],
    }
    assert (
        day_of("scan 2014-03-01") + 1 == day_of("20140302")
        and day_of("20140230") is None
        and day_of("12345678") is None
    )
    kept, dated = split_dates({"AcquisitionDate": ["20140301", None], "kV": [120, 100], "date of what": ["x", "y"]})
    assert list(kept) == ["kV", "date of what"] and dated["AcquisitionDate"][1] is None
