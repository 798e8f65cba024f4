"""Reporting checklists with what a study knows filled in; the authors write the rest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.apps.report.blocks import read_object
from shared.io import write_text
from shared.reports.tables import bounds_text, interval_text, markdown_table

AUTHOR = "**author must write**"
_ITEMS = Path(__file__).parent / "checklists.json"


def write_checklists(folder: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Write ``checklists/<name>.md`` of TRIPOD+AI, CLAIM 2024 and METRICS.

    Args:
        folder: of the study or evaluation.
        content: of its report, see ``report_content``.

    Returns:
        of each its title, file, number of items and how many are filled in.
    """
    known, found = answers(folder, content), []
    for name, checklist in json.loads(_ITEMS.read_text(encoding="utf-8")).items():
        rows = [[number, _plain(about), _plain(known.get(key) or AUTHOR)] for number, about, key in checklist["items"]]
        title = f"# {checklist['title']}: {_plain(content['title'])}"
        text = f"{title}\n\n{checklist['citation']}\n\n{markdown_table(['item', 'about', 'here'], rows)}\n"
        write_text(folder / "checklists" / f"{name}.md", text)
        filled = sum(row[2] != AUTHOR for row in rows)
        line = {"title": checklist["title"], "file": f"checklists/{name}.md", "items": len(rows), "filled": filled}
        found.append(line)
    return found


def answers(folder: Path, content: Mapping[str, Any]) -> dict[str, str]:
    """By subject what the files of a study say, each with its file; subjects that they say nothing of are absent."""
    study = read_object(folder / "study.json") or {}
    place = next((p for p in ("external/external.json", "external.json") if (folder / p).is_file()), "")  # of a study
    external = (read_object(folder / place) if place else None) or {}
    experiments = content["experiments"]
    rows = [row["folder"] for row in study.get("rows", {}).values()]
    # a control's numbers are not the method's
    first = next((e for e in experiments if not rows or e["folder"] == rows[0]), None)
    found: dict[str, str] = {"checklists": "this checklist, TRIPOD+AI and CLAIM 2024 (checklists/)"}
    if study:
        found |= _of_study(study)
        commands = "every command stands in report.html, section Methods"
        found["code"] = f"{commands}; the code's versions and hashes beside; where it is published: {AUTHOR}"
    if content.get("flow"):
        found["flow"] = "flow diagram in report.html (study.json, flow)"
        gone = {row[2]: row[1] for row in content["flow"]["rows"] if row[0] == "left out"}
        told = ", ".join(f"{number} {reason}".strip() for reason, number in gone.items())
        found["excluded"] = (
            f"left out when the data were prepared: {told or 'nobody'} (study.json, flow); why: {AUTHOR}"
        )
    if patients := content.get("patients"):
        found["table_1"] = f"Table 1 in report.html (tables/patients.csv, of {patients['file']})"
        missing = [f"{row[0].partition(':')[0]} {row[1]}" for row in patients["rows"] if row[0].endswith(": missing")]
        told = f"missing covariates: {', '.join(missing)}" if missing else "there are no covariates"
        found["missing"] = f"{told} (tables/patients.csv); handling: {AUTHOR}"
        found["classes"] = f"numbers by class: tables/patients.csv; {_settings(study)}"
    if first:
        found |= _of_results(folder, first)
    if controls := [e for e in experiments if e["folder"].startswith("baselines/") and e["auc"]]:
        told = "; ".join(f"{e['title']}: AUC {interval_text(e['auc'])}" for e in controls)
        found["controls"] = f"{told} (report.html, baselines/*/results.json)"
    if external:
        difference = interval_text(external["difference"]["AUC"]) if external.get("difference", {}).get("AUC") else "-"
        auc = interval_text(external["external"]["AUC"])
        found["external"] = f"AUC {auc}, difference to development {difference} ({place})"
        found["updating"] = f"recalibration of intercept, and of intercept and slope, on half of the patients ({place})"
    if content["explanations"]:
        folders = ", ".join(part["folder"] for part in content["explanations"][:3])
        found["explanations"] = f"maps, beside controls where they were scored (report.html, Explanations: {folders})"
    for subject, words in _SECTIONS.items():
        for section in content["sections"]:
            if any(word in section["title"].lower() for word in words):
                found[subject] = f"section “{section['title']}” of report.html ({section['file']})"
                break
    found["limits"] = f"{' '.join(content['limits'])} (report.html, Limits); beyond that: {AUTHOR}"
    return found


