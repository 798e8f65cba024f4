"""A model card: the head of a Hugging Face README, and the headings of CHAI's applied model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.apps.report.blocks import read_object, text_of
from shared.apps.report.checklists import AUTHOR
from shared.bundle.contents import read_metadata
from shared.io import write_text
from shared.reports.tables import bounds_text, interval_text, markdown_table

CARD = "MODEL_CARD.md"
_METRICS = {"AUC": "roc_auc", "BRIER": "brier_score", "ACC": "accuracy", "F1": "f1"}
"""By our name that of Hugging Face."""


def write_model_card(folder: Path, bundle: Path, ckpt_dir: Path | None = None) -> Path:
    """Write ``MODEL_CARD.md`` from the bundle's metadata, a model's settings and the results in the folder.

    Args:
        folder: of a study or evaluation.
        bundle: whose ``configs/metadata.json`` is told.
        ckpt_dir: of ``model.json``; None: a fold's of the study's first row, where there is one.

    Raises:
        DataError: the bundle has no readable metadata.
    """
    metadata, study = read_metadata(bundle), read_object(folder / "study.json") or {}
    where, results = _results(folder, study)
    first = next(iter(study.get("rows", {}).values()), {}).get("folder", "")
    models = [ckpt_dir] if ckpt_dir else sorted(folder.glob(f"{first}/seed*/fold*/models")) if first else []
    model = next((found for path in models if (found := read_object(path / "model.json"))), {})
    text = (
        f"---\n{_head(bundle, metadata, study, results)}---\n\n{_body(bundle, metadata, study, model, results, where)}"
    )
    write_text(folder / CARD, text)
    return folder / CARD


def _results(folder: Path, study: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The metrics of the study's first row, which is the method, or of the evaluation, with their file."""
    rows = [f"{row['folder']}/results.json" for row in study.get("rows", {}).values()]
    for name in rows[:1] or ["results.json", "metrics.json"]:
        if content := read_object(folder / name):
            return name, {**content, **content.get("metrics", {})}
    return "", {}


def _head(bundle: Path, metadata: Mapping[str, Any], study: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    # JSON strings and lists are YAML, too
    lines = ["license: apache-2.0", "library_name: monai", "pipeline_tag: image-classification"]
    lines += [f"tags: {json.dumps(['monai', 'medical', 'interpretability', bundle.name])}"]
    measured = {name: kind for name, kind in _METRICS.items() if _value(results, name) is not None}
    if measured:
        cohort = json.dumps(str(study.get("cohort", "see the card")))
        lines += [f"metrics: {json.dumps(list(measured.values()))}", "model-index:"]
        lines += [f"- name: {json.dumps(str(metadata.get('name', bundle.name)))}", "  results:"]
        lines += ["  - task:", "      type: image-classification", "    dataset:"]
        lines += [f"      name: {cohort}", f"      type: {cohort}", "    metrics:"]
        for name, kind in measured.items():
            lines += [f"    - type: {kind}", f"      value: {_value(results, name):.4f}"]
    return "\n".join(lines) + "\n"


def _value(results: Mapping[str, Any], name: str) -> float | None:
    found = results.get(name)
    return found.get("value") if isinstance(found, Mapping) else None


def _body(
    bundle: Path,
    metadata: Mapping[str, Any],
    study: Mapping[str, Any],
    model: Mapping[str, Any],
    results: Mapping[str, Any],
    where: str,
) -> str:
    def told(key: str) -> str:
        return _one_line(metadata.get(key) or AUTHOR)

    classes = ", ".join(map(str, model.get("classes") or ())) or told("label_classes")
    inputs = metadata.get("network_data_format", {}).get("inputs", {})
    parts = [
        f"{name}: {part.get('type', '')}, {part.get('num_channels', '')} channels, {part.get('spatial_shape', '')}"
        for name, part in inputs.items()
        if isinstance(part, Mapping)
    ]
    record = model.get("record", {}) if isinstance(model.get("record"), Mapping) else {}
    settings = [[key, text_of(value)] for key, value in record.get("settings", {}).items()]
    performance = [
        [name, interval_text(results[name]), where]
        for name in ("AUC", "BACC", "BRIER", "ACC", "F1", "REC", "PRE")
        if _value(results, name) is not None
    ]
    calibration = results.get("calibration")
    if isinstance(calibration, Mapping):
        named = {"intercept": "intercept", "slope": "slope", "observed_expected": "O:E", "ICI": "ICI"}
        for key, name in named.items():
            if isinstance(calibration.get(key), Mapping):
                performance.append([f"calibration, {name}", bounds_text(calibration[key]), where])
    limits = "".join(f"  - {_one_line(limit)}\n" for limit in study.get("limits", ()))
    count = results.get("patients", results.get("n"))
    cohort = f"{_one_line(study.get('cohort', 'the data of ' + where) if where else AUTHOR)}"
    developed = f"{cohort}, {count} patients or rows (from {where})" if count is not None else AUTHOR
    table = markdown_table(["metric", "value [95 % interval]", "file"], performance) if performance else AUTHOR
    setting = f"\n{markdown_table(['setting', 'value'], settings)}\n" if settings else f" {AUTHOR}\n"
    references = "".join(f"- {_one_line(line)}\n" for line in metadata.get("references", ()))
    return f"""# {told("name")}

Headings: CHAI's applied model card. What no file says is left to the authors.

- Name: {told("name")} (`{bundle.name}`)
- Developer: {told("authors")}
- Release stage, date and version: research; {AUTHOR}; version {told("version")}
- Inquiries: {AUTHOR}

## Summary

{told("description")}

## Uses and directions

- Intended use and workflow: {told("intended_use")}
- Primary intended users: {AUTHOR}
- How to use: docs/README.md of the bundle; MONAI {told("monai_version")}, PyTorch {told("pytorch_version")}
- Targeted patient population: {AUTHOR}
- Cautioned out-of-scope settings and use cases: everything but research; {AUTHOR}

## Warnings

- Known risks and limitations:
{limits or f"  {AUTHOR}"}
- Known biases or ethical considerations: {AUTHOR}
- Clinical risk level: not assessed, not a medical device

## Trust ingredients

### AI system facts

- Outcomes and outputs: probability of the second class of {classes}; {told("pred_classes")}
- Model type: {told("task")}
- Foundation models used: {AUTHOR}
- Input data source: {told("data_source")}
- Input data type: {told("image_classes")}; {"; ".join(parts)}
- Development data: {developed}
- Bias mitigation: {AUTHOR}
- Ongoing maintenance: {AUTHOR}

Settings that the model was trained with (model.json, record):
{setting}
### Transparency

- Funding: {AUTHOR}
- Third-party software: {", ".join(f"{k} {v}" for k, v in metadata.get("required_packages_version", {}).items())}
- Stakeholders consulted: {AUTHOR}

## Key metrics

### Usefulness, usability and efficacy

{table}

### Fairness and equity

{AUTHOR}; subgroups: see report.html

### Safety and reliability

{AUTHOR}; robustness and failures: see report.html

## Resources

- Evaluation: report.html, checklists/
- Clinical trial: {AUTHOR}
- Publications of the method:
{references or f"  {AUTHOR}"}
- Patients' consent or disclosure: {AUTHOR}
"""


def _one_line(value: Any) -> str:
    return " ".join(str(value).split()).replace("<", "&lt;")
