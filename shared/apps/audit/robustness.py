"""Robustness of a trained model: what small changes of images and masks do to its probabilities and explanations.

Copies of the patients are predicted by the bundle's own inference.json, all in one run: masks grown and shrunk by 1 to
3 mm, noise, a bias field, coarser voxels; of patches other strengths of the stains, blur, noise, fewer pixels.

    python scripts/robustness.py ircl_mvi --ckpt_dir bundles/ircl_mvi/models --dataset_dir data/hcc
    python scripts/robustness.py sscl_crc --ckpt_dir eval/study/rows/sscl/seed0/fold0/models --dataset_dir data/crc \\
        --datalist_file eval/study/rows/sscl/seed0/datalist.json --fold 0
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shared.apps import ROOT
from shared.apps.experiments.options import add_options, parse_options
from shared.errors import DataError
from shared.io import write_csv, write_json

MANY = 0.05
"""Share of calls that a change may turn over: amber above it, red where its interval is above it."""
COLUMNS = ("change", "status", "n", "skipped", "median", "median_absolute", "absolute_95", "flips", "flip_share")
COLUMNS += ("flip_low", "flip_high", "map_correlation", "map_correlation_5")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundle", help="a name under bundles/, or the folder of an unpacked bundle")
    add("--ckpt_dir", required=True, help="folder with the trained model.pt")
    add("--dataset_dir", required=True, help="folder with datalist.json")
    add("--datalist_file", help="another datalist (default: DATASET_DIR/datalist.json)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--split", choices=("training", "validation", "testing"), help="part (default: testing, else training)"
    )
    which.add_argument("--fold", type=int, help="the training cases of this fold, which the model left out")
    add("--most", type=int, default=40, help="cases at most, drawn by label (default: 40)")
    add("--output", type=Path, help="folder (default: bundles/BUNDLE/eval/robustness)")
    add("--report", type=Path, help="folder of the report that shows the section (default: OUTPUT)")
    add_options(parser, "--set", "--jobs", "--threads")
    args = parse_options(parser, argv)
    if args.most < 1:
        parser.error("--most must be at least 1")
    return args


@dataclass(frozen=True)
class Inference:
    """The one run of inference.json; complete where it has predicted every form."""

    folder: Path
    count: int
    name: str = "robustness"

    def rows(self) -> list[dict]:
        """Its predictions.

        Raises:
            DataError: they are not complete.
        """
        try:
            with (self.folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except OSError as error:
            raise DataError(f"{self.folder}: no predictions.csv ({error.strerror})") from error
        if len(rows) != self.count:
            raise DataError(f"{self.folder / 'predictions.csv'} has {len(rows)} rows of {self.count}")
        return rows


def robustness(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Make the forms, predict them, write tables, picture and section; return a row per change.

    Raises:
        DataError: no such bundle, model or cases.
    """
    from shared.apps.audit.perturbations import perturbed_patch, perturbed_volumes
    from shared.apps.experiments.training_rows import is_patch_list
    from shared.bundle.configs import find_bundle
    from shared.bundle.record import seen_patients
    from shared.data.checks import read_datalist

    bundle = find_bundle(args.bundle, ROOT)
    output = Path(args.output or bundle / "eval" / "robustness").resolve()
    if not (Path(args.ckpt_dir) / "model.pt").is_file():
        raise DataError(f"{args.ckpt_dir} holds no model.pt: give the folder of a trained model (--ckpt_dir)")
    root = Path(args.dataset_dir).resolve()
    datalist = Path(args.datalist_file).resolve() if args.datalist_file else "datalist.json"
    content = read_datalist(args.dataset_dir, datalist)
    cases = chosen(content, args)
    patches = is_patch_list({"training": cases})
    trained = seen_patients(args.ckpt_dir, [_absolute(case, root) for case in cases])
    perturb = perturbed_patch if patches else perturbed_volumes
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".forms_") as temporary:
        folder = Path(temporary)
        for path in [*root.glob("*.json"), *root.glob("*.npz")]:
            shutil.copy(path, folder / path.name)  # what a bundle wants to know of the preparation
        forms: list[dict[str, dict[str, Any]]] = []
        for k, case in enumerate(cases):
            forms.append(perturb(_absolute(case, root), folder, f"case{k:04}"))
        entries = []
        for k, found in enumerate(forms):
            for number, case in enumerate(found.values()):
                case["patient"] = f"case{k:04}_{number:02}"
                entries.append(case)
        kept = {key: content[key] for key in ("name", "modalities", "classes") if key in content}
        write_json(folder / "datalist.json", {**kept, "training": [], "testing": entries})
        rows = predict(args, bundle, folder, len(entries))
        maps = map_correlations(forms, folder, patches)
    probability = {row["patient"]: float(row["probability"]) for row in rows}
    names = [str(case["image"]) if patches else str(case["patient"]) for case in cases]
    table = case_rows(names, [case.get("label") for case in cases], forms, probability, maps)
    summary = summarise(table, len(cases))
    write(output, args.report or output, table, summary, bundle.name, patches, trained=len(trained))
    return summary


