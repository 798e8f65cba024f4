"""What a model was trained with and on: one record in every checkpoint, asked by whatever uses the checkpoint later.

The record holds every plain value of the configuration that a stage depends on, found by following the configuration's
references from the stage's trainer; the names of modalities and classes in their order; the atlas; a digest of the
training part (files, labels, covariates); and a digest of each earlier checkpoint that the stage started from. Who was
trained on stays apart, in ``split.json``, which is not packaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.digests import Digests, sha256
from shared.errors import CheckpointError, DataError
from shared.io import read_json_object, write_json
from shared.locks import lock_folder, release_folder

MODEL_FILE, SPLIT_FILE = "model.json", "split.json"
COHORT_FILE, CONFORMAL_FILE = "cohort.npz", "conformal.json"  # of shared.bundle.abstention
# what changes no weight: speed (numbers by rounding alone), which of the trained predictors answers, and what of an
# image's views is averaged
SWITCHES = ("bf16", "channels_last", "checkpointing", "answer", "average")
# ids that say where and how a stage runs, not what it computes
_PLACES = {"bundle_root", "bundle_path", "bundle_shared", "dataset_dir", "datalist_file", "ckpt_dir", "output_dir"}
_PLACES |= {
    "cache_dir",
    "cache_gb",
    "memory_gb",
    "disk_cache",
}  # what is read from there is what would be read from the files
_WAYS = {"device", "memory_format", "resume", "val_interval", "validate", "split", "record", "backend", "device_ids"}
_NO_NUMBER = _PLACES | _WAYS | {*SWITCHES, "atlas_file", "imports", "initialize"}
_EPOCHS = {"epochs", "max_epochs", "finetune_epochs"}  # a stage that has not ended may go on with more of them
_SILENT = {"_desc_", "_requires_", "_mode_", "save_interval", "print_lr", "iteration_log", "num_workers", "name"}
# around a component of the same training in one process
_WRAPPERS = {"DistributedDataParallel", "share_batches", "share_cases", "sync_batch_norm", "rank_device"}
# how a configuration before StageTrainer put a stage together, and how one of now does: no numbers among them
_ASSEMBLY = re.compile(
    r"(network|cases|preprocessing|load_fa(#fa)?)$|\w+#(trainer|dataloader|log|handlers|balanced_sampler)$|"
    r"\w+#dataset(#cases|#kind)?$|\w+#(dataloader|trainer)#(shuffle|drop_last|collate_fn|decollate|optim_set_to_none|"
    r"bare|divided|scheduler_epoch_level|unused_parameters)$"
)
# settings that came later, with the value that computes what was computed before there were any
_ADDED = {
    "network_def#attention": "prototype",
    "use_modalities": None,
    "train#layer_decay": 1.0,
    "cross_fit#folds": 0,
    "datalist#held_out": -1,
    "contrast#sequence_dropout": 0.0,
    "contrast#dropout": "SequenceDropout",
    "network_def#additive": False,
    "additive#covariate_penalty": 1.0,
    # without an additive answer they play no part
    "train#additive": "FitAdditive",
    "train#additive#strength": None,
}
_TOLD_BY_NAMES = {"num_modalities"}  # plain in older configurations, now a computed one; the names are compared
_OF_A_CASE = ("label", "covariates", "part", "votes")
_OF_ITS_FILES = ("tumour_labels", "trust_affines")  # how they are read
_REFERENCE = re.compile(r"@(\w+(?:(?:#|::)\w+)*)")

logger = logging.getLogger(__name__)


def plain_settings(
    config: Mapping[str, Any], root: str, unused: Iterable[str] = (), digest: Callable[[Path], str] = sha256
) -> tuple[dict[str, Any], dict[str, int], set[str]]:
    """Every plain value that an entry of a configuration depends on.

    Args:
        config: the merged configuration, as MONAI's parser holds it.
        root: id of the entry, such as ``"train#trainer"``; its references are followed.
        unused: ids that are referred to and play no part.
        digest: of a file that a value names.

    Returns:
        values by id; the numbers of epochs, apart; all ids visited.

    Example:
        >>> config = {"seed": 1, "net": {"_target_": "a.Net", "width": "@width", "views": 2}, "width": 8, "other": 3}
        >>> plain_settings(config, "net")[0]
        {'net': 'Net', 'net#views': 2, 'width': 8}
    """
    values: dict[str, Any] = {}
    epochs: dict[str, int] = {}
    visited: set[str] = set()
    waiting, unused = [root], {name.replace("::", "#") for name in unused}

    def visit(key: str, node: Any) -> None:
        *above, last = key.split("#")
        handler = any(part.endswith("handlers") for part in above)
        if key.partition("#")[0] in _NO_NUMBER or last in _SILENT | set(SWITCHES) or key in unused:
            return
        visited.add(key)
        if isinstance(node, Mapping):
            target = str(node.get("_target_", ""))
            kind = target.rpartition(".")[2]
            if handler and not target.startswith("shared.") and kind != "LrScheduleHandler":
                return  # it looks on: trackers, loggers, validation
            for name, value in node.items():
                if name == "_target_":
                    if kind not in _WRAPPERS and not handler:
                        values[key] = kind
                elif kind not in _WRAPPERS or isinstance(value, str):
                    visit(f"{key}#{name}", value)
        elif isinstance(node, list | tuple):
            if not any(isinstance(item, Mapping | list) or str(item)[:1] in "@$%" for item in node):
                values[key] = list(node)
            else:
                for number, item in enumerate(node):
                    visit(f"{key}#{number}", item)
        elif isinstance(node, str) and node.startswith(("@", "$", "%")):
            waiting.extend(found.replace("::", "#") for found in _REFERENCE.findall(node))
        elif handler:
            pass  # what a handler needs is named elsewhere, or says how it speaks
        elif last in _EPOCHS:
            epochs[key] = node
        else:
            # of a file what is in it, wherever it lies; a record is handed on, and tells no folders
            path = Path(node) if isinstance(node, str) and ("/" in node or "." in node) else None
            if path is not None and path.is_file():
                node = f"a file of sha256 {digest(path)}"
            elif path is not None and path.is_absolute():
                node = path.name
            values[key] = node if node is None or isinstance(node, bool | int | float | str) else str(node)

    while waiting:
        key = waiting.pop()
        if key in visited:
            continue
        place: Any = config
        for part in key.split("#"):
            if isinstance(place, Mapping) and part in place:
                place = place[part]
            elif isinstance(place, list) and part.isdigit() and int(part) < len(place):
                place = place[int(part)]
            else:
                break
        else:
            visit(key, place)
        visited.add(key)
    return dict(sorted(values.items())), dict(sorted(epochs.items())), visited


def building_config() -> Mapping[str, Any]:
    """The configuration of the MONAI parser that is building the caller; empty where none is.

    MONAI shows a component what its own entry names, never the rest: the parser stands in the calling frames.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if type(owner).__name__ == "ConfigParser" and isinstance(getattr(owner, "config", None), Mapping):
            return owner.config
        frame = frame.f_back  # type: ignore[assignment]
    return {}


