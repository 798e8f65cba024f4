"""The controls a network for patches has to beat: a forest on colour and texture, linear probes of frozen encoders.

A probe is a logistic regression on standardised features; its penalty is chosen by cross-validation within the patients
it is fitted to. Probes are made of a random encoder, of a pretraining's checkpoint (--checkpoint) and of ImageNet
weights (--imagenet). Nothing is fitted outside the patches that train.

    python scripts/patch_baselines.py --dataset_dir data/sscl_crc --output data/baselines --config cpu --seeds 0 1 2 \\
        --checkpoint models/seed{seed}/pretrain.pt --imagenet models/imagenet_resnet50.pt
    python scripts/patch_baselines.py --dataset_dir data/sscl_crc --output data/baselines_cv --folds 5

The first tests on the testing section and leaves OUTPUT/<method>/seed<k>, as the bundle's evaluation does; the second
cross-validates within the training section, in the folds of scripts/cross_validate.py. `scripts/compare_runs.py` puts
them beside the bundle's results.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.apps import ROOT
from shared.errors import CheckpointError, DataError
from shared.io import write_text


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset_dir", required=True, help="folder with datalist.json")
    add("--datalist_file", default="datalist.json", help="another datalist (default: DATASET_DIR/datalist.json)")
    add("--output", required=True, help="folder; one sub-folder a control")
    add("--split", choices=("testing", "validation"), default="testing", help="what is predicted (default: testing)")
    add("--fold", type=int, default=0, help="of the validation part, where the datalist has no such section")
    add("--folds", type=int, help="instead: cross-validate within the training section, with so many folds")
    add("--seeds", type=int, nargs="+", default=[0], help="of forests, random encoders and inner folds (default: 0)")
    add("--trees", type=int, default=500, help="of each random forest (default: 500)")
    add("--methods", nargs="+", choices=("forest", "random", "pretrained", "imagenet"), help="default: all possible")
    add("--bundle", default="sscl_crc", help="whose train.json gives encoder and sizes (default: sscl_crc)")
    add("--config", nargs="+", default=[], metavar="OVERLAY", help="configs merged over train.json: names or paths")
    add("--settings", help='JSON of the encoder instead, such as \'{"block": "basic", "layers": [1, 1, 1, 1]}\'')
    add("--size", type=int, help="side of the images for the bundle's encoder (default: the config's)")
    add("--stages", type=int, nargs="+", help="stages of the bundle's encoder (default: the config's)")
    add("--checkpoint", help="pretrain.pt; '{seed}' in it is replaced by the seed")
    add("--imagenet", help="ResNet state dict with torchvision's names, see scripts/convert_keras_resnet50.py")
    add("--imagenet_size", type=int, default=224, help="side of the images for it (default: 224)")
    add("--imagenet_stages", type=int, nargs="+", default=[4], help="stages of it (default: 4)")
    add(
        "--views",
        type=int,
        default=1,
        help="flips and rotations, 1 to 8, over which features are averaged (default: 1)",
    )
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--bootstrap", type=int, default=2000, help="replicates of the intervals")
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    if args.trees < 1 or args.bootstrap < 1 or len(set(args.seeds)) != len(args.seeds):
        parser.error("--trees and --bootstrap must be at least 1, and no seed given twice")
    if args.folds is not None and args.folds < 2:
        parser.error("--folds must be at least 2")
    if not 1 <= args.views <= 8:
        parser.error("--views must be 1 to 8")
    wanted = set(args.methods or ())
    if ("pretrained" in wanted and not args.checkpoint) or ("imagenet" in wanted and not args.imagenet):
        parser.error("the probe 'pretrained' needs --checkpoint, 'imagenet' needs --imagenet")
    possible = ["forest", "random", *(["pretrained"] * bool(args.checkpoint)), *(["imagenet"] * bool(args.imagenet))]
    args.methods = [name for name in possible if name in wanted or not wanted]
    return args


def encoder_settings(args: argparse.Namespace) -> tuple[dict[str, Any], int, int | None]:
    """Return the bundle's encoder, the side it sees and the side of its cached images.

    Raises:
        DataError: no such bundle or config, or values in it that are expressions.
    """
    from shared.bundle.configs import find_bundle, find_config, merge_configs

    bundle = find_bundle(args.bundle, ROOT)
    merged = merge_configs([find_config(bundle, name) for name in ("train", *args.config)])
    try:
        settings = json.loads(args.settings) if args.settings else merged["network_def"]["encoder"]
        size, cache_size = args.size or merged["size"], merged["cache_size"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{args.bundle}: the encoder's settings cannot be read ({error!r}): give --settings, --size"
        ) from error
    settings = {key: value for key, value in settings.items() if not key.startswith("_")}
    settings |= {"stages": args.stages} if args.stages else {}
    if '"@' in (text := json.dumps([settings, size, cache_size])) or '"$' in text:
        raise DataError(f"{args.bundle}: the encoder's settings are expressions: give --settings and --size")
    return settings, size, cache_size


class Patches:
    """Entries of a datalist, their pixels, and what is measured of them, cached below a folder."""

    def __init__(self, entries: Sequence[Mapping[str, Any]], args: argparse.Namespace):
        import numpy as np

        from shared.apps.baselines.patch_probes import pixel_digests
        from shared.data import PatchCache
        from shared.reports.predictions import patch_name

        self.entries, self.args, self.folder = list(entries), args, Path(args.output) / "features"
        self.native = PatchCache(self.entries)
        self.digests = pixel_digests(self.native.images)
        self.labels = np.array([entry["label"] for entry in self.entries])
        self.patients = [entry["patient"] for entry in self.entries]
        self.names = [patch_name(entry["image"], args.dataset_dir) for entry in self.entries]

    def measured(self) -> Any:
        """Colour and texture ``[N, D]``."""
        from shared.apps.baselines.patch_probes import measured_features

        return measured_features(self.native.images, self.names, self.folder / "colour_texture.csv")

    def encoded(self, name: str, encoder: Any, key: Mapping[str, Any], size: int, cache_size: int | None = None) -> Any:
        """An encoder's features ``[N, D]``."""
        from shared.apps.baselines.patch_probes import cached_features, frozen_features
        from shared.data import PatchCache

        images = self.native.images
        if cache_size is not None and cache_size != images.shape[-1]:
            images = PatchCache(self.entries, size=cache_size).images
        options = {"size": size, "views": self.args.views}

        def compute(rows: list[int]) -> Any:
            return frozen_features(encoder(), images[rows], **options, name=name)

        return cached_features(
            self.folder / f"{name}.npz", {**key, **options, "cached": cache_size}, self.digests, compute
        )


