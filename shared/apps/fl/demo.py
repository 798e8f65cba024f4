"""Hospitals that may not pool their data: one stage of a bundle trained alone, in a federation, and on pooled data.

Three simulated sites, each with stains or a scanner of its own, and a fourth that is only tested on. A site runs
MONAI's MonaiAlgo; images and labels stay there, weights alone are exchanged and averaged (FedAvg), by NVFlare's
simulator or by a loop in this process. sscl_crc federates its fine-tuning (from a pretraining on patches of none of the
sites), ircl_mvi its stage I (every site then finds its biomarkers and trains stage II by itself). What is done is not
done again.

    python scripts/federated_demo.py sscl_crc --output eval/federated_sscl
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.apps import ROOT
from shared.apps.experiments.options import add_options
from shared.errors import DataError
from shared.io import write_csv, write_json, write_text
from shared.reports.tables import interval_text, markdown_table, number_text

SITES, UNSEEN, PUBLIC = ("north", "south", "east"), "unseen", "public"
CONFIGS = ("train", "cpu", "phantom")
DEFAULTS = {"sscl_crc": {"rounds": 5, "local_epochs": 4}, "ircl_mvi": {"rounds": 4, "local_epochs": 3}}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundle", choices=sorted(DEFAULTS), help="which stage is federated goes with it")
    add("--output", required=True, help="folder of the experiment; its phantom data go there too")
    add("--engine", choices=("nvflare", "plain"), default="nvflare", help="who averages (default: nvflare)")
    add("--rounds", type=int, help="exchanges of weights (default: 5; ircl_mvi: 4)")
    add("--local_epochs", type=int, help="epochs between two exchanges (default: 4; ircl_mvi: 3)")
    add("--patients", type=int, default=24, help="ircl_mvi: patients of a site (default: 24)")
    add("--patches", type=int, default=96, help="sscl_crc: patches of a site (default: 96)")
    add("--test", type=int, default=48, help="patients or patches of the unseen site (default: 48)")
    add("--pretraining_epochs", type=int, default=40, help="sscl_crc: on public patches (default: 40)")
    add("--seed", type=int, default=0, help="of data and training (default: 0)")
    add_options(parser, "--set")
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    for key, value in DEFAULTS[args.bundle].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if min(args.rounds, args.local_epochs, args.patients, args.patches, args.test, args.pretraining_epochs) < 1:
        parser.error("all numbers must be at least 1")
    return args


def make_data(args: argparse.Namespace, data: Path) -> dict[str, str]:
    """Make what is missing of the sites' data; the datalists."""
    from tqdm import tqdm

    from shared.apps.fl.sites import make_site, write_datalists

    patches = args.bundle == "sscl_crc"
    script = ROOT / "scripts" / ("make_phantom_patches.py" if patches else "make_phantom_cohort.py")
    kind, each = ("--patches", args.patches) if patches else ("--patients", args.patients)
    names = (*SITES, UNSEEN, *([PUBLIC] * patches))
    for number, name in enumerate(tqdm(names, desc="sites' data", unit="site")):
        # all that are not tested on have as small a testing section as the scripts make
        test = args.test if name == UNSEEN else 4
        counts = [kind, str(each if name != UNSEEN else 12), f"--test-{kind[2:]}", str(test), "--folds", "2"]
        counts += ["--unlabelled", "4"] if patches else []
        make_site(script, data / name, name, [*counts, "--seed", str(1000 * args.seed + number)])
    lists = write_datalists(data, SITES, UNSEEN)
    if patches:
        lists |= {PUBLIC: str(data / PUBLIC / "datalist.json")}
    return lists


def data_of(lists: dict[str, str], output: Path) -> dict[str, str]:
    """What the sites' and the public patients' files hold."""
    from shared.apps.experiments.data_record import data_record

    found = {}
    for name in sorted({"pooled", PUBLIC} & set(lists)):
        content = json.loads(Path(lists[name]).read_text(encoding="utf-8"))
        cases = [case for part in ("training", "testing", "unlabelled") for case in content.get(part, [])]
        cases = [{**case, "patient": f"{name} {case['patient']}"} for case in cases]
        root = output / "data" / PUBLIC if name == PUBLIC else output / "data"
        found |= data_record(cases, root, output)
    return found


def overridden(args: argparse.Namespace, configs: Sequence[str], bundle: Path) -> dict[str, Any]:
    """The command line's ``--set``, checked and read as Python values where they are such."""
    from shared.bundle.configs import find_config, merge_configs, parse_overrides, python_values

    return python_values(parse_overrides(args.set, merge_configs([find_config(bundle, name) for name in configs])))


def common_settings(args: argparse.Namespace, output: Path, lists: dict[str, str]) -> dict[str, Any]:
    """What the experiments of both bundles are given."""
    given = {key: getattr(args, key) for key in ("rounds", "local_epochs", "engine")}
    places = {"data": output / "data", "output": output}
    return {"configs": CONFIGS, "datalists": lists, "sites": SITES, **places, **given}


