"""External validation: predictions of other patients beside those of the development.

Both folders hold predictions.csv: of a cross-validation (each patient left out once a seed), of an evaluation or of an
inference with labels, or folders seed<k> with one each. Told are both AUCs and calibrations with their differences, and
what a recalibration changes (of the intercept; of intercept and slope), fitted to half of the external patients.

    python scripts/external_validation.py --development bundles/ircl_mvi/eval/cross_validation/cpu \\
        --external eval/other_hospital --output eval/external
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.apps.experiments.options import add_options
from shared.errors import DataError
from shared.io import write_json, write_text

MEASURES = {
    **{"AUC": "AUC", "BRIER": "Brier score", "intercept": "calibration intercept", "slope": "calibration slope"},
    **{"observed_expected": "O:E", "ICI": "ICI"},
}
HOW = (
    "Brackets: 95 % intervals of {bootstrap} bootstrap replicates, which draw patients of both cohorts independently; "
    "a dash: not bounded. p of the difference of AUCs: {p} (DeLong, two-sided). Difference: external - development."
)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--development", required=True, metavar="FOLDER", help="predictions of the development's patients"
    )
    parser.add_argument("--external", required=True, metavar="FOLDER", help="predictions of other patients")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder for table and picture")
    parser.add_argument("--seed", type=int, default=0, help="of the draws and of the halves (default: 0)")
    add_options(parser, "--bootstrap")
    args = parser.parse_args(argv)
    if args.bootstrap < 1:
        parser.error("--bootstrap must be at least 1")
    return args


def validate(development: str, external: str, output: str, *, bootstrap: int = 2000, seed: int = 0) -> str:
    """Write external.json, external.md and calibration.png (of the external patients) to ``output``; return the page.

    Raises:
        DataError: no predictions, one class only, a patient that is in both folders, or whom the model was trained on.
    """
    from shared.apps.experiments.comparison import read_runs
    from shared.metrics import external_validation
    from shared.visualize import calibration_figure

    near, far = (read_runs(folder, unseen=True) for folder in (development, external))
    if both := sorted(set(near.patients) & set(far.patients)):
        raise DataError(
            f"External patients must not be those of the development; {len(both)} are in both {development} and "
            f"{external}: {', '.join(both[:5])}"
        )
    cohorts = [(table.labels, table.probability, table.groups) for table in (near, far)]
    result = external_validation(*cohorts, bootstrap=bootstrap, seed=seed)
    for name, table in (("development", near), ("external", far)):
        result[name] = {"patients": len(set(table.patients)), **result[name]}
    text = page(result, bootstrap)
    write_json(Path(output) / "external.json", result)
    write_text(Path(output) / "external.md", text)
    unit = "patients" if far.images is None else "patches"
    options: dict[str, Any] = {"groups": far.groups, "bootstrap": bootstrap, "seed": seed, "unit": unit}
    title = "Calibration, external"
    calibration_figure(far.labels, far.probability, Path(output) / "calibration.png", title=title, **options)
    return text


def page(result: Mapping[str, Any], bootstrap: int) -> str:
    """The tables and how they were made."""
    from shared.reports.tables import bounds_text, markdown_table, number_text

    cohorts = {name: result[name] for name in ("development", "external")}
    header = ["", *(f"{name} ({c['patients']} patients)" for name, c in cohorts.items()), "difference"]
    columns = [*cohorts.values(), result["difference"]]
    rows = [[title, *(bounds_text(column[key]) for column in columns)] for key, title in MEASURES.items()]
    p = number_text(result["difference"]["AUC"]["p"])
    lines = ["# External validation", "", markdown_table(header, rows), "", HOW.format(bootstrap=bootstrap, p=p), ""]
    found = result["recalibration"]
    if found is None:
        return "\n".join([*lines, "No recalibration: half of the external patients is of one class.", ""])
    shown = [key for key in MEASURES if key != "AUC"]  # no recalibration changes a rank
    rows = []
    for name, method in found["methods"].items():
        if method is None:
            rows.append([name, *["not to be fitted"] * len(shown), ""])
            continue
        difference = method.get("BRIER_difference")
        change = "" if difference is None else f"{bounds_text(difference)}, p {number_text(difference['p'])}"
        rows.append([name, *(bounds_text(method[key]) for key in shown), change])
    header = ["recalibration", *(MEASURES[key] for key in shown), "Brier score - none"]
    fitted, tested = (f"{found[part]['n']} rows ({found[part]['positives']} positive)" for part in ("fitted", "tested"))
    how = f"Fitted to {fitted}, judged on the other {tested} of the external cohort; patients are in one half."
    return "\n".join([*lines, markdown_table(header, rows), "", how, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Compare."""
    args = arguments(argv)
    try:
        print(validate(args.development, args.external, args.output, bootstrap=args.bootstrap, seed=args.seed))
    except DataError as error:
        raise SystemExit(f"external_validation: {error}") from None
