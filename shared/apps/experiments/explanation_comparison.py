"""Compare explanations of trained models on a cohort: how well each points, what the answer owes to it.

Methods of ircl_mvi: the contributions of an additive answer, the masks of Eq. 10, Grad-CAM, SHAP, LIME and integrated
gradients, beside an untrained network, brightness, a centred box and a random map. Scores: pointing game and energy
over chance (phantoms), deletion and insertion, agreement of the modalities of a slice, repeatability over seeds,
seconds.

    python scripts/compare_explanations.py --dataset_dir data/phantom --checkpoints models/seed0 models/seed1 \\
        --config cpu phantom --output eval/explanations

The first folder's model is explained; further ones, trained with other seeds, say how repeatable the maps are. Writes
explanation_scores.csv, explanation_comparison.json, .md and .png, and per patient the maps (patients/<patient>.npz),
from which the same command goes on where it was stopped.

Methods of sscl_crc: the additive map, Grad-CAM and LayerCAM of the third and fourth stage and integrated gradients,
beside an untrained network, darkness, edge density, a centred Gaussian and a random map. Scores: pointing game, energy
over chance and IoU of the boxes where patches have masks (--set truth=planted: another key of the datalist), deletion
and insertion, seconds; of all patches and by label. Each folder's model explains the validation part of its own fold
(none given: the testing part), and all patches are scored together:

    python scripts/compare_explanations.py --bundle sscl_crc --dataset_dir data/glas --checkpoints models/fold0 \\
        models/fold1 --fold 0 1 --output eval/explanations
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.apps import ROOT
from shared.apps.experiments.explanation_report import comparison_page, draw, write_comparison
from shared.apps.experiments.options import add_options
from shared.apps.experiments.patch_explanations import compare_patches
from shared.errors import DataError
from shared.io import atomic_path

logger = logging.getLogger(__name__)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bundle", default="ircl_mvi", help="a name under bundles/, or the folder of an unpacked bundle")
    add("--dataset_dir", required=True, help="folder with datalist.json")
    add("--datalist_file", default="datalist.json", help="the datalist (default: datalist.json)")
    add(
        "--checkpoints",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="folders of model.pt; the first is explained",
    )
    add(
        "--split",
        choices=("validation", "testing", "training"),
        help="default: validation (patches, no --fold: testing)",
    )
    add(
        "--fold",
        type=int,
        nargs="+",
        default=[-1],
        help="validation is this fold, of sscl_crc one for each of --checkpoints; -1 (default): the testing part",
    )
    add("--output", type=Path, required=True, help="folder for tables, picture and maps")
    add("--methods", nargs="+", metavar="NAME", help="of the table's first column (default: all)")
    add("--max_patients", type=int, help="the first so many (default: all)")
    add("--steps", type=int, default=20, help="of deletion and insertion (default: 20)")
    add("--cell", type=int, default=4, help="side of the cells that are deleted, in pixels (default: 4)")
    add("--samples", type=int, default=500, help="answers that SHAP and LIME ask for, each (default: 500)")
    add("--pieces", type=int, default=24, help="superpixels of an image, about (default: 24)")
    add("--pictures", type=int, default=2, help="patients in the picture (default: 2; 0: none)")
    add("--device", help="cuda or cpu (default: cuda where there is one)")
    add("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    add_options(parser, "--config", "--set", "--bootstrap")
    args = parser.parse_args(argv)
    for name in ("steps", "cell", "samples", "pieces", "bootstrap", "max_patients"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    args.patches = explains_patches(args.bundle)
    if len(args.fold) != (len(args.checkpoints) if args.patches else 1):
        parser.error("--fold takes one fold; with --bundle sscl_crc one for each of --checkpoints")
    if args.split is None:
        args.split = "testing" if args.patches and set(args.fold) == {-1} else "validation"
    return args


def explains_patches(bundle: str) -> bool:
    """Whether a bundle's explanation is one of patches."""
    from shared.bundle.configs import find_bundle, find_config

    found = json.loads(find_config(find_bundle(bundle, ROOT, "explain.json"), "explain").read_text(encoding="utf-8"))
    return "explain_stage" in found and found["explain_stage"]["_target_"].endswith("PatchExplainStage")


def configured(args: argparse.Namespace, checkpoint: Path, fold: int) -> Any:
    """The parsed configs of an explanation of a model."""
    from monai.bundle import ConfigWorkflow

    from shared.bundle.configs import find_bundle, find_config, merge_configs, parse_overrides, python_values

    bundle = find_bundle(args.bundle, ROOT, "explain.json")
    configs = [find_config(bundle, name) for name in ("train", *args.config, "explain")]
    values = python_values(parse_overrides(args.set, merge_configs(configs)))
    values |= {"bundle_root": str(bundle), "dataset_dir": args.dataset_dir, "datalist_file": args.datalist_file}
    values |= {"ckpt_dir": str(checkpoint), "output_dir": str(args.output)}
    values |= {"fold": fold, "split": args.split, "seed": args.seed}
    values |= {"device": f"$torch.device({args.device!r})"} if args.device else {}
    if args.max_patients and not args.patches:
        values["validate#dataset#data"] = f"$getattr(@datalist, @split)[:{args.max_patients}]"
    # a bar for a terminal, silence in a log
    if not args.patches:
        values["validate#dataset#progress"] = sys.stderr.isatty()
    flow = ConfigWorkflow(
        config_file=[str(path) for path in configs],
        meta_file=str(bundle / "configs/metadata.json"),
        logging_file=False,
        workflow_type="train",
        **values,
    )
    flow.initialize()
    return flow.parser


