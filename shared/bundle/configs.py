"""A bundle's JSON configs without MONAI: found by name, merged as MONAI merges them, overrides checked."""

from __future__ import annotations

import ast
import copy
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import DataError
from shared.io import read_json_object


def find_bundle(name: str, root: Path, file: str = "train.json") -> Path:
    """Return the folder of a bundle, by its name under ``root/bundles`` or its path; ``configs`` must hold ``file``.

    Raises:
        DataError: no such bundle, with those that are.
    """
    for bundle in (root / "bundles" / name, Path(name)):
        if (bundle / "configs" / file).is_file():
            return bundle.resolve()
    known = ", ".join(bundle.name for bundle in all_bundles(root, file)) or "none"
    raise DataError(f"no bundle {name!r}: no configs/{file} in it, nor in bundles/{name} (there: {known})")


def all_bundles(root: Path, file: str = "train.json") -> list[Path]:
    """Folders under ``root/bundles`` whose ``configs`` hold ``file``, sorted."""
    return sorted(path.parents[1] for path in root.glob(f"bundles/*/configs/{file}"))


def find_config(bundle: Path, name: str) -> Path:
    """Return the config ``name`` of a bundle: a path, or a file of its ``configs`` folder with or without ``.json``.

    Raises:
        DataError: nothing there, with the names that are.
    """
    folder = bundle / "configs"
    for path in (Path(name), folder / name, folder / f"{name}.json"):
        if path.is_file():
            return path.resolve()
    known = ", ".join(sorted(path.name for path in folder.glob("*.json"))) or "none"
    raise DataError(f"config {name!r} is neither a file nor in {folder} (there: {known})")


def merge_configs(paths: Sequence[Path]) -> dict[str, Any]:
    """Merge configs in order: later ones replace top-level keys, ``a#b`` reaches inside, ``+a`` adds to a dict or list.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.json").write_text('{"net": {"width": 64}, "epochs": 80}')
        >>> _ = (folder / "b.json").write_text('{"net#width": 16, "epochs": 12}')
        >>> merge_configs([folder / "a.json", folder / "b.json"])
        {'net': {'width': 16}, 'epochs': 12}
    """
    merged: dict[str, Any] = {}
    for path in paths:
        for key, value in read_config(path).items():
            name = key.removeprefix("+")
            *parents, last = split_key(name)
            place: Any = merged
            for part in parents:
                place = _step(place, part)
                if place is None:
                    raise DataError(f"{path}: {key!r} reaches into {part!r}, which the configs before it do not have")
            if key.startswith("+") and isinstance(_step(place, last), dict):
                place[last].update(value)
            elif key.startswith("+") and isinstance(_step(place, last), list):
                place[last].extend(value)
            else:
                place[int(last) if isinstance(place, list) else last] = value
    return merged


def read_config(path: Path) -> dict[str, Any]:
    """Read one JSON config; anything but an object of keys is a :class:`DataError`."""
    return read_json_object(path, "config")


def config_digest(path: Path) -> str:
    """Return a digest of what a config does: spacing and descriptions do not count.

    Example:
        >>> import tempfile
        >>> one, two = (Path(tempfile.mkdtemp()) / "c.json" for _ in range(2))
        >>> _ = one.write_text('{"epochs": 80}'), two.write_text('{ "epochs": 80, "_desc_": "section 4.1" }')
        >>> config_digest(one) == config_digest(two)
        True
    """
    text = json.dumps(_without_comments(read_config(path)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_overrides(pairs: Iterable[str], config: Mapping[str, Any], *, reserved: Iterable[str] = ()) -> dict[str, str]:
    """Check ``key=value`` overrides against the merged config: MONAI takes a misspelt key without a word.

    Args:
        pairs: each ``key=value``; ``key`` may reach inside by ``a#b``.
        config: the merged config.
        reserved: keys that the caller sets.

    Raises:
        DataError: every pair that has no ``=``, a reserved key, or a key that the config lacks (with the nearest one).

    Example:
        >>> parse_overrides(["epochs=3", "net#width=8"], {"epochs": 80, "net": {"width": 64}})
        {'epochs': '3', 'net#width': '8'}
    """
    overrides, problems = {}, []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        *parents, last = split_key(key)
        place: Any = config
        for part in parents:
            place = _step(place, part)
        # A component may be given an argument that its config leaves at the default; a new top-level key does nothing.
        known = isinstance(place, dict) if parents else key in config
        if not equals or not key:
            problems.append(f"--set {pair!r} must be key=value")
        elif split_key(key)[0] in set(reserved):
            problems.append(f"--set {pair!r}: {key} is set by this script")
        elif not known and not (isinstance(place, list) and _step(place, last) is not None):
            near = difflib.get_close_matches(split_key(key)[0], config, n=1)
            problems.append(f"--set {pair!r}: the config has no {key}" + (f"; is {near[0]} meant?" if near else ""))
        overrides[key] = "False" if value == "false" else value  # the command line takes "false" for a text
    if problems:
        raise DataError(problems)
    return overrides


def python_values(overrides: Mapping[str, str]) -> dict[str, Any]:
    """Overrides as MONAI's command line reads them: Python values where they are such, else text.

    Example:
        >>> python_values({"epochs": "3", "channels": "[8, 16]", "resume": "true", "roi#roi": "box"})
        {'epochs': 3, 'channels': [8, 16], 'resume': True, 'roi#roi': 'box'}
    """
    found: dict[str, Any] = {}
    for key, text in overrides.items():
        try:
            found[key] = ast.literal_eval({"true": "True", "null": "None"}.get(text, text))
        except (ValueError, SyntaxError):
            found[key] = text
    return found


def with_overrides(config: Mapping[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """A merged config with the overrides of :func:`parse_overrides` in it.

    Example:
        >>> with_overrides({"net": {"width": 64}, "epochs": 80}, {"net#width": "8"})
        {'net': {'width': 8}, 'epochs': 80}
    """
    merged = copy.deepcopy(dict(config))
    for key, value in python_values(overrides).items():
        *parents, last = split_key(key)
        place: Any = merged
        for part in parents:
            place = _step(place, part)
        place[int(last) if isinstance(place, list) else last] = value
    return merged


def split_key(key: str) -> list[str]:
    """Split ``a#b`` or ``a::b`` into its levels."""
    return re.split("::|#", key)


def _step(place: Any, part: str) -> Any:
    """Return what ``part`` names in a dict or list, None where there is no such thing."""
    if isinstance(place, dict):
        return place.get(part)
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return place[int(part)]
    return None


def _without_comments(value: Any) -> Any:
    """Drop ``_desc_`` and ``_meta_`` at every level."""
    if isinstance(value, dict):
        return {k: _without_comments(v) for k, v in value.items() if k not in ("_desc_", "_meta_")}
    return [_without_comments(v) for v in value] if isinstance(value, list) else value