def methods(args: argparse.Namespace, patches: Patches) -> dict[str, tuple[str, Callable[[int], Any]]]:
    """Return name -> (title, from a seed to the features of all patches)."""
    from shared.apps.baselines.patch_probes import imagenet_encoder, pretrained_encoder, random_encoder
    from shared.digests import sha256

    def digest(path: str | Path) -> str:
        if not Path(path).is_file():
            raise CheckpointError(f"There is no file {path}.")
        return sha256(path)

    found: dict[str, tuple[str, Callable[[int], Any]]] = {}
    if "forest" in args.methods:
        table = patches.measured()
        found["forest"] = ("colour and texture, random forest", lambda seed: table)
    if {"random", "pretrained"} & set(args.methods):
        settings, size, cache_size = encoder_settings(args)

        def untrained(seed: int) -> Any:
            key = {"encoder": settings, "seed": seed}
            return patches.encoded(f"random{seed}", lambda: random_encoder(settings, seed), key, size, cache_size)

        def pretrained(seed: int) -> Any:
            path = args.checkpoint.replace("{seed}", str(seed))
            key = {"encoder": settings, "weights": digest(path)}
            name = f"pretrained{seed}"
            return patches.encoded(name, lambda: pretrained_encoder(path, settings), key, size, cache_size)

        found |= {"random": ("random encoder, linear probe", untrained)} if "random" in args.methods else {}
        if "pretrained" in args.methods:
            found["pretrained"] = ("pretrained encoder, linear probe", pretrained)
    if "imagenet" in args.methods:
        beside = Path(args.imagenet).with_suffix(".json")  # settings that the weights do not show
        key = {"weights": digest(args.imagenet), "stages": args.imagenet_stages}
        key |= {"settings": digest(beside)} if beside.is_file() else {}

        def imagenet(seed: int) -> Any:
            encoder = lambda: imagenet_encoder(args.imagenet, stages=args.imagenet_stages)  # noqa: E731
            return patches.encoded("imagenet", encoder, key, args.imagenet_size)

        found["imagenet"] = ("ImageNet encoder, linear probe", imagenet)
    return found


