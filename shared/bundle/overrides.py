"""What was given to a bundle beside its own configs, checked once, whatever the way in: a command, a file, a call.

MONAI takes a misspelt key without a word, and hands a value of the wrong kind on to where it fails, or does not.
Overrides are looked for where they have landed: in the merged configuration, beside the configs of the bundle.
"""

from __future__ import annotations

import builtins
import difflib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.bundle.config_item import ConfigComponent
from monai.bundle.reference_resolver import ReferenceResolver

from shared.bundle.configs import read_config, split_key
from shared.bundle.override_texts import expression_fault, misread, typed_options
from shared.bundle.override_values import COMPUTED, fault_of, show
from shared.errors import DataError

_RENAMED = {"section": "split", "part": "split"}
_MONAI_IDS = {"imports", "initialize", "run", "finalize", "save_execute_config"}


def check_overrides(workflows: Sequence[ConfigWorkflow], arguments: Sequence[str] | None = None) -> None:
    """Refuse overrides that would do nothing or fail later, and read those that are meant well as they are meant.

    A text for a device becomes one, a folder whose name is a number a text again, a tuple the list that is due.

    Args:
        workflows: the one being initialised, first; none: nothing is checked.
        arguments: the command line; None: this process's. It says how a value was typed, where the way in is MONAI's
            command.

    Raises:
        DataError: every key that neither the bundle's configs have nor anything refers to, with the nearest ones; every
            value that is not of its key's kind; an expression or a reference that names nothing.
    """
    if not workflows:
        return
    parser, typed = workflows[0].parser, typed_options(list(sys.argv if arguments is None else arguments))
    places = [Path(str(parser.get_parsed_content("bundle_root")), "configs"), workflows[0].config_root_path]
    folder = next((place for place in places if (place / "metadata.json").is_file()), places[1])
    config = parser.config
    own, others = _own_configs(folder, config)
    ids = _MONAI_IDS | {workflows[0].init_id, workflows[0].run_id, workflows[0].final_id}
    used = {ref for _, text in _texts(config) for ref in ReferenceResolver.match_refs_pattern(text)}
    problems = [f"--{name} {value}: {fault}" for name, value in typed.items() if (fault := misread(value))]
    problems += _unknown_keys(config, own, others, used, ids)
    if workflows[0].run_id not in parser:
        lists = [key for key, value in config.items() if _is_run(value) and key not in used | _MONAI_IDS - {"run"}]
        problems.append(f"--run_id {workflows[0].run_id} is none of {', '.join(lists)}.")
    known = {*parser.globals, *dir(builtins)}
    problems += [f"--{key} {text}: {fault}" for key, text in _texts(config, own)
                 if (fault := expression_fault(text, parser, known))]  # fmt: skip
    changed: list[bool] = []
    told = " ".join(problems)
    for key, value, fault, better in _values(config, own, others.get("train.json", {}), typed):
        if fault and f"--{key} " not in told:
            problems.append(f"--{key} {show(value)}: {fault}")
        changed.append(better)
    if problems:
        raise DataError(problems)
    if any(changed):
        parser.parse(reset=True)
        parser.get_parsed_content("bundle_path")  # where the bundle lies is seen from within the workflow only


def _own_configs(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What the bundle's own configs say that are part of the merged one; and all of its configs by name."""
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.name != "train.json", path.name != "inference.json"))
    own: dict[str, Any] = {}
    configs = {}
    for path in paths:
        with suppress(DataError):  # beside somebody's own configs other files may lie
            configs[path.name] = _normal(read_config(path))
    for content in configs.values():
        keys = {key: split_key(key.removeprefix("+")) for key in content}
        if all(_found(config, parts) for parts in keys.values()):
            for key, parts in keys.items():
                _add(own, parts, content[key], config)
    return own, configs


