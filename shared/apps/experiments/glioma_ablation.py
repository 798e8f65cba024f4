"""What each part of glioma_idh is worth: cross-validate it without the part, on the same folds, and write tables.

    encoders    each encoder alone, each pair
    modules     without the encoders' own classifiers, without epochs of their own, without the surface's distances,
                without the contrastive loss, with more of it, with it alone, without attention, with the paper's
                literal attention; with the preset `paper`, which is so already, several are the whole again
    graphs      the five population graphs of the paper's Table 1, none, and a random one of equal density
    backbones   MONAI's 3D-ResNet34 and 3D-DenseNet121 on the image alone (the paper's benchmarks)

A table names whose answer it scores: that of the network's own classifier, trained with its encoders (the paper's
"+ MLP", and a backbone's own answer), or that of a population graph trained on the network's embeddings.

Every run is a scripts/cross_validate.py of its own; runs and folds that are done are not done again. Stages that do not
depend on what is left out are taken from the whole network's run of the same fold.

    python scripts/glioma_ablation.py --dataset_dir DATA --config cpu --groups encoders graphs --output eval/ablation
    python scripts/glioma_ablation.py --dataset_dir PHANTOMS --signs --config cpu --output eval/signs

--signs is for phantoms whose signs are independent (make_phantom_brains.py --shape 0.5 --intensity 0.5 --tracts 0.5):
each encoder alone and all together are trained on each sign as the label, to see which finds which. With --explain the
answers of the encoder that a sign was planted for are explained, and scored where it was planted: such a network is
known to read it, one that was given all signs may answer by the others.

    python scripts/glioma_ablation.py --dataset_dir PHANTOMS --signs --explain --config cpu --output eval/signs
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.apps import ROOT
from shared.apps.experiments.options import add_options
from shared.apps.experiments.processes import RUN_BUNDLE
from shared.apps.phantoms.brains import SIGNS
from shared.errors import DataError
from shared.io import write_csv, write_json, write_text
from shared.reports.glioma_controls import UNIMODAL

WHOLE = "whole"
NETWORK, GRAPH = ("nodes", "edges"), ("nodes", "edges", "contrast")  # stages that a run may take from the whole's


def _without(*names: str) -> dict:
    return {f"network_def#{name}": "none" for name in names}


# by group: what a run is called, what it overrides, the overlay it merges
SINGLE, PAIRS = ("image", "points", "brain"), ("image + points", "image + brain", "points + brain")
SUPERVISED = {"network_def#objective": "multitask"}  # where there is no contrast, whatever the preset's objective
ENCODERS: dict[str, dict[str, Any]] = {
    **{name: {"network_def#encoders": [name], **SUPERVISED} for name in SINGLE},
    **{name: {"network_def#encoders": name.split(" + ")} for name in PAIRS},
}
MODULES: dict[str, dict[str, Any]] = {
    "without classifiers of the single encoders": {"network_def#unimodal": False},
    "without epochs of the single encoders": {"contrast#unimodal_share": 0},
    "surface without each point's distance to the centroid": {"network_def#points#radial": False},
    "without the contrastive loss": {"contrast#contrastive_weight": 0, **SUPERVISED},
    "contrastive loss as heavy as the cross-entropy": {"contrast#contrastive_weight": 1},
    "contrastive loss alone (Algorithm 1)": {
        "network_def#objective": "contrastive",
        "contrast#contrastive_weight": 1,
    },
    "without attention to tracts": _without("edge_attention"),
    "without attention to regions": _without("brain#node_attention"),
    "without any attention": _without("edge_attention", "brain#node_attention"),
    "attention as printed": {"network_def#edge_attention": "literal", "network_def#brain#node_attention": "literal"},
}
GRAPHS: dict[str, dict[str, Any]] = {
    **{
        f"graph {name}": {"network_def#graph": name}
        for name in ("tumour-brain", "brain-tumour", "both-brain", "both-tumour", "both-both")
    },
    "trained without edges": _without("population#graph"),
    "trained on random edges": {"network_def#population#graph": "random"},
}
BACKBONES = {"3D-ResNet34": "resnet34", "3D-DenseNet121": "densenet121"}
# columns of predictions.csv
OWN = "multitask"
ANSWERS = {
    OWN: "own classifier",
    f"{UNIMODAL}image": "the image's classifier",
    f"{UNIMODAL}points": "the surface's classifier",
    f"{UNIMODAL}brain": "the brain's classifier",
    "probability": "population graph",
}
GROUPS = ("encoders", "modules", "graphs", "backbones")
EXPLAINED, DONE = "explained", "done.json"
# by sign its encoder, the part of the explanation that is scored, what was planted there, and which scores are shown
SCORED = {
    "shape": ("points", "surface", "spicules", ("average_precision", "energy_ratio", "pointing")),
    "intensity": ("image", "volume", "mismatch", ("energy_ratio_in_tumour", "pointing")),
    "tracts": ("brain", "tracts", "infiltrated tracts", ("average_precision", "precision_planted", "precision_kept")),
}


def variants(group: str) -> dict[str, tuple[dict, list[str], tuple[str, ...]]]:
    """By name the overrides, the overlays, and the stages taken from the whole network's run."""
    if group == "backbones":
        return {name: ({"backbone": network}, ["backbone"], ()) for name, network in BACKBONES.items()}
    found = {"encoders": ENCODERS, "modules": MODULES, "graphs": GRAPHS}[group]
    stages: dict[str, tuple[str, ...]] = dict.fromkeys(found, GRAPH if group == "graphs" else NETWORK)
    # without the brain encoder there is nothing of these stages to take
    stages |= {name: () for name in found if "brain" not in found[name].get("network_def#encoders", ["brain"])}
    return {name: (values, [], stages[name]) for name, values in found.items()}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bundle", default="glioma_idh", help="a name under bundles/, or the folder of an unpacked bundle")
    add("--dataset_dir", required=True, help="folder with datalist.json")
    add("--groups", nargs="+", choices=GROUPS, default=["encoders"], help="what is left out (default: encoders)")
    add("--signs", action="store_true", help="phantoms: single encoders and all together, on each sign as the label")
    add("--explain", action="store_true", help="with --signs: explain each sign's own encoder, and score it")
    add("--output", type=Path, required=True, help="folder of the runs and tables")
    add_options(parser)
    args = parser.parse_args(argv)
    if args.explain and not args.signs:
        parser.error("--explain goes with --signs")
    return args


