"""Make synthetic glioma patients whose genotype shows in three ways: demo data, and the tests' truth.

On the anatomy of nilearn's MNI152 template (without nilearn: of ellipsoids), four sequences at 2 mm, a tumour, and
three signs, each of which agrees with the genotype with a probability of its own, independently of the others:

    shape      wild type: 6-8 spicules (planted map: 1)                      mutant: a smooth ellipsoid
    intensity  wild type: none                                               mutant: T2-FLAIR mismatch (2), a part
                                                                             beside the middle, T2 bright, FLAIR dark
    tracts     wild type: spreads along tracts beyond its box, bright on     mutant: does not
               T2 and FLAIR, FA lowered (4)

Image, point cloud and brain network thus carry one sign each, and an agreement of 0.5 takes one away. Two decoys:
calcifications, as large and as dark on FLAIR as the mismatch, but dark on T2, too, at the end opposite to the mismatch
in half of the tumours (5); and an enhancing rim on T1c (3) in half of either genotype. In half of the tumours without
a mismatch a calcification has its place (6), so that neither sequence alone tells the sign (AUC 0.69 by the volume dark
on FLAIR or on T2). Scanner (brightness, drift, noise) says nothing, nor do volume and place unless --volume-effect and
--location-effect make them: a reader of either is then found out beside a cohort without. --visible weakens the signs.
Age and grade differ between the genotypes by --covariate-effect. The AUC of the best possible reader of each sign, and
of all, follows exactly: manifest.json. Tracts come from --atlas (scripts/build_tract_atlas.py), or are made and written
beside the images as atlas.npz.

Beside datalist.json lie datalist_shape.json, datalist_intensity.json and datalist_tracts.json, whose labels are the
sign itself. With agreements of 0.5 the signs are independent, and these tell which encoder finds which sign.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shared.apps.phantoms import brain_anatomy, brains
from shared.apps.phantoms.brains import PLANTED, SEQUENCES, SIGNS, TRACTS, bayes_auc, draw_patients, paint_patient
from shared.apps.preparation.files import (
    phantom_is_there,
    positive_int,
    run_script,
    save_nifti,
    script_parser,
    seal_phantom,
    write_datalist,
    write_manifest,
)
from shared.data.splits import assign_folds
from shared.digests import sha256
from shared.io import DATALIST, write_csv

CLASSES = ["IDH wild type", "IDH mutant"]
ATLAS = "atlas.npz"


def make_cohort(
    output: Path,
    *,
    patients: int,
    test_patients: int,
    strengths: dict[str, float],
    covariate_effect: float,
    anatomy: str,
    atlas: Path | None,
    tracts: int,
    fa: bool,
    folds: int,
    seed: int,
    jobs: int = 1,
    visible: float = 1.0,
    volume_effect: float = 0.0,
    location_effect: float = 0.0,
) -> dict:
    """Write the cohort into ``output``; the same arguments give the same files. Returns the manifest."""
    import importlib.util

    if anatomy == "auto":
        anatomy = "template" if importlib.util.find_spec("nilearn") else "ellipsoid"
    recipe = {
        "patients": patients,
        "test_patients": test_patients,
        "strengths": strengths,
        "covariate_effect": covariate_effect,
        "visible": visible,
        "volume_effect": volume_effect,
        "location_effect": location_effect,
        "anatomy": anatomy,
        "atlas": sha256(atlas)[:16] if atlas else "made",
        "infiltrated_tracts": tracts,
        "fa": fa,
        "folds": folds,
        "seed": seed,
        "generator": [sha256(path)[:16] for path in (brain_anatomy.__file__, brains.__file__, __file__)],
    }
    if phantom_is_there(output, recipe):
        print(f"{output}: this cohort is there already")
        return {}
    import numpy as np
    from joblib import Parallel, delayed
    from tqdm import tqdm

    from shared.data.brain.atlas import TractAtlas
    from shared.data.brain.mni import MNI_SHAPE, mni_affine

    brain = brain_anatomy.choose_anatomy(anatomy)
    for name in (DATALIST, *(f"datalist_{sign}.json" for sign in SIGNS)):  # none of them beside other images
        (output / name).unlink(missing_ok=True)
    write_manifest(output, phantom={"unfinished": True})
    if atlas is None:
        network = brain_anatomy.phantom_tracts(brain, seed=seed)
        network.save(output / ATLAS)
    else:
        network = TractAtlas.load(atlas)
        network.check_grid(MNI_SHAPE, mni_affine(), what="the phantom's grid")

    rng = np.random.default_rng([seed, 0])
    rows = []
    for section, count in (("training", patients), ("testing", test_patients)):
        effects = {"volume_effect": volume_effect, "location_effect": location_effect}
        drawn = draw_patients(count, strengths, covariate_effect, rng, **effects)
        rows += [{"section": section, **row} for row in drawn]
    rows = [{"patient": f"G{number:03d}", **row} for number, row in enumerate(rows, 1)]
    paint = delayed(write_patient)
    options = {"tracts": tracts, "visible": visible}
    tasks = [paint(output, number, row, brain, network, options, fa, seed) for number, row in enumerate(rows, 1)]
    # in order: each patient's numbers are drawn from a seed of its own
    made = Parallel(n_jobs=min(jobs, len(rows)), return_as="generator")(tasks)
    cases = []
    for row, (case, told) in zip(
        rows, tqdm(made, desc="phantom patients", unit="patient", total=len(rows)), strict=True
    ):
        row |= told
        cases.append(case)
    write_csv(output / "signs.csv", rows)
    write_manifest(
        output,
        phantom=recipe,
        planted_codes=PLANTED,
        anatomy=brain.name,
        atlas=network.summary(),
        auc_best_reader={**{sign: bayes_auc({sign: strengths[sign]}) for sign in SIGNS}, "all": bayes_auc(strengths)},
        auc_drawn={
            section: drawn_aucs([r for r in rows if r["section"] == section]) for section in ("training", "testing")
        },
    )
    sections = {"training": assign_folds(cases[:patients], folds, seed) if folds else cases[:patients]}
    sections["testing"] = cases[patients:]
    about: dict = {"name": "phantom gliomas", "modalities": SEQUENCES, "planted_codes": PLANTED}
    for sign in SIGNS:
        shown = {row["patient"]: row[sign] for row in rows}
        relabelled: dict = {
            part: [{**case, "label": shown[case["patient"]]} for case in listed] for part, listed in sections.items()
        }
        classes = [f"{sign} as in wild type", f"{sign} as in mutant"]
        write_datalist(output, file=f"datalist_{sign}.json", classes=classes, **about, **relabelled)
    # the last: where it is there, everything is
    write_datalist(output, classes=CLASSES, **about, **sections)
    return seal_phantom(output)


def write_patient(
    output: Path, number: int, row: dict, brain: Any, network: Any, options: dict, fa: bool, seed: int
) -> tuple[dict, dict]:
    """Paint the patient that is ``number`` in the cohort and write its files; its case, and what its row says more."""
    import numpy as np

    from shared.data.brain.mni import mni_affine

    name = row["patient"]
    painted = paint_patient(row, brain, network, np.random.default_rng([seed, number]), **options)
    volumes = {sequence.lower(): array for sequence, array in painted["images"].items()}
    volumes |= {"mask": painted["mask"], "planted": painted["planted"]} | ({"fa": painted["fa"]} if fa else {})
    for kind, array in volumes.items():
        save_nifti(
            output / name / f"{kind}.nii.gz",
            array,
            mni_affine(),
            description="synthetic phantom, not a patient",
            slope=0.004 if kind == "fa" else None,
        )
    case = {
        "patient": name,
        "image": [f"{name}/{sequence.lower()}.nii.gz" for sequence in SEQUENCES],
        "mask": f"{name}/mask.nii.gz",
        "planted": f"{name}/planted.nii.gz",
        **({"fa": f"{name}/fa.nii.gz"} if fa else {}),
        "label": row["label"],
        "covariates": {"age": float(row["age"]), "grade": float(row["grade"])},
    }
    return case, {"tracts_infiltrated": " ".join(map(str, painted["tracts"])), "centre_mm": painted["centre_mm"]}


def drawn_aucs(rows: list[dict]) -> dict[str, float]:
    """AUC of each sign, of size and of the covariates in the patients as drawn; high is mutant."""
    from sklearn.metrics import roc_auc_score

    labels = [row["label"] for row in rows]
    if len(set(labels)) < 2:
        return {}
    signs = {"age": -1, "grade": -1, "diameter_mm": 1, "anterior": 1, "enhancing": 1} | dict.fromkeys(SIGNS, 1)
    there = {key: sign for key, sign in signs.items() if key in rows[0]}
    found = {key: roc_auc_score(labels, [sign * row[key] for row in rows]) for key, sign in there.items()}
    found["all signs"] = roc_auc_score(labels, [sum(row[sign] for sign in SIGNS) for row in rows])
    return {key: round(float(value), 3) for key, value in found.items()}


def report(manifest: dict, output: Path) -> None:
    """Print what was made and how hard it is."""
    if manifest:
        recipe = manifest["phantom"]
        print(f"{output}: {recipe['patients']} + {recipe['test_patients']} patients on {manifest['anatomy']}")
        print(f"AUC of the best reader: {manifest['auc_best_reader']}")
        print(f"AUC in the patients drawn: {manifest['auc_drawn']}")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and make the cohort."""
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="new or empty folder, or one this script made")
    add("--patients", type=positive_int, default=120, help="for training and cross-validation (120)")
    add("--test-patients", type=int, default=40, help="in the testing section (40)")
    for sign in SIGNS:
        add(f"--{sign}", type=float, default=0.9, help=f"probability that {sign} agrees with the genotype (0.9)")
    add("--covariate-effect", type=float, default=0.8, help="of genotype on age and grade, standard deviations (0.8)")
    add("--visible", type=float, default=1.0, help="how strongly signs are drawn, above 0 and up to 1 (1)")
    add("--volume-effect", type=float, default=0.0, help="of genotype on size, SDs; above 0: wild types larger (0)")
    add("--location-effect", type=float, default=0.0, help="on the place, SDs; above 0: mutants in front (0)")
    add(
        "--anatomy",
        choices=("auto", "template", "ellipsoid"),
        default="auto",
        help="auto: template if nilearn is there",
    )
    add("--atlas", type=Path, help="tract atlas (.npz) on the MNI152 2 mm grid; else one is made")
    infiltrated = f"per patient who has them ({TRACTS})"
    add("--infiltrated-tracts", type=positive_int, default=TRACTS, dest="tracts_count", help=infiltrated)
    add("--fa", action="store_true", help="write FA maps, too")
    add("--folds", type=int, default=5, help="stratified folds of the training patients (5)")
    add("--seed", type=int, default=0, help="of everything drawn (0)")
    add("--jobs", type=positive_int, default=os.cpu_count() or 1, help="patients at a time (as many as processors)")
    options = vars(parser.parse_args(arguments))
    options["strengths"] = {sign: options.pop(sign) for sign in SIGNS}
    options["tracts"] = options.pop("tracts_count")
    if not all(0.5 <= value <= 1 for value in options["strengths"].values()):
        parser.error("--shape, --intensity and --tracts must lie between 0.5 (says nothing) and 1")
    if not 0 < options["visible"] <= 1:
        parser.error("--visible must be above 0 and at most 1")
    if options["test_patients"] < 0 or options["seed"] < 0:
        parser.error("--test-patients and --seed must be at least 0")
    return run_script(lambda: report(make_cohort(**options), options["output"]))
