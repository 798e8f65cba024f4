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
        DataError: no model, no usable predictions, an evaluation of another model or of other views, a cross-validation
            that is not done or of other settings, labels or patients, patients trained on.
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
    folds = sorted(path.parent for path in folder.glob("seed*/fold*/predictions.csv"))
    if not folds and not (folder / "predictions.csv").is_file():
        raise DataError(f"{folder} holds no predictions.csv: give the folder of a cross-validation or an evaluation")
    rows = [row for place in folds or [folder] for row in _rows(place / "predictions.csv")]
    _check_answer(known, folder, folds)
    notes = _check_folds(Path(model), folder, folds, rows) if folds else _check_evaluation(known, folder)
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
    text += "" if limit is None else f"; distance limit {limit['limit']:.2f} from {limit['patients']} patients"
    return "\n".join([text, *notes])


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
        if numbers["label"] not in (0, 1) or not 0 <= numbers["probability"] <= 1:  # NaN, too
            raise DataError(f"{path}: {row['patient']} needs a label 0 or 1 and a probability in [0, 1], got {numbers}")
        answers = {key.removeprefix(ANSWER): value for key, value in row.items() if key.startswith(ANSWER)}
        whose = {"patient": row["patient"], "unit": row.get("group") or row["patient"]}
        found.append(numbers | whose | {"distance": distance, "answers": answers})
    return found


def _answer(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whose probability was predicted, of a network with several answers (``probability_<answer>``); else ""."""
    names = [name for name in rows[0]["answers"] if all(row["answers"].get(name) for row in rows)]
    apart = {name: max(abs(float(row["answers"][name]) - row["probability"]) for row in rows) for name in names}
    return min(apart, key=lambda name: apart[name], default="")


def _check_answer(model: Mapping[str, Any], folder: Path, folds: Sequence[Path]) -> None:
    """The probabilities are made as the model makes them by itself: of as many views, averaged in the same way."""
    from shared.bundle.record import read_model
    from shared.handlers.model_check import OF_THE_ANSWER, OLDER
    from shared.io import read_json_object

    own = {**OLDER, **model}
    for place in folds or [folder]:
        trained, path = read_model(place / "models") if folds else {}, place / "metrics.json"
        switched = read_json_object(path, "evaluation").get("switched", {}) if path.is_file() else {}
        used = ({**OLDER, **trained} if trained else own) | switched
        other = [f"{key} {used.get(key)} (the model's own: {own.get(key)})" for key in OF_THE_ANSWER
                 if used.get(key) != own.get(key)]  # fmt: skip
        if other:
            raise DataError(
                f"{place} was predicted with {', '.join(other)}: other probabilities than those of which the model "
                "tells sets. Predict these patients without that setting"
            )


def _check_evaluation(model: Mapping[str, Any], folder: Path) -> list[str]:
    """An evaluation is this very model's; what could not be checked."""
    from shared.io import read_json_object

    if (folder / "experiment.json").is_file():
        raise DataError(f"{folder} lacks the predictions of its folds (seed*/fold*): run the cross-validation again")
    path = folder / "metrics.json"
    predicted = read_json_object(path, "evaluation").get("weights") if path.is_file() else None
    if not predicted or not model.get("weights"):
        return [f"not checked: whether this model predicted {folder}, which does not say which model did"]
    if predicted != model["weights"]:
        raise DataError(
            f"{folder} was predicted by another model: its metrics.json has other weights than model.json. Evaluate "
            "with this model, or cross-validate with its settings"
        )
    return []


def _check_folds(model: Path, folder: Path, folds: Sequence[Path], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A cross-validation is done, made as the model is, and of its patients; what could not be checked.

    Seeds and folds may differ, and patients may be new.
    """
    from shared.bundle.record import TrainingRecord, read_model, read_split
    from shared.data.tables import some

    _check_done(folder)
    notes: list[str] = []
    mine = _comparable(read_model(model))
    others = {place: _comparable(read_model(place / "models")) for place in folds}
    for place, other in others.items():
        if mine and other and (found := TrainingRecord.differences(mine, other)):
            raise DataError(
                f"{place} was trained otherwise than the model: {'; '.join(found)}. Cross-validate with the "
                "model's own settings"
            )
    notes += _check_stages(model, folds)
    if not mine or not any(others.values()):
        notes.append(f"not checked: the settings of {folder}, whose folds have no models/model.json, or the model none")
    stage = mine.get("stage")

    def images(place: Path) -> dict[str, list[str]]:
        return read_split(place).get("images", {}).get(stage, {})

    trained, names = images(model), {row["patient"] for row in rows}
    if not trained:
        return [*notes, "not checked: whose images the model was trained on, as it has no split.json"]
    other_images = {
        name
        for place in folds
        for name, found in images(place / "models").items()
        if name in trained and not set(found) & set(trained[name])
    }
    if lacking := sorted((set(trained) - names) | other_images):
        raise DataError(
            f"{folder} is of another cohort than the model: {len(lacking)} of the {len(trained)} patients that it was "
            f"trained on are not in it, or with other images ({some(lacking)}). Cross-validate the model's own cohort, "
            "or evaluate this model on the patients you have"
        )
    if new := sorted(names - set(trained)):
        notes.append(f"{len(new)} of the {len(names)} patients are none that the model was trained on ({some(new)})")
    return notes


def _check_stages(model: Path, folds: Sequence[Path]) -> list[str]:
    """Stages before the last were trained alike in all folds and in the model; what could not be checked."""
    from shared.bundle.record import TrainingRecord
    from shared.checkpoint import load_checkpoint

    def stored(path: Path) -> dict[str, Any]:
        state = load_checkpoint(path) if path.is_file() else None
        return _comparable(state) if isinstance(state, Mapping) else {}

    unknown = set()
    for path in sorted(path for path in model.glob("*.pt") if path.name != "model.pt"):
        mine = stored(path)
        for place in folds:
            other = stored(place / "models" / path.name)
            if mine and other and (found := TrainingRecord.differences(mine, other)):
                raise DataError(
                    f"{place / 'models' / path.name} was trained otherwise than the model's: {'; '.join(found)}. "
                    "Cross-validate with the model's own settings"
                )
            unknown |= set() if mine and other else {path.name}
    return [f"not checked: the settings of {', '.join(sorted(unknown))}, which the folds lack"] if unknown else []


def _comparable(content: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's record is that of another fold or seed, too."""
    record = content.get("record") or {}
    kept = {key: value for key, value in record.items() if key not in ("data", "parents", "settings")}
    settings = {key: value for key, value in record.get("settings", {}).items() if key not in ("seed", "fold")}
    return kept | {"settings": settings} if settings else {}


def _check_done(folder: Path) -> None:
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


def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate."""
    args = arguments(argv)
    print(calibrate(args.model, args.predictions))
