"""What can be said of a bundle without running it: its files, metadata, versions, paths."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from shared.bundle.contents import LARGEST, packaged_files, read_metadata
from shared.errors import CheckpointError

_FILES = ("LICENSE", "docs/README.md", "docs/data_license.txt")
_CONFIGS = ("metadata.json", "train.json", "evaluate.json", "inference.json", "logging.conf")
_TEXTS = ("name", "task", "description", "authors", "copyright", "data_source", "data_type", "intended_use")
_TENSOR = ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range")
_TEXT_FILES = {".md", ".txt", ".json", ".conf", ".yml", ".yaml", ".csv", ".py", ""}
# somebody's own folders, wherever they stand in a text
_PERSONAL = re.compile(
    r"(?<![\w.:/\\-])(?:/(?:home|Users|root|work|mnt|media|workspace)/|[A-Za-z]:\\Users\\|~/)[^\s'\"`),]*"
)
_ABSOLUTE = re.compile(r"^(?:/|~|[A-Za-z]:[\\/]|file:)")


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Args:
        bundle: name of the bundle.
        check: what was looked at.
        problems: what is wrong; empty: nothing.
        note: what was found, or why nothing was done.
        skipped: it was not looked at.
    """

    bundle: str
    check: str
    problems: list[str] = field(default_factory=list)
    note: str = ""
    skipped: bool = False

    @property
    def status(self) -> str:
        """``ok``, ``FAILED`` or ``skipped``."""
        return "FAILED" if self.problems else "skipped" if self.skipped else "ok"


def check_files(bundle: Path) -> Result:
    """Licence, pages and configs are there and not empty, and the configs are JSON."""
    wanted = [*_FILES, *(f"configs/{name}" for name in _CONFIGS)]
    problems = [f"{name} is missing or empty" for name in wanted if not _filled(bundle / name)]
    if _filled(bundle / "LICENSE") and "License" not in (bundle / "LICENSE").read_text(encoding="utf-8"):
        problems.append("LICENSE does not look like a licence")
    configs = sorted(bundle.glob("configs/*.json"))
    for path in configs:
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            problems.append(f"{path.name} is no JSON: {error}")
    return Result(bundle.name, "files, licence", problems, f"{len(configs)} configs")


def check_metadata(bundle: Path) -> Result:
    """What whoever uses the bundle looks for is said, and every tensor of the network is described."""
    metadata = read_metadata(bundle)
    problems = [f"{name} must be a text" for name in _TEXTS if not str(metadata.get(name) or "").strip()]
    metrics = metadata.get("eval_metrics")
    if not isinstance(metrics, dict) or not all(isinstance(value, (int, float)) for value in metrics.values()):
        problems.append("eval_metrics must hold measured numbers, or be empty")
    if not metadata.get("references"):
        problems.append("references are missing")
    formats = metadata.get("network_data_format", {})
    for side in ("inputs", "outputs"):
        tensors = formats.get(side) or {}
        if not tensors:
            problems.append(f"network_data_format has no {side}")
        for name, tensor in tensors.items():
            lacking = [key for key in _TENSOR if not isinstance(tensor, dict) or key not in tensor]
            problems += [f"{side} {name!r} lacks {', '.join(lacking)}"] if lacking else []
    if "pred" not in (formats.get("outputs") or {}):
        problems.append("outputs must have 'pred', what the network returns")
    measured = f"{len(metrics)} measured figures" if metrics else "no figures claimed"
    return Result(bundle.name, "metadata complete", problems, measured)


def check_schema(bundle: Path, schema: Mapping[str, Any] | None) -> Result:
    """The metadata against MONAI's schema; None: not at hand."""
    if schema is None:
        return Result(bundle.name, "metadata schema", note="no schema at hand: --schema FILE", skipped=True)
    try:
        validators = import_module("jsonschema.validators")
    except ImportError:
        note = "jsonschema is not here: pip install -r requirements-dev.txt"
        return Result(bundle.name, "metadata schema", note=note, skipped=True)
    validator = validators.validator_for(schema)(schema)
    errors = sorted(validator.iter_errors(read_metadata(bundle)), key=lambda error: list(map(str, error.path)))
    return Result(
        bundle.name,
        "metadata schema",
        [f"{'#'.join(map(str, error.path)) or 'metadata'}: {error.message[:200]}" for error in errors],
    )


def check_version(bundle: Path) -> Result:
    """The version is one of numbers, and the changelog says what is in it."""
    metadata = read_metadata(bundle)
    version, problems = str(metadata.get("version", "")), []
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        problems.append(f"version must read like 0.1.0, got {version!r}")
    if version not in (metadata.get("changelog") or {}):
        problems.append(f"the changelog says nothing of version {version}")
    return Result(bundle.name, "version in changelog", problems, version)