def case_files(case: Mapping[str, Any]) -> list[Path]:
    """Every file that a case of a checked datalist names (absolute paths)."""
    values = [value for item in case.values() for value in (item if isinstance(item, list | tuple) else [item])]
    return [
        path for value in values if isinstance(value, str) and (path := Path(value)).is_absolute() and path.is_file()
    ]


def image_files(case: Mapping[str, Any]) -> list[str]:
    """The images of a case, without masks."""
    return list(case["image"]) if isinstance(case["image"], list | tuple) else [case["image"]]


class TrainingRecord:
    """The record of a training: compared with what a checkpoint holds before anything goes on from it.

    Args:
        ckpt_dir: folder of the checkpoints.
        datalist: the checked datalist; the cases that a stage is trained on are digested.
        stages: sections of the configuration in the order of their training; the last one's checkpoint is ``model.pt``,
            the others' ``<stage>.pt``.
        dataset_dir: where digests of files are kept, so that nothing is read twice.
        atlas: its digest is part of the record; None: there is none.
        parts: which patients a stage is trained on, by part; None: all of them.
        unused: by stage, ids that its section refers to and its weights do not depend on; all others count.
        label_free: stages whose weights depend on no label and no covariate; of these, images and masks are digested
            alone, of the datalist's ``pretraining`` part where it has one.
        config: the configuration; None: the one that is being built.

    Raises:
        CheckpointError: ``begin`` met a checkpoint that was trained with or on something else, or another process that
            trains in this folder.
    """

    def __init__(
        self,
        ckpt_dir: str | os.PathLike,
        datalist: Any,
        *,
        stages: Sequence[str],
        dataset_dir: str | os.PathLike | None = None,
        atlas: Any = None,
        parts: Mapping[str, Sequence[str]] | None = None,
        unused: Mapping[str, Sequence[str]] | None = None,
        label_free: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ):
        self.ckpt_dir, self.datalist, self.stages = Path(ckpt_dir), datalist, list(stages)
        self.atlas, self.parts, self.unused, self.label_free = atlas, parts, dict(unused or {}), tuple(label_free)
        self.config = dict(building_config() if config is None else config)
        self.digests = Digests(cache_folder(dataset_dir))
        self._data: dict[tuple[str, bool], dict[str, str]] = {}
        self._found: dict[str, tuple[dict[str, Any], dict[str, int], set[str]]] = {}
        self._inherited: dict[str, Any] = {}

    def path(self, stage: str) -> Path:
        """The checkpoint of a stage."""
        return self.ckpt_dir / ("model.pt" if stage == self.stages[-1] else f"{stage}.pt")

    def stage_of(self, path: str | os.PathLike) -> str:
        """The stage whose checkpoint is ``path``."""
        name = Path(path).name
        return next(stage for stage in self.stages if self.path(stage).name == name)

    def of(self, stage: str) -> dict[str, Any]:
        """The record of a stage, of plain JSON values."""
        values, epochs, _ = self._settings(stage)
        record = {
            "stage": stage,
            "settings": values,
            "epochs": epochs,
            "classes": list(self.datalist.classes),
            "data": self.data(stage),
            "parents": {
                other: self.digests(self.path(other)) for other in self.parents(stage) if self.path(other).is_file()
            },
        }
        if (modalities := getattr(self.datalist, "modalities", None)) is not None:
            record["modalities"] = list(modalities)
        if self.atlas is not None:
            record["atlas"] = self.atlas.digest
        return json.loads(json.dumps(record))

    def parents(self, stage: str) -> list[str]:
        """The stages from whose checkpoints a stage starts: those that its section refers to."""
        earlier = self.stages[: self.stages.index(stage)]
        if not self.config:
            return earlier
        visited = self._settings(stage)[2]
        return [other for other in earlier if f"{other}#checkpoint" in visited]

    def _settings(self, stage: str) -> tuple[dict[str, Any], dict[str, int], set[str]]:
        if stage not in self._found:  # asked at every save
            section = self.config.get(stage) or {}
            root = f"{stage}#{'trainer' if 'trainer' in section else 'stage'}"
            self._found[stage] = plain_settings(self.config, root, self.unused.get(stage, ()), self.digests)
        return self._found[stage]

    def data(self, stage: str) -> dict[str, str]:
        """Digest of the part that a stage is trained on: of files and, where it sees them, labels and covariates."""
        free = stage in self.label_free
        part = "pretraining" if free and hasattr(self.datalist, "pretraining") else "training"
        if (part, free) not in self._data:
            keys = _OF_ITS_FILES if free else _OF_A_CASE + _OF_ITS_FILES
            rows = [
                [*(self.digests(path) for path in case_files(case)), *(case.get(key) for key in keys)]
                for case in getattr(self.datalist, part)
            ]
            text = json.dumps(sorted(rows, key=str), sort_keys=True, default=str)
            self._data[part, free] = {part: hashlib.sha256(text.encode()).hexdigest()}
            self.digests.save()
        return self._data[part, free]

    def begin(self, stage: str, stored: Mapping[str, Any] | None, *, finished: bool, going_on: bool) -> None:
        """Before a stage is skipped, goes on or starts anew.

        Args:
            stage: its name.
            stored: the record in its checkpoint, None where it has none.
            finished: the stage has ended, so its number of epochs counts, too.
            going_on: it is skipped or goes on; False: it starts anew, and what was made from its earlier checkpoint is
                removed.

        Raises:
            CheckpointError: with every difference by name.
        """
        lock_folder(self.ckpt_dir)
        if going_on:
            where = self.path(stage) if finished else Path(f"{self.path(stage)}.resume")
            if stored is None:
                # whom and what it was trained on is not known, so nothing is written down as if it were
                logger.warning("%s holds no record of its training (an older version): it is taken as it is.", where)
                return
            if problems := self.differences(stored, self.of(stage), epochs=finished):
                raise CheckpointError(
                    f"{where} was trained otherwise than is asked for now, so it cannot be "
                    f"{'kept' if finished else 'gone on with'}: {'; '.join(problems)}. Give the settings and data it "
                    "was trained with, choose another --ckpt_dir, or train anew with --resume False."
                )
        else:
            self._check_parents(stage)
            self._remove(stage)
        self._write_split(stage, anew=not going_on)

    def end(self) -> None:
        """After a stage: the folder is given back to other processes."""
        release_folder(self.ckpt_dir)

    @staticmethod
    def differences(stored: Mapping[str, Any], now: Mapping[str, Any], *, epochs: bool = True) -> list[str]:
        """What differs between two records, as ``key was A, is now B``."""
        found = []
        older = any(kind == "SupervisedTrainer" for kind in (stored.get("settings") or {}).values())
        for part in ("settings", "epochs") if epochs else ("settings",):
            before, after = stored.get(part) or {}, now.get(part) or {}
            if older:
                before, after = ({k: v for k, v in x.items() if not _ASSEMBLY.match(k)} for x in (before, after))
            before = {key: value for key, value in _ADDED.items() if key in after} | dict(before)
            keys = [key for key in {**before, **after} if before.get(key, "unset") != after.get(key, "unset")]
            keys = [key for key in keys if key not in _TOLD_BY_NAMES or (key in before and key in after)]
            # an entry that is gone or new with all below it is told once
            keys = [key for key in keys if not any(key.startswith(f"{other}#") for other in keys)]
            found += [f"{key} was {_shown(before, key)}, is now {_shown(after, key)}" for key in keys]
        for key, what in (("modalities", "the modalities"), ("classes", "the classes")):
            if key in stored and stored[key] != now.get(key):
                found.append(f"{what} were {', '.join(stored[key])}, are now {', '.join(now.get(key) or ['none'])}")
        if "atlas" in stored and stored["atlas"] != now.get("atlas"):
            found.append("the tract atlas is another one")
        for part, digest in (stored.get("data") or {}).items():
            if digest != (now.get("data") or {}).get(part):
                found.append(f"the {part} part (its images, masks, labels or covariates) is another one")
                break
        for other, digest in (stored.get("parents") or {}).items():
            if (now.get("parents") or {}).get(other, digest) != digest:
                found.append(f"{other}.pt, from which it started, is another one now")
        return found if len(found) <= 8 else [*found[:8], f"and {len(found) - 8} more"]

    def _check_parents(self, stage: str) -> None:
        from shared.checkpoint import load_checkpoint

        for other in self.of(stage)["parents"]:
            state = load_checkpoint(self.path(other))
            stored = state.get("record") if isinstance(state, dict) else None
            if isinstance(stored, Mapping) and (problems := self.differences(stored, self.of(other))):
                raise CheckpointError(
                    f"The stage {stage!r} would start from {self.path(other)}, which was trained otherwise than is "
                    f"asked for now: {'; '.join(problems)}. Give the settings and data it was trained with, or run "
                    f"that stage again first (--run_id {other}_run --resume False)."
                )

    def _remove(self, stage: str) -> None:
        """Files of the stage and of all that are made from it: they no longer belong to this training."""
        gone = {stage}
        for other in self.stages[self.stages.index(stage) + 1 :]:
            if gone & set(self.parents(other)):
                gone.add(other)
        for name in gone:
            for old in (self.path(name), Path(f"{self.path(name)}.resume")):
                if old.is_file() and name != stage:
                    logger.info("%s is removed: it was made from an earlier %s.", old, self.path(stage).name)
                old.unlink(missing_ok=True)
        if self.stages[-1] in gone:
            for name in (MODEL_FILE, COHORT_FILE, CONFORMAL_FILE):
                (self.ckpt_dir / name).unlink(missing_ok=True)

    def inherit(self, path: str | os.PathLike) -> None:
        """Count whom a checkpoint in another folder was trained on among those whom this model has seen."""
        folder = Path(path).resolve().parent
        if folder != self.ckpt_dir.resolve():
            self._inherited = {f"{folder.name}/{k}": v for k, v in read_split(folder).get("images", {}).items()}
            self._write_split(self.stages[-1], anew=True)

    def _write_split(self, stage: str, *, anew: bool) -> None:
        """Add whom the stage is trained on to ``split.json``; stages that have no part in the model leave it."""
        kept = {*self.parents(stage), stage} if stage == self.stages[-1] else set(self.stages)
        for other in reversed(self.stages):
            kept |= set(self.parents(other)) if other in kept else set()
        part = "pretraining" if stage != self.stages[-1] and hasattr(self.datalist, "pretraining") else "training"
        images: dict[str, list[str]] = {}
        for case in getattr(self.datalist, part):
            images.setdefault(str(case["patient"]), []).extend(self.digests(file) for file in image_files(case))
        before = read_split(self.ckpt_dir)
        content = {
            **({} if self.parts is None else self.parts),
            "cohort": str(getattr(self.datalist, "name", "")),
            "images": {
                # of checkpoints in other folders until the stage that started from one starts anew
                **{
                    name: found
                    for name, found in before.get("images", {}).items()
                    if name in kept or ("/" in name and not (anew and stage == self.stages[-1]))
                },
                stage: {name: sorted(set(found)) for name, found in images.items()},
                **self._inherited,
            },
        }
        if content != before:
            write_json(self.ckpt_dir / SPLIT_FILE, content)
        self.digests.save()