def fine_tuning(args: argparse.Namespace, output: Path, lists: dict[str, str], overrides: dict[str, Any]) -> list[dict]:
    """sscl_crc: arms of the fine-tuning, tested on the unseen site's patches."""
    from shared.apps.fl.experiment import ONE_SITE, Experiment, tested

    common = {"seed": args.seed, "train#samples_per_epoch": 1, "pretrain#epochs": args.pretraining_epochs, **overrides}
    public = output / "pretraining"
    experiment = Experiment(
        bundle=ROOT / "bundles/sscl_crc",
        stage="train",
        overrides={**common, "train#pretrained": str(public / "pretrain.pt")},
        epochs_keys=("finetune_epochs",),
        start_encoder=public / "pretrain.pt",
        **common_settings(args, output, lists),
    )
    experiment.run("pretrain_run", PUBLIC, public, resume=True, dataset_dir=str(output / "data" / PUBLIC))
    rows, arms = [], experiment.arms()
    for arm, folder in arms.items():
        if not (folder / "metrics.json").is_file():
            experiment.run("evaluate", SITES[0], folder, "evaluate")
        rows.append({"arm": arm, "AUC": tested(folder)["AUC"], "folder": folder})
    same = experiment.difference(arms[SITES[0]], arms[ONE_SITE])
    return [*rows, {"arm": "one site", "difference": same}]


def stage_one(args: argparse.Namespace, output: Path, lists: dict[str, str], overrides: dict[str, Any]) -> list[dict]:
    """ircl_mvi: arms of stage I; then biomarkers and stage II at each site, tested on the unseen site's patients."""
    import shutil

    from shared.apps.fl.experiment import ONE_SITE, Experiment, reconstruction_error, tested
    from shared.checkpoint import load_weights

    experiment = Experiment(
        bundle=ROOT / "bundles/ircl_mvi",
        stage="pretrain",
        overrides={"seed": args.seed, **overrides},
        epochs_keys=("pretrain#epochs", "pretrain#max_epochs"),
        **common_settings(args, output, lists),
    )
    arms, rows = experiment.arms(), []
    parser = experiment.parser(SITES[0], output / ".unseen", split="testing")
    images = parser.get_parsed_content("validate#dataset").stack("image")
    network = parser.get_parsed_content("pretrain#network")
    for arm, folder in arms.items():
        load_weights(network, experiment.weights(folder), folder)
        row: dict[str, Any] = {"arm": arm, "error": reconstruction_error(network, images), "folder": folder}
        for site in (arm,) if arm in SITES else SITES if arm != ONE_SITE else ():
            own = folder / f"stage_two_{site}"
            if not (own / "metrics.json").is_file():
                own.mkdir(exist_ok=True)
                shutil.copy(folder / "pretrain.pt", own / "pretrain.pt")
                experiment.run("biomarkers_run", site, own)
                experiment.run("train_run", site, own)
                experiment.run("evaluate", site, own, "evaluate", split="testing")
            row.setdefault("AUCs", []).append(tested(own)["AUC"]["value"])
        rows.append(row)
    same = experiment.difference(arms[SITES[0]], arms[ONE_SITE])
    return [*rows, {"arm": "one site", "difference": same}]


def report(args: argparse.Namespace, rows: list[dict], output: Path, command: str) -> str:
    """Write federated.csv and federated.md; its text."""
    from statistics import fmean

    *arms, same = rows
    local = [row for row in arms if row["arm"] in SITES]
    patches = args.bundle == "sscl_crc"
    head = ["training", "AUC at the unseen site"] + ([] if patches else ["reconstruction error there"])
    lines, table = [], []
    for row in [*local, None, *(row for row in arms if row["arm"] in ("federated", "pooled"))]:
        if row is None:
            name, auc = "alone, mean of the three", fmean(_auc(other) for other in local)
            error = None if patches else fmean(other["error"] for other in local)
            text = number_text(auc)
        else:
            name = f"{row['arm']} alone" if row in local else row["arm"]
            auc, error = _auc(row), row.get("error")
            text = interval_text(row["AUC"]) if patches else number_text(auc)
        lines.append([name, text] + ([] if patches else [f"{error:.4f}"]))
        table.append({"training": name, "AUC": auc, "reconstruction_error": error})
    write_csv(output / "federated.csv", table)
    steps = f"{args.rounds} rounds of {args.local_epochs} epochs, averaged by {args.engine}, seed {args.seed}"
    what = f"{args.patients} patients a site; AUC: mean over stage II of each site (alone: its own)"
    what = f"{args.patches} patches a site" if patches else what
    text = (
        f"# {args.bundle}: alone, federated, pooled\n\n`{command}`\n\n{steps}; {what}; {args.test} at the unseen site."
        f"\n\n{markdown_table(head, lines)}\n\nLargest difference between the weights of one site's federation and of "
        f"plain training: {same['difference']:.2g}.\n"
    )
    write_json(output / "federated.json", {"arms": table, "one_site_difference": same["difference"]})
    write_text(output / "federated.md", text)
    return text


def _auc(row: dict) -> float:
    return row["AUC"]["value"] if "AUC" in row else sum(row["AUCs"]) / len(row["AUCs"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run, or go on."""
    args = arguments(argv)
    command = shlex.join(["python", "scripts/federated_demo.py", *args.argv])
    from shared.apps.experiments.folder import write_experiment
    from shared.apps.experiments.processes import resumable

    output = Path(args.output).resolve()
    bundle = ROOT / "bundles" / args.bundle
    settings = {key: value for key, value in vars(args).items() if key not in ("output", "argv")}
    with resumable("federated_demo"):
        if args.engine == "nvflare":
            from importlib.util import find_spec

            if find_spec("nvflare") is None:
                raise DataError("NVFlare is not there: pip install -r requirements-federated.txt, or --engine plain")
        # where there are results, all data are there, too: nothing of another run's is made before it is refused
        lists = make_data(args, output / "data")
        settings["data"] = data_of(lists, output)
        write_experiment(output, title=f"{args.bundle}, federated", command=command, settings=settings)
        overrides = overridden(args, CONFIGS, bundle)
        arms = fine_tuning if args.bundle == "sscl_crc" else stage_one
        print(report(args, arms(args, output, lists, overrides), output, command))
    print(f"Table and models: {output}")