def networks_of(args: argparse.Namespace, parser: Any, cases: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The trained networks, each refused where it was trained on these patients or with other settings."""
    from shared.bundle import trained_network
    from shared.bundle.model import load_model
    from shared.handlers import ModelCheck

    used = parser.get_parsed_content("model_check").used
    given = {"split": args.split, "cohort": parser.get_parsed_content("datalist").name, "dataset_dir": args.dataset_dir}
    network = parser["network_def"]["network"]
    networks = []
    for folder in args.checkpoints:
        ModelCheck(folder, used=used, cases=cases, **given).run()
        given_answer = {"answer": parser.get_parsed_content("answer")}
        networks.append(trained_network(network, folder, parser.get_parsed_content("train_config"), **given_answer))
        load_model(folder / "model.pt", networks[-1])
    return networks


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Explain, score, write; returns what explanation_comparison.json holds."""
    import torch
    from tqdm import tqdm

    from shared.digests import sha256
    from shared.explain.ircl.comparison import ExplanationComparison, inapplicable_methods, mean_method_scores
    from shared.explain.ircl.methods import CONTRIBUTIONS, explanation_methods
    from shared.explain.ircl.stability import biomarker_stability

    parser = configured(args, args.checkpoints[0], args.fold[0])
    sampling = {"samples": args.samples, "pieces": args.pieces, "seed": args.seed}
    methods = explanation_methods(parser.get_parsed_content("mask"), names=args.methods, **sampling)
    datalist, device = parser.get_parsed_content("datalist"), parser.get_parsed_content("device")
    cases = getattr(datalist, args.split)[: args.max_patients]
    if not cases:
        raise DataError(f"{datalist.file}: the part {args.split!r} has no patient to explain; give --split or --fold.")
    networks = networks_of(args, parser, cases)
    dataset = parser.get_parsed_content("validate#dataset")
    left_out = inapplicable_methods(networks[0], methods, dataset[0], device)
    for name, reason in left_out.items():
        logger.warning("%s is left out: %s", name, reason)
    methods = [method for method in methods if method.name not in left_out]
    if not methods:
        raise DataError("No explanation is left: give others with --methods.")
    modalities = datalist.modalities or [f"modality {i}" for i in range(parser.get_parsed_content("num_modalities"))]
    given = {"modalities": modalities, "planted_visible": datalist.planted_visible, "device": device}
    given |= {key: getattr(args, key) for key in ("steps", "cell", "seed")}
    compared = ExplanationComparison(networks, methods, **given)
    settings = {key: getattr(args, key) for key in ("steps", "cell", "samples", "pieces", "seed")}
    settings |= {"models": [sha256(folder / "model.pt") for folder in args.checkpoints], "mask": parser["mask"]}
    settings |= {"methods": [method.name for method in methods], "device": torch.device(device).type}
    rows: list[dict[str, Any]] = []
    for case in tqdm(dataset, desc="Explaining", unit="patient"):
        rows += explained(args.output / "patients", case, compared, settings)
    reference = CONTRIBUTIONS if CONTRIBUTIONS in settings["methods"] else methods[0].name
    means = mean_method_scores(rows, reference=reference, bootstrap=args.bootstrap, seed=args.seed)
    content = {
        "patients": len({row["patient"] for row in rows}),
        "images": len({(row["patient"], row["modality"], row["slice"]) for row in rows if row["modality"]}),
        "checkpoints": len(networks),
        "reference": reference,
        "bootstrap": args.bootstrap,
        "methods": {method.name: {"control": method.control, **means[method.name]} for method in methods},
        "left out": left_out,
        "biomarkers": biomarker_stability(networks, dataset, device),
        "settings": settings,
    }
    write_comparison(args.output, rows, content)
    draw(args.output, dataset, rows, methods, modalities, datalist, patients=args.pictures)
    return content


def explained(folder: Path, case: Mapping[str, Any], compare: Any, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a patient: read where the same was done before, else made and kept with the maps."""
    import numpy as np

    image = np.ascontiguousarray(case["image"])
    mark = json.dumps([dict(settings), hashlib.sha256(image.tobytes()).hexdigest(), case.get("label")], default=str)
    path = folder / f"{case['patient']}.npz"
    try:
        with np.load(path, allow_pickle=False) as known:
            if str(known["mark"]) == mark:
                return json.loads(str(known["rows"]))
    except (OSError, KeyError, ValueError):
        pass
    rows, maps = compare(case)
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary, mark=mark, rows=json.dumps(rows), methods=list(maps), maps=np.stack([*maps.values()])
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the table."""
    args = arguments(argv)
    args.dataset_dir = str(Path(args.dataset_dir).resolve())
    content = compare_patches(args, configured) if args.patches else compare(args)
    print(f"{comparison_page(content)}\n{args.output}")