def cross_validation(args: argparse.Namespace, name: str, folder: Path, datalist: Path | None) -> list[str]:
    """The command of one run; ``name`` is ``WHOLE`` or a variant's."""
    overrides, overlays, stages = {}, [], ()
    if name != WHOLE:
        overrides, overlays, stages = next(found[name] for found in map(variants, GROUPS) if name in found)
    command = [sys.executable, str(ROOT / "scripts" / "cross_validate.py"), args.bundle]
    command += ["--dataset_dir", args.dataset_dir, "--output", str(folder / _slug(name)), "--title", name]
    command += ["--datalist_file", str(datalist)] if datalist else []
    command += ["--folds", str(args.folds), "--seeds", *map(str, args.seeds), "--jobs", str(args.jobs)]
    command += ["--threads", str(args.threads)] if args.threads else []
    command += ["--gpus", ",".join(args.gpus)] if args.gpus else []
    command += ["--bootstrap", str(args.bootstrap)]
    command += ["--config", *args.config, *overlays] if args.config or overlays else []
    settings = [*args.set, *(f"{key}={value}" for key, value in overrides.items())]
    command += ["--set", *settings] if settings else []
    return command + (["--reuse", str(folder / WHOLE), "--reuse-stages", *stages] if stages else [])


def run(args: argparse.Namespace, names: Sequence[str], folder: Path, datalist: Path | None = None) -> None:
    """Run the whole network and these variants, each if it is not done."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in dict.fromkeys([WHOLE, *names]):
        command = cross_validation(args, name, folder, datalist)
        print(f"{folder.name}: {name}", flush=True)
        # its progress bar stays on the terminal
        code = logged(command, folder / f"{_slug(name)}.log", env={**os.environ, "PYTHONUNBUFFERED": "1"})
        if code:
            raise DataError(f"the run {name!r} of {folder} ended with status {code}: see above")


def logged(command: Sequence[str], path: Path, *, cwd: Path = ROOT, **options: Any) -> int:
    """Run a command, itself and its output in a log; return its status. A Ctrl-C reaches it as well."""
    with path.open("w", encoding="utf-8") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        return subprocess.run(command, cwd=cwd, stdout=log, **options).returncode


def write_table(path: Path, text: str) -> None:
    """Write and show a table."""
    write_text(path, text)
    print(f"\n{text}\n{path}")


def group_table(output: Path, group: str, *, bootstrap: int) -> str:
    """The runs of a group: the population graph's answers and, where networks differ, their own classifiers'."""
    from shared.apps.experiments.comparison import comparison_table, read_column

    names = [WHOLE, *variants(group)]
    folders = {name: output / _slug(name) for name in names}
    titles = [f"{name}: population graph" for name in names]
    text = "**Answers of the population graph on each network's embeddings**\n\n"
    text += comparison_table([*folders.values()], titles=titles, bootstrap=bootstrap)
    if group == "graphs":  # on the same embeddings, beside the same classifier
        return text
    own = [name for name in names if read_column(folders[name], OWN) is not None]
    text += "\n**Answers of each network's own classifier, an MLP trained with the encoders**\n\n"
    if own:
        titles = [f"{name}: own classifier" for name in own]
        text += comparison_table([folders[name] for name in own], titles=titles, column=OWN, bootstrap=bootstrap)
    if missing := [name for name in names if name not in own]:
        text += f"\nNot trained: the own classifier of {'; '.join(missing)}.\n"
    return text


def sign_table(output: Path, names: Sequence[str], *, bootstrap: int) -> str:
    """AUC of each encoder for each sign: of its own classifier, and of the population graph on its embeddings."""
    from shared.apps.experiments.comparison import read_column
    from shared.metrics.repeated import summarise
    from shared.reports.tables import interval_text, markdown_table

    rows, lines = [], []
    for name in names:
        for column, title in ANSWERS.items():
            line = [name, title]
            for sign in SIGNS:
                found = read_column(output / sign / _slug(name), column)
                if found is None:  # one encoder alone has no further classifier
                    line.append("")
                    continue
                summary = summarise(found, names=("AUC",), bootstrap=bootstrap)
                auc = summary["metrics"]["AUC"]
                line.append(interval_text(auc))
                rows.append(
                    {"encoder": name, "by": title, "sign": sign, **{k: auc[k] for k in ("value", "low", "high")}}
                )
            lines += [line] if any(line[2:]) else []
    write_csv(output / "signs.csv", rows)
    note = (
        "AUC over all patients, each predicted by the fold that left the patient out, mean over the seeds, with 95 % "
        "bootstrap interval over patients. Own classifier: trained with the encoder, on the contrastive part; the "
        "image's, surface's and brain's: of each encoder within the whole. "
        "Population graph: trained on the other part's embeddings."
    )
    return f"{markdown_table(['encoder', 'AUC by', *SIGNS], lines)}\n\n{note}\n"


def explain(args: argparse.Namespace, sign: str) -> None:
    """Explain the sign's own encoder for the patients that each fold leaves out, where that is not done."""
    from shared.apps.experiments.processes import bundle_arguments, run_environment
    from shared.bundle.configs import find_config, merge_configs, parse_overrides

    bundle = Path(args.bundle)
    configs = [find_config(bundle, name) for name in ("train", *args.config, "explain")]
    encoder = SCORED[sign][0]
    settings = [*args.set, *(f"{key}={value}" for key, value in ENCODERS[encoder].items())]
    overrides = parse_overrides(settings, merge_configs(configs))
    cwd = ROOT if bundle.is_relative_to(ROOT / "bundles") else bundle
    for seed, number in itertools.product(args.seeds, range(args.folds)):
        folder = args.output / sign / encoder / f"seed{seed}" / f"fold{number}"
        mark = explanation_mark(folder, configs, overrides)
        if (folder / EXPLAINED / "localisation.json").is_file() and mark == _read(folder / EXPLAINED / DONE):
            continue
        (folder / EXPLAINED / DONE).unlink(missing_ok=True)
        print(f"{sign}: explanations of seed {seed}, fold {number}", flush=True)
        values = {"dataset_dir": args.dataset_dir, "datalist_file": folder.parent / "datalist.json", "fold": number}
        values |= {"seed": seed, "ckpt_dir": folder / "models", "output_dir": folder / EXPLAINED}
        values |= {"split": "validation", "max_patients": 1, **overrides}
        command = [*RUN_BUNDLE, *bundle_arguments(configs, values, cwd=cwd, run_id="explain")]
        path = folder / f"{EXPLAINED}.log"
        environment = run_environment(args.threads or os.cpu_count() or 1)
        if code := logged(command, path, cwd=cwd, env=environment, stderr=subprocess.STDOUT):
            raise DataError(f"explaining seed {seed}, fold {number} of {sign} ended with status {code}: see {path}")
        write_json(folder / EXPLAINED / DONE, mark)


