"""What says whether probabilities can be used: calibration, net benefit, operating points, size; as JSON, text, tables.

The order is that of Van Calster et al., Lancet Digit Health 2025: AUC, calibration, net benefit, sensitivity and
specificity at thresholds fixed before; F1 and accuracy come last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared.metrics import (
    calibration_report,
    decision_curve,
    delong_interval,
    delong_test,
    holm_adjusted,
    operating_points,
    paired_difference,
    supported_parameters,
    validation_sample_size,
)
from shared.metrics.calibration import log_odds
from shared.metrics.classification import check_seeds
from shared.reports.tables import bounds_text, interval_text, markdown_table, number_text

CALIBRATION = {"intercept": "intercept", "slope": "slope", "observed_expected": "O:E", "ICI": "ICI"}
SHARES = ("sensitivity", "specificity", "PPV", "NPV")
SHOWN = (0.1, 0.2, 0.3, 0.5, 0.7)  # thresholds of the table of net benefit


def validation_sections(
    labels: Any,
    probability: Any,
    *,
    thresholds: Mapping[str, Any] | None = None,
    controls: Mapping[str, Any] | None = None,
    groups: Sequence[Any] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The sections ``calibration``, ``decision``, ``operating_points``, ``delong`` and ``sample_size`` of metrics.json.

    Args:
        labels: 0 or 1.
        probability: of class 1; of several seeds all is the mean over them.
        thresholds: name to threshold, fixed on training patients, beside 0.5.
        controls: name to the probabilities of another prediction of the same rows.
        groups: patient of each row, where a patient has several: they are drawn together.
        bootstrap: draws of the 95 % intervals.
        seed: of the draws.

    Shape:
        - labels, groups: ``[n]``; probability, each control: ``[n]`` or ``[seeds, n]``
    """
    draws: dict[str, Any] = {"groups": groups, "bootstrap": bootstrap, "seed": seed}
    return {
        "calibration": calibration_report(labels, probability, **draws),
        "decision": decision_curve(labels, probability, controls=controls, **draws),
        "operating_points": operating_points(labels, probability, thresholds, **draws),
        "delong": delong_interval(labels, probability, groups=groups),
        "sample_size": sample_size_section(labels, probability),
    }


def control_differences(
    labels: Any,
    probability: Any,
    controls: Mapping[str, Any],
    *,
    groups: Sequence[Any] | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, float | None]]:
    """AUC minus that of each control, on the same draws, with p corrected for the number of controls (Holm).

    Args:
        labels: 0 or 1, both of them there.
        probability: of class 1; of several seeds the AUC is the mean over them.
        controls: name to the probabilities of another prediction of the same rows.
        groups: patient of each row, where a patient has several: they are drawn together.
        bootstrap: draws.
        seed: of the draws.

    Shape:
        - labels, groups: ``[n]``; probability, each control: ``[n]`` or ``[seeds, n]``
        - returns: ``{name: {"value", "low", "high", "p", "p_holm", "p_delong", "p_delong_holm"}}``
    """
    found: dict[str, dict[str, float | None]] = {}
    for name, other in controls.items():
        drawn = paired_difference(labels, probability, other, groups=groups, bootstrap=bootstrap, seed=seed)
        found[name] = {key: drawn[key] for key in ("value", "low", "high", "p")}
        found[name]["p_delong"] = delong_test(labels, probability, other, groups=groups)["p"]
    for key in ("p", "p_delong"):
        for each, corrected in zip(found.values(), holm_adjusted([x[key] for x in found.values()]), strict=True):
            each[f"{key}_holm"] = corrected
    return found


def sample_size_section(labels: Any, probability: Any) -> dict[str, Any]:
    """Sizes that intervals of usual widths need, of the first seed, and the parameters that the rows would support.

    None where there is one class, or where AUC or slope have no size.
    """
    truth, both = check_seeds(labels, probability, 1)
    share, auc = float(truth.mean()), delong_interval(labels, both)["value"]
    sizes: dict[str, Any] = dict.fromkeys(("observed_expected", "slope", "AUC"))
    if auc is not None:
        sizes = dict(validation_sample_size(log_odds(both[0]), auc, prevalence=share))
    return {"validation": sizes, "development": supported_parameters(labels, both[0])}


