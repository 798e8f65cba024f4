"""What a prediction of glioma genotype has to beat: age and grade, its embeddings without a graph; within grade.

Grade and age predict IDH; a network that found them in the image has found no genotype.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.io import write_json, write_text
from shared.metrics import class_report, classification_metrics, decision_curve
from shared.metrics.classifiers import classifier
from shared.reports.tables import difference_text, interval_text, markdown_table, number_text
from shared.reports.validation import control_differences

logger = logging.getLogger(__name__)

STRATA = {"all": None, "grade 4": (4,), "grade 2-3": (2, 3)}
CLINICAL = ("age", "grade")
UNIMODAL = "unimodal_"  # before an encoder's name: the answer of its own classifier
OWN = {"graph": "population graph", "additive": "sum of the encoders' scores"}  # by the answer
_P = {"p": "p", "p_holm": "p (Holm)", "p_delong": "DeLong's p", "p_delong_holm": "DeLong's p (Holm)"}
CONTROLS = {
    **{f"probability_{answer}": title for answer, title in OWN.items()},
    "no_edges": "trained with edges, predicted without",
    "mlp": "MLP on the same embeddings",
    "svm": "SVM on the same embeddings",
    "multitask": "MLP trained with the encoders",
    f"{UNIMODAL}image": "MLP trained with the image encoder",
    f"{UNIMODAL}points": "MLP trained with the surface encoder",
    f"{UNIMODAL}brain": "MLP trained with the brain encoder",
}


def not_trained(encoders: Sequence[str], columns: Mapping[str, Any]) -> list[str]:
    """The classifiers of these encoders that a training may have left out: what is not among a table's columns.

    Example:
        >>> not_trained(["image", "brain"], {"multitask": 0.5, "unimodal_image": 0.5})
        ['unimodal_brain']
    """
    # one encoder alone has the joint classifier only
    wanted = ["multitask", *(f"{UNIMODAL}{name}" for name in encoders if len(encoders) > 1)]
    return [name for name in wanted if name not in columns]


def clinical_baseline(
    known: Sequence[Mapping[str, Any]], training: Sequence[str], patients: Sequence[str]
) -> tuple[list[str], np.ndarray] | None:
    """Logistic regression on age and grade: which of them there were, and the probability of each of ``patients``.

    Args:
        known: cases with ``patient``, ``label`` and ``covariates``.
        training: names of those fitted to.
        patients: names of those predicted.

    Returns:
        None where nobody who trains has an age or a grade, or all have one label.
    """
    about = {str(case["patient"]): case for case in known}

    def table(names: Sequence[str], used: Sequence[str]) -> np.ndarray:
        rows = [about.get(name, {}).get("covariates") or {} for name in names]
        return np.array([[float(row.get(key, np.nan)) for key in used] for row in rows]).reshape(len(names), -1)

    labelled = [name for name in training if about.get(name, {}).get("label") is not None]
    used = [key for key in CLINICAL if len(labelled) and np.isfinite(table(labelled, [key])).any()]
    labels = np.array([about[name]["label"] for name in labelled])
    if not used or len(set(labels.tolist())) < 2:
        return None
    model = classifier("logistic").fit(table(labelled, used), labels)
    return used, model.predict_proba(table(patients, used))[:, 1]


def write_glioma_controls(
    folder: str | os.PathLike,
    rows: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    known: Sequence[Mapping[str, Any]] | None = None,
    training: Sequence[str] = (),
    encoders: Sequence[str] = (),
    answer: str = "graph",
    bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the recalls of both classes into metrics.json, and controls.json and controls.md; log them.

    The decision curve of ``metrics`` gets the controls', and decision.png is drawn anew with them.

    Args:
        folder: where ``metrics.json`` lies already.
        rows: of ``predictions.csv``, with ``no_edges`` and ``mlp``; where they were trained, ``svm``, ``multitask``,
            ``unimodal_<encoder>`` and ``probability_<answer>``.
        metrics: content of ``metrics.json``.
        class_names: of both classes.
        known: cases with age and grade.
        training: names of those who trained.
        encoders: of the network: classifiers of theirs that are not among the rows were not trained, which is said.
        answer: whose ``probability`` is: ``"graph"`` or ``"additive"``; the other one is a control.
        bootstrap: draws.
        seed: of the draws.
    """
    folder, own = Path(folder), OWN[answer]
    labelled = [row for row in rows if row["label"] != ""]
    labels = np.array([row["label"] for row in labelled])
    draws: dict[str, Any] = {"bootstrap": bootstrap, "seed": seed}
    probability = np.array([row["probability"] for row in labelled])
    report = class_report(labels, probability, class_names=class_names, **draws)
    outside = sum(bool(row["out_of_cohort"]) for row in rows)
    missing = [CONTROLS[name] for name in not_trained(encoders, labelled[0])] if encoders else []
    for name in class_names:
        logger.info("recall of %s %s", name, interval_text(report["classes"][name]["recall"]))
    methods = {own: probability}
    for key, title in CONTROLS.items():
        if key in labelled[0] and title != own:
            methods[title] = np.array([row[key] for row in labelled])
    patients = [row["patient"] for row in labelled]
    grade = np.full(len(patients), np.nan)
    if known is not None:
        about = {str(case["patient"]): case.get("covariates") or {} for case in known}
        grade = np.array([float(about.get(name, {}).get("grade", np.nan)) for name in patients])
        if (found := clinical_baseline(known, training, patients)) is not None:
            methods[f"{' + '.join(found[0])} (logistic regression)"] = found[1]
    controls = {title: values for title, values in methods.items() if title != own}
    content = {**metrics, **report, "out_of_cohort": outside, "not_trained": missing}
    if "decision" in metrics:
        others = decision_curve(labels, probability, controls=controls, bootstrap=0)["controls"]
        content["decision"] = {**metrics["decision"], "controls": others}
    write_json(folder / "metrics.json", content)
    if "decision" in metrics and len(set(labels.tolist())) > 1:
        from shared.visualize import decision_figure

        decision_figure(content["decision"], folder / "decision.png", name=own)
    result: dict[str, Any] = {}
    for stratum, grades in STRATA.items():
        inside = np.ones(len(labels), bool) if grades is None else np.isin(grade, grades)
        if len(set(labels[inside].tolist())) < 2:
            continue
        scores = {
            title: classification_metrics(labels[inside], values[inside], **draws)["AUC"]
            for title, values in methods.items()
        }
        result[stratum] = {"n": int(inside.sum()), "positives": int(labels[inside].sum()), "AUC": scores}
        inner = {title: values[inside] for title, values in controls.items()}
        result[stratum]["difference"] = control_differences(labels[inside], probability[inside], inner, **draws)
    if result:
        write_json(folder / "controls.json", result)
        header = ["AUC", *(f"{name} ({part['positives']} of {part['n']} mutant)" for name, part in result.items())]
        lines = [[title, *(interval_text(part["AUC"][title]) for part in result.values())] for title in methods]
        lines += [[title, *("not trained" for _ in result)] for title in missing]
        text = markdown_table(header, lines)
        whole = next(iter(result.values()))["difference"]
        differences = [[t, difference_text(d), *(number_text(d[key]) for key in _P)] for t, d in whole.items()]
        if differences:
            text += f"\n\n{markdown_table([f'AUC of the {own} minus', 'difference', *_P.values()], differences)}"
        write_text(folder / "controls.md", text + "\n")
        logger.info("%s", "\n" + text)
    return result