def explanation_mark(folder: Path, configs: Sequence[Path], overrides: Mapping[str, str]) -> dict[str, Any]:
    """What a fold's explanations depend on: its model, its data as its experiment recorded them, the configs."""
    from shared.bundle.configs import config_digest
    from shared.digests import sha256

    model, experiment = folder / "models" / "model.pt", _read(folder.parents[1] / "experiment.json") or {}
    return {
        "model": sha256(model) if model.is_file() else None,
        "data": (experiment.get("settings") or {}).get("data"),
        "configs": {path.name: config_digest(path) for path in configs},
        "overrides": dict(overrides),
    }


def _read(path: Path) -> Any:
    """Content of a JSON file, None where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def explanation_table(output: Path, *, seeds: Sequence[int], folds: int, bootstrap: int) -> str:
    """Scores of each sign's explanations beside their controls, over the patients of all folds."""
    from shared.explain.glioma.localisation import PARTS, mean_scores
    from shared.reports.tables import interval_text, markdown_table

    sections, rows = [], []
    words = ("patient", "truth", "map")
    for sign, (encoder, part, truth, keys) in SCORED.items():
        scored = []
        for seed, fold in itertools.product(seeds, range(folds)):
            folder = output / sign / encoder / f"seed{seed}" / f"fold{fold}" / EXPLAINED
            with (folder / f"localisation_{part}.csv").open(newline="", encoding="utf-8") as file:
                found = [row for row in csv.DictReader(file) if row["truth"] == truth]
            scored += [{key: value if key in words else float(value) for key, value in row.items()} for row in found]
        content = mean_scores(scored, PARTS[part], bootstrap=bootstrap)
        lines = []
        for name, means in content["maps"].items():
            lines.append([name, *(interval_text(means[key]) for key in keys)])
            rows += [{"sign": sign, "truth": truth, "map": name, "score": k, **v} for k, v in means.items()]
        title = f"{sign}, encoder of the {encoder}: {truth}, {content['patients']} patients"
        table = markdown_table(["map", *(key.replace("_", " ") for key in keys)], lines)
        sections.append(f"**{title}**\n\n{table}")
    write_csv(output / "explanations.csv", rows)
    note = (
        "One encoder, trained on its own sign, explained for patients whom its fold left out and for whom it says that "
        "the sign is there; means over patients with 95 % bootstrap interval."
    )
    return "\n\n".join([*sections, note]) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run all, write the tables."""
    args = arguments(argv)
    args.dataset_dir, args.output = str(Path(args.dataset_dir).resolve()), args.output.resolve()
    from shared.apps.experiments.processes import resumable
    from shared.bundle.configs import find_bundle, find_config

    with resumable("glioma_ablation"):
        # paths are the caller's, the runs' folder is the repository
        args.bundle = str(find_bundle(args.bundle, ROOT).resolve())
        args.config = [str(find_config(Path(args.bundle), name).resolve()) for name in args.config]
        if args.signs:
            datalists = {sign: Path(args.dataset_dir) / f"datalist_{sign}.json" for sign in SIGNS}
            if missing := [str(path) for path in datalists.values() if not path.is_file()]:
                raise DataError(f"{', '.join(missing)}: not there; make phantoms with scripts/make_phantom_brains.py")
            given = {"seeds": args.seeds, "folds": args.folds, "bootstrap": args.bootstrap}
            for sign, datalist in datalists.items():
                run(args, SINGLE, args.output / sign, datalist)
            write_table(args.output / "signs.md", sign_table(args.output, [*SINGLE, WHOLE], bootstrap=args.bootstrap))
            if args.explain:
                for sign in SIGNS:
                    explain(args, sign)
                write_table(args.output / "explanations.md", explanation_table(args.output, **given))
            return
        for group in args.groups:
            names = list(variants(group))
            run(args, names, args.output)
            write_table(args.output / f"{group}.md", group_table(args.output, group, bootstrap=args.bootstrap))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
