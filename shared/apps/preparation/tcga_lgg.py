"""Turn the published TCGA-LGG segmentation set (Buda et al. 2019, TIFF slices) into NIfTI and a datalist.

SOURCE is the publisher's folder: `kaggle_3m`, or the folder that holds it, with

    kaggle_3m/<patient>/<patient>_<slice>.tif        256 x 256 x 3: pre-contrast, FLAIR, post-contrast
    kaggle_3m/<patient>/<patient>_<slice>_mask.tif   the tumour

LABELS is a CSV with one row per patient: `patient`, `idh_mutant` (0 or 1) and, where known, `age`.

Per patient the slices of largest tumour area are kept, in slice order, as pre.nii.gz, flair.nii.gz, post.nii.gz and
mask.nii.gz. The TIFFs say nothing of their geometry: pixels are written as 1 mm and slices as 5 mm apart, which is
nominal. Where a patient lacks a sequence the publisher put a copy of FLAIR in its place; they are named and kept.
"""

from __future__ import annotations

import re
from pathlib import Path

from shared.apps.preparation.cell_numbers import read_numbers
from shared.apps.preparation.files import (
    begin,
    run_script,
    save_nifti,
    script_parser,
    write_datalist,
    write_manifest,
)
from shared.apps.preparation.label_words import Words, zero_or_one
from shared.apps.preparation.labels import read_labels
from shared.data.clutter import is_clutter
from shared.data.names import clean, look_alikes
from shared.data.splits import assign_folds
from shared.data.tables import read_table, rows_by_patient
from shared.digests import sha256
from shared.errors import DataError

CHANNELS = {"pre": "T1 pre-contrast", "flair": "FLAIR", "post": "T1 post-contrast"}
CLASSES = ("IDH wild type", "IDH mutant")
SLICE_MM = 5.0
NAME = re.compile(r"^(?P<patient>.+)_(?P<slice>\d+)(?P<mask>_mask)?\.tiff?$", re.IGNORECASE)


def find_patients(source: Path) -> dict[str, Path]:
    """Folders of the patients, by name."""
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; give the publisher's folder `kaggle_3m` or the one that holds it")
    root = source / "kaggle_3m" if (source / "kaggle_3m").is_dir() else source
    there = (path for path in sorted(root.iterdir()) if path.is_dir() and not is_clutter(path.name))
    folders = {clean(path.name): path for path in there if any(path.glob("*_mask.tif*"))}
    if not folders:
        raise DataError(
            f"{root}: no patient folder with *_mask.tif slices in it; give the folder `kaggle_3m` or its parent"
        )
    return folders


def list_slices(folder: Path) -> tuple[dict[int, tuple[Path, Path]], list[str]]:
    """Image and mask file by slice number, and what is wrong with the folder."""
    images: dict[int, Path] = {}
    masks: dict[int, Path] = {}
    problems = []
    for path in sorted(folder.iterdir()):
        match = NAME.match(path.name)
        if match is None or is_clutter(path.name):
            continue
        if clean(match["patient"]) != clean(folder.name):
            problems.append(f"{folder.name}: {path.name} belongs to another patient; move it")
            continue
        (masks if match["mask"] else images)[int(match["slice"])] = path
    problems += [f"{folder.name}: slice {number} has no mask" for number in sorted(set(images) - set(masks))]
    problems += [f"{folder.name}: mask of slice {number} has no image" for number in sorted(set(masks) - set(images))]
    return {number: (images[number], masks[number]) for number in sorted(set(images) & set(masks))}, problems


def read_tiff(path: Path):
    """Pixels of a TIFF, or None and what is wrong with it."""
    from tifffile import imread

    try:
        image = imread(path)
    except Exception as error:  # tifffile raises many kinds
        return None, f"{path.name} is not a readable TIFF ({error}); download it again"
    if image.size == 0:
        return None, f"{path.name} is not a readable TIFF (no pixels); download it again"
    return image, None


