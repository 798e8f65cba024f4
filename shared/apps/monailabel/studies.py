"""Make a studies folder for MONAI Label of a prepared folder: a link to every image, masks left out, in one level.

MONAI Label lists what lies in its studies folder itself, not below, and writes its own files there. The links lead
back to the prepared folder, whose datalist.json tells which images belong to one patient. An image's id is the
patient's name and the file's: P061/t1.nii.gz of patient P061 becomes P061_t1.
"""

from __future__ import annotations

from pathlib import Path

from shared.apps.preparation.files import place_file, run_script, script_parser
from shared.data.checks import read_datalist
from shared.errors import DataError


def image_id(patient: str, file: str) -> str:
    """File name in the studies folder.

    Example:
        >>> image_id("P061", "P061/t1.nii.gz"), image_id("P061", "scans/P061_t1.nii")
        ('P061_t1.nii.gz', 'P061_t1.nii')
    """
    name = Path(file).name
    return name if name.startswith(patient) else f"{patient}_{name}"


def make_studies(prepared: Path, output: Path, split: str) -> list[str]:
    """Link the images of a split's cases; returns the names in the studies folder."""
    cases = read_datalist(prepared).get(split) or []
    links: dict[str, Path] = {}
    problems = [] if cases else [f"{prepared}: split {split!r} of its datalist is empty; choose another --split"]
    for case in cases:
        images = case["image"] if isinstance(case["image"], list) else [case["image"]]
        for file in images:
            name, source = image_id(case["patient"], file), (prepared / file).resolve()
            if not source.is_file():
                problems.append(f"{case['patient']}: there is no file {source}; prepare the data again")
            elif links.setdefault(name, source) != source:
                problems.append(f"{case['patient']}: {links[name]} and {source} would both be {name}; rename one")
    if problems:
        raise DataError(problems)
    output.mkdir(parents=True, exist_ok=True)
    for name, source in links.items():
        place_file(source, output / name, link=True)
    return list(links)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and make the folder."""
    parser = script_parser(__doc__)
    parser.add_argument("prepared", type=Path, help="folder with a datalist.json")
    parser.add_argument("output", type=Path, help="the studies folder")
    parser.add_argument("--split", choices=("testing", "training"), default="testing", help="whose images (testing)")
    options = parser.parse_args(arguments)

    def make() -> None:
        names = make_studies(options.prepared, options.output, options.split)
        print(f"{options.output}: links to {len(names)} images, {names[0]} and so on")

    return run_script(make)