def chosen(content: Mapping[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The cases to look at, of both labels in turn.

    Raises:
        DataError: there are none.
    """
    if args.fold is not None:
        found = [case for case in content.get("training") or () if case.get("fold") == args.fold]
        what = f"training cases of fold {args.fold}"
    else:
        split = args.split or ("testing" if content.get("testing") else "training")
        found, what = list(content.get(split) or ()), f"cases in {split!r}"
    if not found:
        raise DataError(f"the datalist of {args.dataset_dir} has no {what}: name others with --split or --fold")
    random = np.random.default_rng(0)
    order = [found[k] for k in random.permutation(len(found))]
    ranks: dict[Any, int] = {}
    keyed = []
    for case in order:
        rank = ranks[case.get("label")] = ranks.get(case.get("label"), -1) + 1
        keyed.append((rank, str(case.get("label")), case))
    keyed.sort(key=lambda item: item[:2])
    return [case for _, _, case in keyed[: args.most]]


def _absolute(case: Mapping[str, Any], root: Path) -> dict[str, Any]:
    new = dict(case)
    for key in ("image", "mask", "fa"):
        value = case.get(key)
        if isinstance(value, str):
            new[key] = str(root / value)
        elif value:
            new[key] = [str(root / path) for path in value]
    if isinstance(new["image"], str) and new["image"].endswith((".nii", ".nii.gz")):
        new["image"] = [new["image"]]
    return new


def predict(args: argparse.Namespace, bundle: Path, folder: Path, count: int) -> list[dict]:
    """Run the bundle's inference.json on the forms."""
    from shared.apps.experiments import processes
    from shared.bundle.configs import find_config, merge_configs, parse_overrides

    config = find_config(bundle, "inference")
    merged = merge_configs([config])
    values = {"dataset_dir": folder, "datalist_file": "datalist.json", "split": "testing"}
    values |= {"ckpt_dir": Path(args.ckpt_dir).resolve(), "output_dir": folder / "out"}
    values = {key: value for key, value in values.items() if key in merged}
    # the maps of masks are found by optimisation, minutes for each form
    nothing = {key: None for key in ("mask", "cache_dir") if key in merged}
    (folder / "out").mkdir()
    write_json(folder / "out" / "nothing.json", nothing)
    values |= parse_overrides(args.set, merged, reserved=(*values, *nothing))
    cwd = processes.working_folder(bundle)
    command = [
        *processes.RUN_BUNDLE,
        *processes.bundle_arguments([config, folder / "out" / "nothing.json"], values, cwd=cwd),
    ]
    environment = processes.run_environment(args.threads)
    job = Inference(folder / "out", count)
    run = processes.FoldRun(job, [("inference", command)], cwd=cwd, environment=environment)
    processes.run_folds(iter([run]), total=1, name=f"{count} forms", unit="run")
    return job.rows()


def map_correlations(forms: Sequence[Mapping], folder: Path, patches: bool) -> dict[str, float | None]:
    """Rank correlation of each form's map with that of the unchanged one, where inference leaves a map and either is
    not 0."""
    from shared.explain.ircl.comparison import rank_correlation

    found: dict[str, float | None] = {}
    for of_case in forms:
        first = None
        for case in of_case.values():
            image = case["image"] if isinstance(case["image"], str) else case["image"][0]
            if patches:
                path = folder / "out" / "cam" / f"{Path(image).stem}.png"
            else:
                path = folder / "out" / "patients" / f"{case['patient']}_contributions.nii.gz"
            if not path.is_file():
                continue
            values = _map(path)
            first = values if first is None else first
            shown = (first != 0) | (values != 0)
            found[case["patient"]] = rank_correlation(first, values, shown)
    return found


def _map(path: Path) -> np.ndarray:
    if path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as image:
            return np.asarray(image.convert("L"), float)
    import nibabel as nib

    return np.asarray(nib.load(path).dataobj, float)


def case_rows(
    names: Sequence[str],
    labels: Sequence[Any],
    forms: Sequence[Mapping[str, Mapping[str, Any]]],
    probability: Mapping[str, float],
    maps: Mapping[str, float | None],
) -> list[dict[str, Any]]:
    """A row per case and change: probability before and after, whether the call turns over, correlation of the maps."""
    rows = []
    for name, label, of_case in zip(names, labels, forms, strict=True):
        before = probability[of_case["unchanged"]["patient"]]
        for form, case in of_case.items():
            if form == "unchanged":
                continue
            after = probability[case["patient"]]
            row: dict[str, Any] = {"case": name, "label": "" if label is None else label, "change": form}
            row |= {"unchanged": before, "changed": after, "difference": after - before}
            rows.append({**row, "flipped": int((before >= 0.5) != (after >= 0.5)), "map": maps.get(case["patient"])})
    return rows


def summarise(table: Sequence[Mapping[str, Any]], cases: int) -> list[dict[str, Any]]:
    """A row per change: median of the change, 95 % of the absolute ones, flips with Wilson's interval, maps."""
    from scipy.stats import binomtest

    summary = []
    for change in dict.fromkeys(row["change"] for row in table):
        own = [row for row in table if row["change"] == change]
        moved = np.array([row["difference"] for row in own])
        flips = sum(row["flipped"] for row in own)
        share = flips / len(own)
        ends = binomtest(flips, len(own)).proportion_ci(method="wilson")
        maps = np.array([row["map"] for row in own if row["map"] is not None], float)
        found: dict[str, Any] = {"change": change}
        found["status"] = "red" if ends.low > MANY else "amber" if share > MANY else "green"
        found |= {"n": len(own), "skipped": cases - len(own), "median": float(np.median(moved))}
        found |= {"median_absolute": float(np.median(abs(moved))), "absolute_95": float(np.percentile(abs(moved), 95))}
        found |= {"flips": flips, "flip_share": share, "flip_low": float(ends.low), "flip_high": float(ends.high)}
        found["map_correlation"] = float(np.median(maps)) if len(maps) else None
        found["map_correlation_5"] = float(np.percentile(maps, 5)) if len(maps) else None
        summary.append(found)
    return summary


def write(
    output: Path,
    report: Path,
    table: Sequence[Mapping],
    summary: Sequence[Mapping],
    bundle: str,
    patches: bool,
    *,
    trained: int = 0,
) -> None:
    """Write the tables, the picture and the section; ``trained``: patients of them whom the model was trained on."""
    from shared.reports.sections import worst, write_section
    from shared.reports.tables import interval_text, number_text

    write_csv(output / "robustness_cases.csv", table)
    write_csv(output / "robustness.csv", summary, columns=COLUMNS)
    status = worst([row["status"] for row in summary])
    write_json(output / "robustness.json", {"bundle": bundle, "status": status, "changes": list(summary)})
    robustness_figure(table, output / "robustness.png")
    unit = "patches" if patches else "patients"
    cases = len({row["case"] for row in table})
    turned = [row["change"] for row in summary if row["status"] != "green"]
    text = [f"{cases} {unit}, each predicted as it is and after small changes that leave the tissue the same."]
    if trained:
        text.append(f"The model was trained on {trained} of these patients: others may be less stable.")
    what = f"of more than {MANY:.0%} of the {unit}"
    text.append(
        f"Calls at 0.5 turn over {what}: {', '.join(turned)}." if turned else f"No change turns over calls {what}."
    )
    if skipped := [row["change"] for row in summary if row["skipped"]]:
        text.append(f"Not all could be changed (their mask would nearly vanish): {', '.join(skipped)}.")
    if all(row["map_correlation"] is None for row in summary):
        text.append("Maps are not compared: this answer has none that inference leaves at no cost.")
    rows = []
    for row in summary:
        flips = {"value": row["flip_share"], "low": row["flip_low"], "high": row["flip_high"]}
        numbers = [f"{row['median']:+.3f}", number_text(row["median_absolute"]), number_text(row["absolute_95"])]
        maps = [number_text(row[key]) for key in ("map_correlation", "map_correlation_5")]
        rows.append([row["status"], row["change"], row["n"], *numbers, row["flips"], interval_text(flips), *maps])
    header = ["", "change", unit, "median", "median, absolute", "95 % below", "flips", "share", "maps, median"]
    write_section(
        report,
        "30_robustness",
        title="Robustness",
        status=status,
        text=text,
        tables=[{"caption": "Change of the probability", "header": [*header, "maps, 5 %"], "rows": rows}],
        pictures=[
            (
                (output / "robustness.png").resolve(),
                "Change of the probability of every case, for every change of the images",
            )
        ],
    )


def robustness_figure(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the changes of the probability as one box per change."""
    from shared.visualize.style import NEGATIVE, new_figure, plain, save

    changes = list(dict.fromkeys(row["change"] for row in table))
    figure = new_figure(6.4, 1.0 + 0.3 * len(changes))
    axes = figure.subplots()
    values = [[row["difference"] for row in table if row["change"] == change] for change in changes]
    axes.boxplot(
        values, orientation="horizontal", tick_labels=changes, whis=(2.5, 97.5), medianprops={"color": NEGATIVE}
    )
    axes.axvline(0, color="0.7", linewidth=1, linestyle=":")
    axes.invert_yaxis()
    limit = 1.05 * max(0.05, *(abs(value) for own in values for value in own))
    axes.set_xlim(-limit, limit)
    axes.set_xlabel("change of the probability (box: quartiles, whiskers: 95 %)")
    plain(axes)
    save(figure, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    args = arguments(argv)
    from shared.apps.experiments.processes import resumable
    from shared.reports.tables import markdown_table, number_text

    with resumable("robustness"):
        summary = robustness(args)
    rows = [
        [row["status"], row["change"], str(row["n"]), f"{row['median']:+.3f}", number_text(row["absolute_95"]),
         str(row["flips"]), number_text(row["map_correlation"])]
        for row in summary
    ]  # fmt: skip
    print(markdown_table(["", "change", "n", "median", "95 % below", "flips", "maps"], rows))