def read_patient(folder: Path, count: int) -> tuple[dict | None, list[str]]:
    """The ``count`` slices of largest tumour area of one patient.

    Returns:
        ``volumes`` (name to uint8 ``[X, Y, slices]``), ``slices`` (their numbers), ``files``, ``copied`` (sequences
        equal to FLAIR), or None; and the problems found.
    """
    import numpy as np

    slices, problems = list_slices(folder)
    areas, masks = {}, {}
    for number, (_, path) in slices.items():
        mask, problem = read_tiff(path)
        if problem:
            problems.append(f"{folder.name}: {problem}")
            continue
        if mask.ndim != 2:
            problems.append(f"{folder.name}: {path.name} must be a 2D mask, its shape is {mask.shape}")
            continue
        masks[number] = mask > 0
        areas[number] = int(masks[number].sum())
    with_tumour = [number for number, area in areas.items() if area > 0]
    if len(with_tumour) < count and not problems:
        problems.append(
            f"{folder.name}: has {len(with_tumour)} slices with tumour, {count} are needed; "
            "use --slices with a smaller number or leave the patient out of the folder"
        )
    if problems:
        return None, problems
    # Largest area first, the lower slice number where areas are equal.
    chosen = sorted(sorted(with_tumour, key=lambda number: (-areas[number], number))[:count])
    images = []
    for number in chosen:
        path = slices[number][0]
        image, problem = read_tiff(path)
        if problem:
            problems.append(f"{folder.name}: {problem}")
            continue
        if image.ndim != 3 or image.shape[2] != len(CHANNELS) or image.shape[:2] != masks[number].shape:
            problems.append(
                f"{folder.name}: {path.name} must be rows x columns x 3 like its mask {masks[number].shape}, "
                f"its shape is {image.shape}"
            )
            continue
        if image.dtype != np.uint8:
            problems.append(f"{folder.name}: {path.name} must hold bytes as published, it holds {image.dtype}")
        images.append(image)
    if not problems and len({image.shape for image in images}) > 1:
        problems.append(f"{folder.name}: slices differ in size: {sorted({image.shape for image in images})}")
    if problems:
        return None, problems
    # Rows run from front to back, columns from the patient's right to left: [row, column] to [x, y].
    stack = np.stack(images, -1).transpose(1, 0, 3, 2)
    volumes = {name: np.ascontiguousarray(stack[..., row]) for row, name in enumerate(CHANNELS)}
    copied = [name for name in ("pre", "post") if np.array_equal(volumes[name], volumes["flair"])]
    volumes["mask"] = np.ascontiguousarray(np.stack([masks[number] for number in chosen], -1).transpose(1, 0, 2))
    volumes["mask"] = volumes["mask"].astype(np.uint8)
    files = [path for number in chosen for path in slices[number]]
    return {"volumes": volumes, "slices": chosen, "files": files, "copied": copied}, []


def read_label_table(labels: Path) -> tuple[dict[str, dict], list[str]]:
    """Label and covariates by patient, and what is wrong with the table; no key ``label`` where the cell is empty."""
    content = read_table(labels, ["patient", "idh_mutant"])
    rows, problems = rows_by_patient(content, "patient")
    status = {patient: row["idh_mutant"] for patient, row in rows.items()}
    found = read_labels(status, "idh_mutant", words=Words(zero_or_one, "idh_mutant must be 0 or 1, got {!r}"))
    ages, odd = read_numbers(
        {patient: row.get("age", "") for patient, row in rows.items()}, delimiter=content.delimiter
    )
    problems += [*found.problems, *(f"{patient}: age {problem}" for patient, problem in odd.items())]
    table: dict[str, dict] = {name: {} if name in found.unknown else {"label": found.of.get(name)} for name in rows}
    for patient, age in ages.items():
        if 0 < age < 130:
            table[patient]["covariates"] = {"age": age}
        else:
            problems.append(f"{patient}: age must lie between 0 and 130, got {rows[patient]['age']!r}")
    return table, problems