def predict(name: str, features: Any, patches: Patches, train: Any, test: Any, seed: int, trees: int) -> list[dict]:
    """Fit to the rows ``train``; return image, patient, label, probability of the rows ``test``."""
    from shared.apps.baselines.patch_probes import fit_forest, fit_probe

    if name == "forest":
        model = fit_forest(features[train], patches.labels[train], seed=seed, trees=trees)
    else:
        model = fit_probe(features[train], patches.labels[train], [patches.patients[i] for i in train], seed=seed)
    probability = model.predict_proba(features[test])[:, 1]
    return [
        {
            "image": patches.names[i],
            "patient": patches.patients[i],
            "label": int(patches.labels[i]),
            "probability": float(p),
        }
        for i, p in zip(test, probability, strict=True)
    ]


def recorded(name: str, args: argparse.Namespace, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what must be the same for all results in a control's folder."""
    from shared.apps.experiments.data_record import data_record, named_files

    tested: dict[str, Any] = {"folds": args.folds} if args.folds else {"split": args.split, "fold": args.fold}
    weights = {"pretrained": args.checkpoint, "imagenet": args.imagenet}.get(name)
    given = {"weights": weights, "weights' settings": weights and Path(weights).with_suffix(".json")}
    tested["data"] = data_record(entries, args.dataset_dir, args.output, files=named_files(given, Path()))
    if name == "forest":
        return {**tested, "trees": args.trees}
    if name == "imagenet":
        own = (args.imagenet, args.imagenet_size, args.imagenet_stages)
    else:
        own = (args.checkpoint if name == "pretrained" else None, *encoder_settings(args))
    return {**tested, "encoder": own, "views": args.views}


def run(args: argparse.Namespace) -> None:
    """Run every control, then compare them."""
    import numpy as np
    import torch

    from shared.apps.experiments.comparison import comparison_table
    from shared.apps.experiments.folder import write_experiment, write_results
    from shared.data import PatchDatalist
    from shared.data.splits import grouped_folds
    from shared.metrics.repeated import RepeatedPredictions
    from shared.reports.predictions import write_predictions

    if args.threads:
        torch.set_num_threads(args.threads)
    args.dataset_dir = Path(args.dataset_dir).resolve()
    output, command = Path(args.output), shlex.join(["python", "scripts/patch_baselines.py", *args.argv])
    fold = args.fold if args.split == "validation" and not args.folds else -1
    parts = PatchDatalist(args.dataset_dir, args.datalist_file, fold=fold)
    held = [] if args.folds else getattr(parts, args.split)
    if not args.folds and not held:
        raise DataError(f"{parts.file}: the {args.split} split is empty, there is nothing to predict")
    training = parts.training + (parts.validation if args.folds else [])
    patches = Patches(training + held, args)
    every, count = np.arange(len(patches.entries)), len(training)
    for name, (title, features) in methods(args, patches).items():
        write_experiment(output / name, title=title, command=command, settings=recorded(name, args, patches.entries))
        rows = []
        for seed in args.seeds:
            table = features(seed)
            if not args.folds:
                found = predict(name, table, patches, every[:count], every[count:], seed, args.trees)
                folder = output / name / f"seed{seed}"
                write_predictions(folder, found, class_names=parts.classes, bootstrap=args.bootstrap)
                continue
            fold_of = grouped_folds(patches.patients, patches.labels.tolist(), args.folds, seed)
            of_row = np.array([fold_of[patient] for patient in patches.patients])
            for k in range(args.folds):
                found = predict(name, table, patches, every[of_row != k], every[of_row == k], seed, args.trees)
                rows += [{"seed": seed, "fold": k, **row} for row in found]
        if args.folds:
            write_results(output / name, RepeatedPredictions.from_rows(rows), bootstrap=args.bootstrap)
    table = comparison_table([output / name for name in args.methods], bootstrap=args.bootstrap)
    write_text(output / "comparison.md", table)
    print(table)
    print(f"Predictions and pictures: {output}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the controls."""
    args = arguments(argv)
    try:
        run(args)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (DataError, CheckpointError) as error:
        raise SystemExit(f"patch_baselines: {error}") from None


if __name__ == "__main__":
    from shared.errors import run_main

    run_main(main)