def check_requirements(bundle: Path, root: Path) -> Result:
    """Every version that the metadata pins is the one of ``requirements*.txt`` (the bundle's own, else ``root``'s)."""
    metadata, pins = read_metadata(bundle), {}
    files = [bundle / "requirements.txt"] if (bundle / "requirements.txt").is_file() else []
    for path in files or sorted(root.glob("requirements*.txt")):
        pins |= read_pins(path)
    wanted = pinned_packages(metadata)
    problems = [
        f"{name}: {version} in the metadata, {pins.get(name, 'nothing')} in the requirements"
        for name, version in wanted.items()
        if pins.get(name) != version
    ]
    return Result(bundle.name, "required packages", problems, f"{len(wanted)} pinned")


def pinned_packages(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Packages that the metadata asks for, with MONAI, torch and numpy.

    Example:
        >>> pinned_packages({"monai_version": "1.6.1", "required_packages_version": {"fire": "0.7.1"}})
        {'monai': '1.6.1', 'fire': '0.7.1'}
    """
    core = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    named = {name: metadata[key] for name, key in core.items() if key in metadata}
    return named | dict(metadata.get("required_packages_version") or {})


def read_pins(path: Path) -> dict[str, str]:
    """``name==version`` lines of a requirements file."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==", 1) for line in lines if "==" in line)


def check_paths(bundle: Path) -> Result:
    """No absolute path in a config, no path of somebody's own folders anywhere."""
    problems = []
    files = packaged_files(bundle)
    for name, path in files.items():
        if path.suffix not in _TEXT_FILES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        # the pattern above is no path
        found = [] if name.endswith("bundle/checks.py") else _PERSONAL.findall(text)
        problems += [f"{name}: personal path {match}" for match in dict.fromkeys(found)]
        if path.suffix == ".json":
            problems += [f"{name}{place}: absolute path {value!r}" for place, value in _absolute(json.loads(text))]
    return Result(bundle.name, "no absolute paths", problems, f"{len(files)} files")


def check_sizes(bundle: Path) -> Result:
    """No file over 25 MB, but for a model, which packaging then lists in ``large_files.yml``."""
    sizes = {name: path.stat().st_size for name, path in packaged_files(bundle).items()}
    large = {name: size for name, size in sizes.items() if size > LARGEST}
    problems = [f"{name} has {size / 2**20:.0f} MB" for name, size in large.items() if not name.startswith("models/")]
    note = f"{sum(sizes.values()) / 2**20:.1f} MB in all"
    models = [name for name in large if name.startswith("models/")]
    note += f"; {', '.join(models)} by large_files.yml" if models else ""
    return Result(bundle.name, "no file over 25 MB", problems, note)


def check_model(bundle: Path) -> Result:
    """A trained model is whole: its settings and atlas are those of its training, and nothing in it tells a name."""
    path, name = bundle / "models/model.pt", "trained model"
    if not path.is_file():
        return Result(bundle.name, name, note="none")
    from shared.bundle.record import MODEL_FILE, check_weights, read_model
    from shared.checkpoint import load_checkpoint

    problems, content = [], read_model(path.parent)
    try:
        state = load_checkpoint(path)
        check_weights(path, state)
        if any(str(key).rpartition(".")[2] == "seen" for key in state):
            problems.append(
                f"{path} holds hashes of patients' names (it was trained with an older version): train again"
            )
        if "atlas" in content.get("record", {}):
            from shared.bundle.model import trained_atlas

            trained_atlas(path.parent)
    except CheckpointError as error:
        problems.append(str(error))
    if not content:
        problems.append(f"{path.parent / MODEL_FILE} is missing or damaged: without it the model cannot be used")
    return Result(bundle.name, name, problems, "with its record" if "record" in content else "without a record")


def cheap_checks(bundle: Path, *, root: Path, schema: Mapping[str, Any] | None = None) -> Iterator[Result]:
    """All of these checks, one after another."""
    yield check_files(bundle)
    yield check_metadata(bundle)
    yield check_schema(bundle, schema)
    yield check_version(bundle)
    yield check_requirements(bundle, root)
    yield check_paths(bundle)
    yield check_sizes(bundle)
    yield check_model(bundle)


def _filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _absolute(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Absolute paths of a config: plain values, and constants of expressions that are not joined to a folder."""
    if isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _absolute(part, f"{place}#{key}")
    elif isinstance(value, str) and value.startswith("$"):
        try:
            tree = ast.parse(re.sub(r"@(?=\w)", "", value[1:]).replace("#", "_").replace("::", "_"))
        except SyntaxError:
            return
        joined = {
            id(node.right) for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
        }
        for node in ast.walk(tree):
            constant = node.value if isinstance(node, ast.Constant) and id(node) not in joined else None
            if isinstance(constant, str) and _ABSOLUTE.match(constant) and len(constant) > 1:
                yield place, constant
    elif isinstance(value, str) and _ABSOLUTE.match(value):
        yield place, value