def prepare(
    source: Path,
    labels: Path,
    output: Path,
    *,
    slices: int = 3,
    folds: int = 5,
    seed: int = 0,
    heldout_csv: Path | None = None,
    skip_missing: bool = False,
) -> None:
    """Write NIfTI files, manifest.json and, last, datalist.json into ``output``.

    Raises:
        DataError: with every problem of the source and the table; nothing is written then.
    """
    import numpy as np
    from tqdm import tqdm

    folders = find_patients(source)
    table, problems = read_label_table(labels)
    heldout = {row["patient"] for row in read_table(heldout_csv, ["patient"])} if heldout_csv else set()
    strange, lost = [n for n in folders if n not in table], [n for n in table if n not in folders]
    hints = look_alikes(strange, lost) | look_alikes(lost, strange)
    missing = [f"{name}: has images and no row in {labels}{hints[name]}" for name in strange]
    missing += [f"{name}: is in {labels} and has no folder in {source}{hints[name]}" for name in lost]
    missing += [f"{n}: idh_mutant is empty in {labels}" for n in folders if n in table and "label" not in table[n]]
    stray = sorted(heldout - set(table))
    hints = look_alikes(stray, table)
    problems += [f"{name}: is listed in {heldout_csv} and not in {labels}{hints[name]}" for name in stray]
    if missing and not skip_missing:
        problems += [*missing, "--skip-missing leaves such patients out"]
    names = [name for name in folders if "label" in table.get(name, {})]

    patients = {}
    for name in tqdm(names, desc="reading", unit="patient"):
        patient, found = read_patient(folders[name], slices)
        problems += found
        if patient:
            patients[name] = patient
    if problems:
        raise DataError(problems)
    cases = {
        name: {
            "patient": name,
            "image": [f"{name}/{channel}.nii.gz" for channel in CHANNELS],
            "mask": f"{name}/mask.nii.gz",
            **table[name],
        }
        for name in names
    }
    training = assign_folds([cases[name] for name in names if name not in heldout], folds, seed)

    begin(output)
    affine = np.diag([-1.0, -1.0, SLICE_MM, 1.0])
    sources = {labels.name: sha256(labels)}
    for name in tqdm(names, desc="writing", unit="patient"):
        columns, rows = patients[name]["volumes"]["mask"].shape[:2]
        affine[:2, 3] = (columns - 1) / 2, (rows - 1) / 2
        for kind, volume in patients[name]["volumes"].items():
            description = f"TCGA-LGG {kind}; nominal 1 mm pixels, {SLICE_MM:g} mm slices"
            save_nifti(output / name / f"{kind}.nii.gz", volume, affine, description=description)
        sources |= {f"{name}/{path.name}": sha256(path) for path in patients[name]["files"]}
    copied = {name: patients[name]["copied"] for name in names if patients[name]["copied"]}
    no_age = [name for name in names if "covariates" not in table[name]]
    write_manifest(
        output,
        sources=sources,
        geometry=f"nominal: 1 mm pixels, slices {SLICE_MM:g} mm apart; the TIFFs carry none",
        kept_slices={name: patients[name]["slices"] for name in names},
        sequence_is_copy_of_flair=copied,
        without_age=no_age,
        left_out=missing,
    )
    write_datalist(
        output,
        name="TCGA-LGG, IDH status",
        modalities=list(CHANNELS.values()),
        classes=CLASSES,
        training=training,
        testing=[cases[name] for name in names if name in heldout],
    )
    for line in missing:
        print(f"left out: {line}")
    if copied:
        print(f"{len(copied)} patients have a copy of FLAIR in place of a sequence: {', '.join(copied)}")
    if no_age:
        print(f"{len(no_age)} patients have no age: {', '.join(no_age)}")
    positive = sum(case["label"] for case in training)
    print(f"{output}: {len(training)} training patients ({positive} {CLASSES[1]}) in {folds} folds")
    print(f"{output}: {len(names) - len(training)} patients held out in the testing section")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and prepare the data."""
    parser = script_parser(__doc__)
    parser.add_argument("source", type=Path, help="the folder kaggle_3m, or the one that holds it")
    parser.add_argument("labels", type=Path, help="CSV with the columns patient, idh_mutant, age")
    parser.add_argument("--output", type=Path, required=True, help="folder to write, such as data/ircl_mvi")
    parser.add_argument("--slices", type=int, default=3, help="slices of largest tumour area per patient (3)")
    parser.add_argument("--folds", type=int, default=5, help="stratified folds by patient (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the folds (0)")
    parser.add_argument("--heldout-csv", type=Path, help="CSV with a column patient: these go to the testing section")
    parser.add_argument("--skip-missing", action="store_true", help="leave out patients without images or label")
    options = vars(parser.parse_args(arguments))
    if options["slices"] < 1:
        parser.error("--slices must be at least 1")
    return run_script(lambda: prepare(**options))