def _normal(value: Any) -> Any:
    """As MONAI has it by then: ``::`` for ``#`` in every text."""
    if isinstance(value, dict):
        return {key: _normal(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_normal(part) for part in value]
    return value.replace("#", "::") if isinstance(value, str) else value


def _found(place: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if not isinstance(place, Mapping) or part not in place:
            return False
        place = place[part]
    return True


def _add(place: dict[str, Any], parts: Sequence[str], value: Any, merged: Any) -> None:
    """Add what is not there yet: the first config, which others are merged over, says of what kind a value is.

    Where a later config has put a component in a value's place, and that is the merged one's, the later says it.
    """
    for part in parts[:-1]:
        place, merged = place.setdefault(part, {}), merged.get(part)
        if not isinstance(place, dict):
            return
    key = parts[-1]
    there, now = place.get(key), merged.get(key)
    if _same_kind(there, value):
        for each, inner in value.items():
            _add(there, [each], inner, now if isinstance(now, dict) else {})
    elif key not in place or (_same_kind(value, now) and not _same_kind(there, now)):
        place[key] = deepcopy(value)


def _unknown_keys(
    config: Mapping[str, Any], own: Mapping[str, Any], others: Mapping[str, Any], used: set[str], ids: set[str]
) -> Iterator[str]:
    """A line for each key that the bundle's configs lack and nothing refers to."""
    waiting = [("", config, own, others.get("train.json", {}))]
    for place, here, known, train in waiting:
        for key, value in _items(here):
            name = f"{place}{key}"
            if key in known:
                if _same_kind(value, known[key]):
                    inner = train.get(key)
                    waiting.append((f"{name}#", value, known[key], inner if isinstance(inner, dict) else {}))
                continue
            if place and key in train:  # a setting of the trained model, to be compared with what is given
                continue
            id = name.replace("#", "::")
            if any(ref == id or ref.startswith(f"{id}::") for ref in used):
                continue
            if not place and (key in ids or _is_run(value)):
                continue
            if not place and any(key in content and content[key] == value for content in others.values()):
                continue  # of a config whose other keys a later one has replaced
            accepted = _arguments(here) if "_target_" in here else []
            if accepted is None or key in accepted:
                continue
            near = difflib.get_close_matches(key, {*known, *accepted, *(train if place else ())}, n=3)
            near = near or ([] if place else _deeper(key, own))
            files = [
                file for file, content in others.items() if not place and key in content and "imports" not in content
            ]
            hint = f" Did you mean {' or '.join(f'--{place}{each}' for each in near)}?" if near else ""
            if not place and key in _RENAMED:
                hint = f" It is --{_RENAMED[key]} now."
            if files:
                hint = f" It is one of {' and '.join(files)}: list that in --config_file, too."
            yield f"--{name} is no key of this bundle's configs, and nothing refers to it.{hint}"


def _deeper(key: str, own: Mapping[str, Any]) -> list[str]:
    """Sections that have the key."""
    return [f"{section}#{key}" for section, value in own.items() if isinstance(value, dict) and key in value]


def _items(config: Mapping[str, Any], *left_out: str) -> list[tuple[str, Any]]:
    """Keys and values, without those of MONAI's own (``_target_``), or without the named ones."""
    return [(k, v) for k, v in config.items() if (k not in left_out if left_out else not k.startswith("_"))]


def _same_kind(one: Any, other: Any) -> bool:
    """Whether both are plain dictionaries, or both the same component."""
    return isinstance(one, dict) and isinstance(other, dict) and one.get("_target_") == other.get("_target_")


def _is_run(value: Any) -> bool:
    """Whether it is a list of expressions, such as ``--run_id`` names."""
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) and each[:1] in "$@" for each in value)


def _arguments(component: Mapping[str, Any]) -> list[str] | None:
    """Names of the arguments that a component takes; None: any, or it is not known."""
    target = component["_target_"]
    found = locate(ConfigComponent(component).resolve_module_name()) if isinstance(target, str) else None
    names: list[str] = []
    # what a class hands on as **settings, its base takes
    bases = [base for base in inspect.getmro(found)[1:-1] if "__init__" in vars(base)] if inspect.isclass(found) else []
    for each in (found, *bases):
        try:
            parameters = inspect.signature(each).parameters.values()
        except (TypeError, ValueError):
            return None
        names += [parameter.name for parameter in parameters]
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return names
    return None


def _values(
    config: dict[str, Any], own: Mapping[str, Any], train: Mapping[str, Any], typed: Mapping[str, str], place: str = ""
) -> Iterator[tuple[str, Any, str | None, bool]]:
    """Key, value, what is wrong with it, whether it was put right in place; of all that differ from the own configs."""
    for key, value in _items(config):
        name, default = f"{place}{key}", own.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            if _same_kind(value, default):
                inner = train.get(key) if isinstance(train.get(key), dict) else {}
                yield from _values(value, default, inner, typed, f"{name}#")
            continue
        if value == default and type(value) is type(default):
            continue
        fault, better = fault_of(name, value, _plain(default, own, train.get(key)), typed.get(name))
        config[key] = better
        yield name, value, fault, better is not value


def _plain(default: Any, own: Mapping[str, Any], train: Any) -> Any:
    """The value by whose kind another is measured: what a reference points to, what training says of a computed one."""
    for each in (default, train):
        place: Any = own
        if isinstance(each, str) and re.fullmatch(r"@[\w:#]+", each):
            for part in split_key(each[1:]):
                place = place.get(part) if isinstance(place, dict) else None
            each = place
        if each is not None and not (isinstance(each, dict) and "_target_" in each) and str(each)[:1] not in "$@":
            return each
    return COMPUTED


def _texts(value: Any, own: Any = None, place: str = "") -> Iterator[tuple[str, str]]:
    """All texts of a configuration with their keys, without those that the own one has at the same place."""
    if isinstance(value, Mapping):
        for key, part in _items(value, "_desc_", "_meta_"):
            mine = own.get(key) if isinstance(own, Mapping) else None
            yield from _texts(part, mine, f"{place}#{key}" if place else str(key))
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from _texts(part, own[i] if isinstance(own, list) and i < len(own) else None, f"{place}#{i}")
    elif isinstance(value, str) and value != own:
        yield place, value