def sample_size_text(section: Mapping[str, Any], rows: int, positives: int, patients: int | None = None) -> str:
    """The sizes in a sentence.

    Example:
        >>> sizes = {"observed_expected": 300, "slope": 900, "AUC": None}
        >>> sample_size_text({"validation": sizes}, 40, 10).split(". ")[0]
        '40 patients, 10 positive'
    """
    sizes = section["validation"]
    count = f"{rows} patients" if patients is None else f"{rows} rows of {patients} patients"
    needed = [str(sizes[key] if sizes[key] is not None else "-") for key in ("slope", "observed_expected", "AUC")]
    text = (
        f"{count}, {positives} positive. For 95 % intervals of +-0.2 (calibration slope), +-0.1 (O:E) and +-0.05 (AUC) "
    )
    return text + f"about {needed[0]}, {needed[1]} and {needed[2]} independent patients are needed (Riley et al. 2021)."


def development_text(section: Mapping[str, Any]) -> str:
    """How large a logistic model so many patients support, in a sentence; nothing where that cannot be said.

    Example:
        >>> development_text({"development": {"r_squared": -0.2, "parameters": None}})
        ''
    """
    found = section["development"]
    if found["parameters"] is None:
        return ""
    text = f"With its R2 (Cox and Snell) of {found['r_squared']:.3f}, so many patients support a logistic model of "
    return text + f"{found['parameters']} candidate parameters at a shrinkage of 0.9 (Riley et al. 2019)."


def log_lines(sections: Mapping[str, Any]) -> list[str]:
    """Calibration, net benefit and operating points, a line each."""
    lines = [f"calibration {title} {bounds_text(sections['calibration'][key])}" for key, title in CALIBRATION.items()]
    lines += [f"calibration {CALIBRATION[key]}: {why}" for key, why in sections["calibration"]["undefined"].items()]
    decision = sections["decision"]
    at = int(np.argmin(np.abs(np.array(decision["threshold"]) - 0.5)))
    value = {key: decision[key][at] for key in ("low", "high")} | {"value": decision["model"][at]}
    lines.append(
        f"net benefit at {decision['threshold'][at]:g} {interval_text(value)}, of all {decision['all'][at]:.3f}"
    )
    for name, point in sections["operating_points"].items():
        shares = ", ".join(f"{share} {interval_text(point[share])}" for share in SHARES)
        lines.append(f"at {_point_title(name, point)}: {shares}")
    return lines


def calibration_table(report: Mapping[str, Any]) -> str:
    """Intercept, slope, O:E and ICI as a Markdown table."""
    return markdown_table(list(CALIBRATION.values()), [[bounds_text(report[key]) for key in CALIBRATION]])


def operating_table(points: Mapping[str, Mapping[str, Any]]) -> str:
    """One threshold a row, as a Markdown table."""
    rows = [[_point_title(name, p), *(interval_text(p[share]) for share in SHARES)] for name, p in points.items()]
    return markdown_table(["threshold", *SHARES], rows)


def decision_table(decision: Mapping[str, Any]) -> str:
    """Net benefit at some thresholds, as a Markdown table: the model, all, each control."""
    places = [int(np.argmin(np.abs(np.array(decision["threshold"]) - place))) for place in SHOWN]
    model = [{key: decision[key][k] for key in ("low", "high")} | {"value": decision["model"][k]} for k in places]
    rows = [["model", *(interval_text(value) for value in model)]]
    for name, values in {"all": decision["all"], **decision["controls"]}.items():
        rows.append([name, *(number_text(values[k]) for k in places)])
    return markdown_table(["net benefit at", *(f"{decision['threshold'][k]:g}" for k in places)], rows)


def _point_title(name: str, point: Mapping[str, Any]) -> str:
    return name if name == f"{point['threshold']:g}" else f"{name} ({point['threshold']:.3f})"
