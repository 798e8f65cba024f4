"""Cross-validate the population graph on a table of features, beside what it has to beat, in the same folds.

The controls: the same network without edges and with random edges of equal density, the paper's GAT, logistic
regression (plain, and tuned on features compressed as the graph's), SVM, MLP, covariates and grade alone, and features
with covariates. UCSF-PDGM's own two files are read without further options:

    python scripts/population_graph.py --features radiomic_features_T1gad_bias.csv \\
        --metadata UCSF-PDGM-metadata_v2.csv --output eval/population --folds 5 --seeds 0 1 2

``--external`` tests other patients, of a prepared cohort: every method sees first-order features without a unit, which
are measured alike in both cohorts, and is fitted to all patients of the table, for the test. OUTPUT/external has the
comparison there, with calibration.

Every method leaves a folder in OUTPUT, which cross_validate.py --report reads too; comparison.md, comparison.csv,
differences.csv and roc.png put them side by side, over all patients and within grade. What is done is not done again.
"""

from __future__ import annotations

import logging
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.apps.preparation.files import positive_int, run_script, script_parser

if TYPE_CHECKING:
    from shared.apps.baselines.population import Cohort, Method
    from shared.apps.experiments.folds import Fold


def arguments(argv: Sequence[str] | None) -> Namespace:
    """Read the command line."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--features", required=True, help="CSV: a row a patient, a column a feature")
    add("--metadata", required=True, help="CSV with label, covariates and grade of each patient")
    add("--output", required=True, help="folder; one sub-folder a method")
    add("--folds", type=int, default=5)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each splits anew (default: 0 1 2)")
    add("--methods", nargs="+", help="some of them (default: all)")
    add("--id-column", default="ID", help="in both tables (default: ID)")
    add("--label-column", default="IDH", help="IDH status, wild type or mutated (default: IDH)")
    add("--age-column", default="Age at MRI", help="'' where there is none (default: 'Age at MRI')")
    add("--sex-column", default="Sex", help="'' where there is none (default: Sex)")
    add("--grade-column", default="WHO CNS Grade", help="'' where there is none (default: 'WHO CNS Grade')")
    add("--covariates", nargs="*", default=["age"], help="joined to the features: age, sex (default: age)")
    add("--exclude", nargs="*", default=["diagnostics_"], help="features that begin so are left out")
    add("--grades", type=int, nargs="+", help="only patients of these grades (default: all)")
    add("--external", metavar="DATASET_DIR", help="a prepared cohort to be tested, with datalist.json")
    add("--external-image", type=int, default=0, help="which of its images is the table's, from 0 (default: 0)")
    add("--external-slices", type=positive_int, default=3, help="its slices of largest tumour (default: 3)")
    add("--tumour-prefix", help="of the features that are the tumour's u^T: adds the five graphs of Table 1")
    add("--brain-prefix", help="of the features that are the brain network's u^B")
    add("--epochs", type=positive_int, default=200, help="of the graph's training (default: 200)")
    add("--threads", type=positive_int, default=1, help="CPU threads (default: 1)")
    add("--bootstrap", type=positive_int, default=2000, help="draws of the intervals (default: 2000)")
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    if args.folds < 2 or len(set(args.seeds)) != len(args.seeds):
        parser.error("--folds must be at least 2, and no seed given twice")
    if bool(args.tumour_prefix) != bool(args.brain_prefix):
        parser.error("--tumour-prefix and --brain-prefix go together")
    if (args.tumour_prefix and args.external) or args.external_image < 0:
        parser.error("--external has features of its own, without --tumour-prefix; --external-image is 0 or more")
    columns = {"age": args.age_column, "sex": args.sex_column}
    args.columns = {name: column for name, column in columns.items() if column}
    if unknown := [name for name in args.covariates if name not in args.columns]:
        parser.error(f"no column is given for the covariates {', '.join(unknown)}")
    return args


def run(args: Namespace) -> None:
    """Read the tables, run every method that is not done, write the tables."""
    import numpy as np
    import torch
    from tqdm import tqdm

    from shared.apps.baselines.population import Cohort, population_methods
    from shared.apps.baselines.population_report import external_lines, write_population_report
    from shared.apps.baselines.population_table import joined, of_grades, read_population
    from shared.apps.baselines.unit_free import measured, published
    from shared.apps.experiments.folder import write_experiment, write_results
    from shared.apps.experiments.folds import Fold
    from shared.data.splits import stratified_folds
    from shared.errors import DataError
    from shared.metrics.repeated import RepeatedPredictions
    from shared.networks.glioma.population_edges import correlation_edges, graph_report
    from shared.networks.glioma.population_graph import PopulationGraphClassifier

    torch.set_num_threads(args.threads)
    table = read_population(
        args.features,
        args.metadata,
        id_column=args.id_column,
        label_column=args.label_column,
        covariates=args.columns,
        grade_column=args.grade_column or None,
        exclude=args.exclude,
    )
    table = of_grades(table, args.grades) if args.grades else table
    external = None
    if args.external:
        external = measured(Path(args.external), args.external_image, args.covariates, args.external_slices)
        table = published(table)
    graded = bool(args.grade_column) and bool(np.isfinite(table.grade).any())
    split = bool(args.tumour_prefix)
    options = {"grade": graded, "variant": "both-brain" if split else None, "variants": split}
    methods = population_methods(tuple(args.covariates), **options)
    if unknown := [name for name in args.methods or () if name not in methods]:
        raise DataError(f"no method {', '.join(unknown)}; there are {', '.join(methods)}")
    methods = {name: method for name, method in methods.items() if name in (args.methods or methods)}
    cohort, patients = Cohort(table, args.tumour_prefix, args.brain_prefix), list(table.patients)
    truth = dict(zip(patients, table.labels.tolist(), strict=True))
    folds = {seed: stratified_folds(patients, table.labels.tolist(), args.folds, seed) for seed in args.seeds}
    output, command = Path(args.output).resolve(), shlex.join(["python", "scripts/population_graph.py", *args.argv])
    digest = table.digest()
    tested = None if external is None else external.digest()
    done, tables, outside = 0, {}, {}
    total = len(methods) * len(args.seeds) * args.folds
    with tqdm(total=total, desc="population graph", unit="fold", dynamic_ncols=True) as bar:
        for name, method in methods.items():
            settings = {"folds": args.folds, "tables": digest, **method.settings()}
            settings |= {"epochs": args.epochs} if method.model == "gat" else {}
            settings |= {"prefixes": [args.tumour_prefix, args.brain_prefix]} if method.variant else {}
            write_experiment(output / name, title=method.title, command=command, settings=settings)
            rows = []
            for seed in args.seeds:
                number = np.array([folds[seed][patient] for patient in patients])
                for k in range(args.folds):
                    bar.set_postfix_str(f"{name} seed {seed}")
                    train, test = np.flatnonzero(number != k), np.flatnonzero(number == k)
                    fold = Fold(output / name, seed, k, {patients[i]: truth[patients[i]] for i in test})
                    done += predicted(fold, cohort, method, train, test, args.epochs)
                    rows += fold.rows()
                    bar.update()
            tables[name] = RepeatedPredictions.from_rows(rows)
            write_results(output / name, tables[name], bootstrap=args.bootstrap)
            if external is None or "grade" in method.covariates:
                continue
            folder, both = output / "external" / name, Cohort(joined(table, external, args.covariates))
            write_experiment(folder, title=method.title, command=command, settings={**settings, "external": tested})
            count, others = len(patients), dict(zip(external.patients, external.labels.tolist(), strict=True))
            rows, every = [], np.arange(len(both.table.patients))
            for seed in args.seeds:
                fold = Fold(folder, seed, 0, others)
                predicted(fold, both, method, every[:count], every[count:], args.epochs)
                rows += fold.rows()
            outside[name] = RepeatedPredictions.from_rows(rows)
            write_results(folder, outside[name], bootstrap=args.bootstrap)
    whole = PopulationGraphClassifier(table.features.shape[1]).double()
    whole.set_bank(torch.from_numpy(table.features))
    graph = whole.report(torch.from_numpy(table.labels))
    x = torch.from_numpy((table.features - table.features.mean(0)) / table.features.std(0))
    paper = graph_report(correlation_edges(x)[1], torch.from_numpy(table.labels))
    titles = {name: method.title for name, method in methods.items()}
    grade = dict(zip(patients, table.grade.tolist(), strict=True))
    heading = [
        f"Graph of the whole cohort, all {x.shape[1]} features, theta 0.5: {graph}.",
        f"The paper's, its features standardised only: {paper}.",
        "",
    ]
    options = {"heading": heading, "command": command, "bootstrap": args.bootstrap}
    print(write_population_report(output, tables, titles, grade, **options))
    if external is not None and outside:
        unknown = dict.fromkeys(external.patients, np.nan)
        options["heading"] = external_lines(tables, outside, titles, bootstrap=args.bootstrap)
        print(write_population_report(output / "external", outside, titles, unknown, **options))
    print(f"{done} folds were run, {total - done} were there. Tables, pictures and predictions: {output}")


def predicted(fold: Fold, cohort: Cohort, method: Method, train: Any, test: Any, epochs: int) -> int:
    """Write the predictions of a fold, where they are not there; return how many were written, 0 or 1."""
    from shared.apps.baselines.population import predict_fold
    from shared.io import write_csv

    if fold.done():
        return 0
    found = predict_fold(cohort, method, train, test, seed=fold.seed, training={"epochs": epochs})
    names = [cohort.table.patients[i] for i in test]
    rows = [{"patient": n, "label": fold.truth[n], "probability": float(p)} for n, p in zip(names, found, strict=True)]
    write_csv(fold.folder / "predictions.csv", rows)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Cross-validate."""
    args = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_script(lambda: run(args))