def read_model(ckpt_dir: str | os.PathLike) -> dict[str, Any]:
    """Content of ``model.json`` beside a ``model.pt``; empty where there is none.

    Raises:
        CheckpointError: it cannot be read.
    """
    return _read(Path(ckpt_dir) / MODEL_FILE)


def weights_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state dict's names, dtypes and values: what ties ``model.json`` to its ``model.pt``.

    Example:
        >>> import torch
        >>> a, b = {"x": torch.zeros(2)}, {"x": torch.ones(2)}
        >>> weights_digest(a) == weights_digest(dict(a)), weights_digest(a) == weights_digest(b)
        (True, False)
    """
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_weights(path: str | os.PathLike, state: Any) -> None:
    """``model.json`` was written with these very weights, where it says with which.

    Raises:
        CheckpointError: it is of another ``model.pt``.
    """
    known = read_model(Path(path).parent).get("weights")
    if known is None or not isinstance(state, Mapping):
        return  # whoever loads it says more
    weights = all(hasattr(value, "detach") for value in state.values())  # else a stage's checkpoint in model.pt's place
    if not weights or known != weights_digest(state):
        raise CheckpointError(
            f"{path} and the {MODEL_FILE} beside it are of two trainings (these are not the weights it was written "
            "with): copy both from the same folder, or train again."
        )


def read_split(ckpt_dir: str | os.PathLike) -> dict[str, Any]:
    """Content of ``split.json``: who was trained on; empty where a model came without it, as packaged ones do.

    Raises:
        CheckpointError: it cannot be read, so that nobody is taken for new who was trained on.
    """
    return _read(Path(ckpt_dir) / SPLIT_FILE)


def seen_patients(
    ckpt_dir: str | os.PathLike, cases: Iterable[Mapping[str, Any]], digests: Digests | None = None
) -> dict[str, str]:
    """Of ``cases``, the patients whose images the model was trained on, each with the name it then had.

    Images are compared, not names: another hospital's P001 is another patient, and a renamed one is the same.
    """
    digests = Digests() if digests is None else digests
    stages = read_split(ckpt_dir).get("images", {}).values()
    owner = {digest: name for stage in stages for name, found in stage.items() for digest in found}
    seen = {}
    for case in cases if owner else ():
        then = next((owner[d] for file in image_files(case) if (d := digests(file)) in owner), None)
        if then is not None:
            seen.setdefault(str(case["patient"]), then)
    return seen


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json_object(path, "model's record")
    except DataError as error:
        raise CheckpointError(f"{error}; copy it again from the training's folder, or train again.") from error


def cache_folder(dataset_dir: str | os.PathLike | None) -> Path | None:
    """The folder for the cache of digests, where it can be written to."""
    if dataset_dir is None or not Path(dataset_dir).is_dir():
        return None
    return Path(dataset_dir) if os.access(dataset_dir, os.W_OK) else None


def _shown(values: Mapping[str, Any], key: str, limit: int = 60) -> str:
    value = values.get(key, "unset")
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
