"""Teach a trained model when to abstain: from predictions of patients whom the predicting model was not trained on.

The folder is a cross-validation of the same configuration (each patient predicted by the fold that left it out), or an
evaluation of patients whom this very model has not seen. conformal.json then lies beside the model; inference and
evaluation tell sets of plausible classes, and take the limit of the distance to the training patients from it; an
evaluation tells sensitivity, specificity and predictive values at its thresholds (Youden's; 90 % sensitivity), too.

    python scripts/cross_validate.py ircl_mvi --dataset_dir data/ircl_mvi --config cpu
    python scripts/calibrate.py bundles/ircl_mvi/models --predictions bundles/ircl_mvi/eval/cross_validation/cpu
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import DataError

ANSWER = "probability_"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL_DIR", help="folder of model.pt and model.json")
    where = "folder of a cross-validation, or of an evaluation with predictions.csv"
    parser.add_argument("--predictions", required=True, metavar="FOLDER", help=where)
    return parser.parse_args(argv)


def calibrate(model: str, predictions: str) -> str:
    """Write ``conformal.json`` beside the model; return what was written, in words.

    Raises:
        DataError: no model, no usable predictions, a cross-validation that is not done or of other settings or labels,
            patients trained on.
    """
    from shared.bundle.record import CONFORMAL_FILE, read_model
    from shared.io import write_json
    from shared.metrics.cohort_distance import FEWEST, distance_limit
    from shared.metrics.conformal import class_scores
    from shared.metrics.thresholds import training_thresholds

    known = read_model(model)
    if not known:
        raise DataError(f"{model} holds no model.json: give the folder of a trained model")
    folder = Path(predictions)
    tables = sorted(folder.glob("seed*/fold*/predictions.csv")) or [folder / "predictions.csv"]
    _check_experiment(folder)
    _check_evaluation(folder, known)
    for table in tables:
        _check_same_settings(known, read_model(table.parent / "models"), table.parent)
    rows = [row for table in tables for row in _rows(table)]
    labels = [row["label"] for row in rows]
    groups = [row["unit"] for row in rows]
    if len(set(labels)) < 2:
        raise DataError(f"{folder}: sets need labelled patients of both classes, there is one")
    probability = [row["probability"] for row in rows]
    scores = class_scores(labels, probability, groups)
    far = [row for row in rows if row["distance"] is not None]
    limit = None
    if len({row["unit"] for row in far}) >= FEWEST:
        limit = distance_limit([row["distance"] for row in far], [row["unit"] for row in far])
    content = {"weights": known.get("weights", ""), "answer": _answer(rows), "scores": scores, "distance": limit}
    content["thresholds"] = training_thresholds(labels, probability)
    write_json(Path(model) / CONFORMAL_FILE, content)
    counts = " and ".join(str(part["patients"]) for part in scores)
    text = f"{Path(model) / CONFORMAL_FILE}: sets from {counts} patients of class 0 and 1"
    return text + ("" if limit is None else f"; distance limit {limit['limit']:.2f} from {limit['patients']} patients")


def _rows(path: Path) -> list[dict[str, Any]]:
    """Labelled rows of a table with their patient, or group."""
    from shared.data.tables import read_table

    found = []
    for row in read_table(path, ["patient", "label", "probability"]):
        if row.get("trained_on") == "1":
            raise DataError(f"{path}: the model was trained on {row['patient']}; calibrate with patients left out")
        if row["label"] == "":
            continue
        try:
            numbers = {"label": int(row["label"]), "probability": float(row["probability"])}
            distance = float(row["cohort_distance"]) if row.get("cohort_distance") else None
        except ValueError as error:
            raise DataError(f"{path}: {row['patient']} has no number where one is needed ({error})") from error
        answers = {key.removeprefix(ANSWER): value for key, value in row.items() if key.startswith(ANSWER)}
        found.append(numbers | {"unit": row.get("group") or row["patient"], "distance": distance, "answers": answers})
    return found


def _answer(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whose probability was predicted, of a network with several answers (``probability_<answer>``); else ""."""
    names = [name for name in rows[0]["answers"] if all(row["answers"].get(name) for row in rows)]
    apart = {name: max(abs(float(row["answers"][name]) - row["probability"]) for row in rows) for name in names}
    return min(apart, key=lambda name: apart[name], default="")


def _check_evaluation(folder: Path, model: Mapping[str, Any]) -> None:
    """An evaluation, where it says so, is of this very model, and of patients whom it was not trained on."""
    if not (folder / "metrics.json").is_file() or not (folder / "predictions.csv").is_file():
        return
    from shared.io import read_json_object

    said = read_json_object(folder / "metrics.json", "evaluation").get("evaluated") or {}
    if said.get("split") == "training":
        raise DataError(f"{folder} evaluates the training part: calibrate with patients left out")
    if said.get("weights") and model.get("weights") and said["weights"] != model["weights"]:
        raise DataError(f"{folder} evaluates another model than this one: evaluate this one (--ckpt_dir)")


def _check_experiment(folder: Path) -> None:
    """A cross-validation, where its record is there, is done and trained as a model is: on all patients' own labels."""
    from shared.apps.experiments.folder import read_experiment

    if not (folder / "experiment.json").is_file():
        return
    settings = read_experiment(folder)["settings"]
    odd = [key for key in ("shuffle_labels", "votes") if settings.get(key)]
    odd += ["share"] * (settings.get("share", 1.0) < 1)
    if odd:
        raise DataError(f"{folder} was trained with {', '.join(odd)}: its models are not made as the model is")
    seeds = sorted(path for path in folder.glob("seed*") if path.is_dir())
    places = [seed / f"fold{k}" for seed in seeds for k in range(settings.get("folds") or 0)]
    if lacking := [path for path in places if not (path / "predictions.csv").is_file()]:
        names = ", ".join(path.relative_to(folder).as_posix() for path in lacking[:5])
        raise DataError(f"{folder} is not done ({names}): finish the cross-validation first")


def _check_same_settings(model: Mapping[str, Any], fold: Mapping[str, Any], folder: Path) -> None:
    """A fold's model is made as this one is, where its model.json is still there; seeds and files may differ."""
    mine, other = (dict((part.get("record") or {}).get("settings") or {}) for part in (model, fold))
    if not mine or not other:
        return
    keys = sorted(
        key for key in mine.keys() | other.keys() if key not in ("seed", "fold") and mine.get(key) != other.get(key)
    )
    if keys:
        raise DataError(
            f"{folder} was trained with other settings than the model ({', '.join(keys[:5])}): cross-validate with the "
            "model's own"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate."""
    args = arguments(argv)
    print(calibrate(args.model, args.predictions))


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
