"""The keys of a bundle's configs that a user changes, with what the components that they reach say of them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pydoc import locate
from typing import Any

# what ties components together, and no setting: below these keys nothing is listed
PLUMBING = {
    *("imports", "workflows", "bundle_roots", "bundle_root", "code_root", "bundle_path", "bundle_shared", "common"),
    *("record", "handlers", "datalist", "dataloader", "run", "initialize", "name", "bare", "transforms"),
    *(
        "train_config",
        "kind",
        "section",
        "names",
        "network",
        "sampled",
        "drop_last",
        "unused_parameters",
        "scheduler_epoch_level",
    ),
}
# settings whose default is an expression
EXPRESSIONS = re.compile(
    r"\w+_dir|\w+_file|device|bf16|channels_last|num_modalities|members|edges#use_fa|train#pretrained"
)
# a plain section, and the component that it is passed to as a whole
SECTIONS = {
    "roi": "shared.transforms.ROISlicesd",
    "preparing": "shared.transforms.PrepareGliomad",
    "edge_mask": "shared.explain.glioma.edges.explain_edges",
    "slide_stage#tissue": "shared.data.slides.tissue.tissue_mask",
    "network_def#encoder": "shared.networks.PatchEncoder",
    "network_def#additive": "shared.networks.BiomarkerClassifier",
    "network_def#image": "shared.networks.ImageEncoder",
    "network_def#points": "shared.networks.GeometricEncoder",
    "network_def#brain": "shared.networks.BrainEncoder",
    "network_def#population": "shared.networks.glioma.population_graph.PopulationGraphClassifier",
}
# a component that passes arguments on to others
PASSED_ON = {"shared.networks.GliomaClassifier": ("shared.networks.GliomaFeatures", "shared.networks.GliomaNetwork")}


def is_plain(value: Any) -> bool:
    """Whether a value is one that a user types: a number, True or False, None, a text, or a list of such.

    Example:
        >>> is_plain([64, 128]), is_plain("box"), is_plain("@seed"), is_plain({"_target_": "x"})
        (True, True, False, False)
    """
    if isinstance(value, list):
        return all(is_plain(item) and not isinstance(item, list) for item in value)
    return not isinstance(value, dict) and not (isinstance(value, str) and value[:1] in ("@", "$", "%"))


def plain_keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Id and value of every setting of a config, in its order; an expression stays as it is.

    Example:
        >>> list(plain_keys({"seed": 0, "net": {"_target_": "a.Net", "width": 64, "parent": "@seed"}}))
        [('seed', 0), ('net#width', 64)]
    """
    for key, value in config.items():
        name = f"{prefix}{key}"
        if key.startswith("_") or key.split("#")[-1] in PLUMBING or key.endswith("_run"):
            continue
        if EXPRESSIONS.fullmatch(name) and not is_plain(value):
            yield name, value if isinstance(value, str) else f"${key}"
        elif isinstance(value, dict):
            yield from plain_keys(value, f"{name}#")
        elif is_plain(value):
            yield name, value


def argument_texts(target: str) -> dict[str, str]:
    """What the ``Args`` of a component's docstring say of each argument.

    Example:
        >>> argument_texts("shared.losses.MemoryBank")["temperature"]
        'tau of Eq. 3'
    """
    lines = (inspect.getdoc(locate(target)) or "").splitlines()
    texts: dict[str, str] = {}
    name = None
    for line in lines[lines.index("Args:") + 1 :] if "Args:" in lines else []:
        if not line.startswith("    "):
            break
        if found := re.match(r" {4}(\w+): (.*)", line):
            name, texts[found[1]] = found[1], found[2]
        elif name is not None:
            texts[name] += f" {line.strip()}"
    # prose of reStructuredText as Markdown
    plain = {key: re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text) for key, text in texts.items()}
    return {key: re.sub(r"(?<!\.)\.$", "", text.replace("``", "`")) for key, text in plain.items()}


def meaning(key: str, config: Mapping[str, Any]) -> str:
    """What the component says of a setting that it is given, directly or by reference; empty: nothing is said.

    Args:
        key: id of the setting.
        config: the configs in which it stands, merged.
    """
    parent, _, last = key.rpartition("#")
    own = SECTIONS.get(parent) or (value_at(config, parent) or {}).get("_target_")
    places = [*_given(config, f"@{key}"), *((target, last) for target in (own, *PASSED_ON.get(own, ())))]
    return next((text for target, argument in places if (text := _texts(target).get(argument))), "")


def _texts(target: Any) -> dict[str, str]:
    return argument_texts(target) if isinstance(target, str) and target.startswith("shared.") else {}


def value_at(config: Any, key: str) -> Any:
    """What stands at an id; None where nothing does."""
    for part in key.split("#") if key else ():
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def _given(value: Any, reference: str) -> Iterator[tuple[str, str]]:
    """Component and argument of every place that is given ``reference``."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield from ((value["_target_"], key) for key, given in value.items() if given == reference)
        for item in value.values():
            yield from _given(item, reference)
    elif isinstance(value, list):
        for item in value:
            yield from _given(item, reference)