_SECTIONS = {
    "subgroups": ("subgroup",),
    "robustness": ("robust",),
    "failures": ("failure", "error"),
    "confounders": ("leak", "audit"),
    "abstention": ("abst", "conformal", "out of cohort"),
}
"""By subject, words of the sections' titles that are about it."""


def _of_study(study: Mapping[str, Any]) -> dict[str, str]:
    seeds, folds = study["seeds"], study["folds"]
    split = f"{folds} folds by patient, stratified by label, seeds {', '.join(map(str, seeds))} (study.json)"
    cited = f"; the method: {study['citation']}" if study.get("citation") else ""
    return {
        "aim": f"cross-validation of {study['bundle']} and controls on {study['cohort']}{cited}; why: {AUTHOR}",
        "source": f"{study['cohort']} (study.json; datalist's digest {study['data']}); origin: {AUTHOR}",
        "preparation": f"{_settings(study)}; command and versions of the preparation: manifest.json of the data",
        "settings": _settings(study),
        "inputs": f"images and covariates of the datalist (study.json); choice: {AUTHOR}",
        "partition": split,
        "disjoint": "patients; of patients with a group the group (seed*/datalist.json of the rows)",
        "training": f"{_settings(study)}; commands: report.html, Methods",
        "internal": f"cross-validation: {split}",
        "model": "configs (hashes in report.html, Methods); seed*/fold*/models/model.json of the rows",
    }


def _settings(study: Mapping[str, Any]) -> str:
    changed = sorted({key for row in study.get("rows", {}).values() for key in row.get("changed", {})})
    told = f"settings that differ from the default: {', '.join(changed[:8])}" if changed else "default settings"
    return f"{told}{' and more' if len(changed) > 8 else ''} (study.json)"


def _of_results(folder: Path, first: Mapping[str, Any]) -> dict[str, str]:
    """Of the first row: what its metrics say."""
    where = next((s["file"] for s in first["sections"] if s["file"].endswith(("results.json", "metrics.json"))), "")
    results = read_object(folder / where) if where else None
    if not results:
        return {}
    metrics, found = results.get("metrics") or results, {}
    named = [name for name in ("AUC", "BACC", "BRIER", "ACC") if isinstance(metrics.get(name), Mapping)]
    told = ", ".join(f"{name} {interval_text(metrics[name])}" for name in named)
    if told:
        found["performance"] = f"{first['title']}: {told} ({where})"
        more = "calibration, net benefit, sensitivity and specificity at fixed thresholds"
        found["metrics"] = f"{', '.join(named)}, {more} (report.html; {where})"
        draws = f" of {results['bootstrap']} draws" if results.get("bootstrap") else ""
        found["uncertainty"] = f"95 % bootstrap intervals{draws} over patients; DeLong's interval ({where})"
    count, positive = results.get("patients", results.get("n")), results.get("positive", results.get("positives"))
    if count is not None:
        found["numbers"] = f"{count} patients or rows, {positive} positive ({where})"
    if isinstance(calibration := results.get("calibration"), Mapping):
        kept = {"intercept": "intercept", "slope": "slope", "observed_expected": "O:E", "ICI": "ICI"}
        values = ", ".join(
            f"{name} {bounds_text(calibration[key])}" for key, name in kept.items() if calibration.get(key)
        )
        found["calibration"] = f"{values} ({where}; calibration.png)"
    if isinstance(points := results.get("operating_points"), Mapping) and points:
        lines = []
        for name, point in points.items():
            shares = ("sensitivity", "specificity")
            lines.append(f"{name}: " + ", ".join(f"{share} {interval_text(point[share])}" for share in shares))
        found["operating"] = f"{'; '.join(lines)} ({where})"
        found["output"] = f"probability of class 1; thresholds {', '.join(points)} ({where}, operating_points)"
    if results.get("sample_size"):
        found["sample_size"] = f"after Riley et al.: {where}, sample_size; planned size: {AUTHOR}"
    if isinstance(folds := results.get("fold_auc"), Mapping) and folds.get("value") is not None:
        spread = f", sd {folds['sd']:.3f}" if folds.get("sd") is not None else ""
        found["folds"] = f"AUC of single folds {folds['value']:.3f}{spread}, {folds['folds']} folds ({where})"
    versions = first["experiment"].get("versions", {})
    if versions:
        listed = ", ".join(f"{name} {number}" for name, number in versions.items())
        found["software"] = f"{listed} ({first['folder']}/experiment.json)"
    return found


def _plain(text: str) -> str:
    """One line without a table's border, and without what Markdown would take for HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
