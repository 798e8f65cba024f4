"""Which patches belong to one patient or slide, as their names and folders say."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from shared.data.names import nfc
from shared.errors import DataError

NO_GROUPS = "none"
BY_FOLDER, BY_LAST_FOLDER = "folder", "last-folder"
FIRST_DASH = "file name up to the first '-'"
# Names of public data sets whose patient is no beginning of the name, or a longer one.
KNOWN = (r"^SOB_[BM]_\w+-(\d+-\w+)-\d+-\d+", r"^(TCGA-\w+-\w+)-")
_MOST = 6  # beginnings of names that are tried
_MOST_WORDS = 16  # of names like DICOM's identifiers


def group_of(path: PurePath, pattern: str | None = None, folders: Sequence[str] = ()) -> str | None:
    """The group (patient, slide) that a file's path names, or None where the pattern does not fit.

    Args:
        path: inside the data set's folder.
        pattern: regular expression, searched in the file name, with and then without its ending, or in the whole path
            if the pattern holds a ``/``; its first group counts, else the whole match. None: the part of the name
            before the first ``-``, or, without one, the path itself: every image is a group of its own. "none": that,
            always. "folder", "last-folder": the first or last of ``folders``.
        folders: those of patients or slides that it lies in, outermost first.

    Example:
        >>> name = PurePath("Polyp/image/GT2012154-1-400-001.png")
        >>> group_of(name), group_of(name, r"^\\w+-(\\d)"), group_of(name, "^([^/]+)/"), group_of(name, "none")
        ('GT2012154', '1', 'Polyp', 'Polyp/image/GT2012154-1-400-001')
    """
    # one patient whatever system wrote the names
    path, folders = PurePath(nfc(path.as_posix())), [nfc(name) for name in folders]
    alone = path.with_suffix("").as_posix()
    if pattern == NO_GROUPS:
        return alone
    if pattern in (BY_FOLDER, BY_LAST_FOLDER):
        return folders[0 if pattern == BY_FOLDER else -1] if folders else None
    if pattern is None:
        prefix, dash, _ = path.name.partition("-")
        return prefix if dash and prefix.strip() else alone
    texts = [path.as_posix()] if "/" in pattern else [path.name, path.stem]
    match = next((found for text in texts if (found := re.search(nfc(pattern), text))), None)
    name = "" if match is None else (match.group(1) if match.re.groups else match.group()) or ""
    return name.strip() or None


def groups_of(
    paths: Sequence[PurePath], pattern: str | None = None, folders: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """:func:`group_of` each path.

    Raises:
        DataError: the pattern is no regular expression, or does not fit every path.
    """
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise DataError(f"--group-by {pattern!r} is no regular expression: {error}") from error
    folders = [()] * len(paths) if folders is None else folders
    groups = [group_of(path, pattern, own) for path, own in zip(paths, folders, strict=True)]
    unfit = [path.as_posix() for path, group in zip(paths, groups, strict=True) if group is None]
    if unfit:
        what = (
            "images have a folder of their patient's or slide's"
            if pattern in (BY_FOLDER, BY_LAST_FOLDER)
            else "file names"
        )
        raise DataError(
            f"--group-by {pattern!r} does not fit {len(unfit)} of {len(paths)} {what}, as {unfit[0]}; correct it, "
            f"or give --group-by {NO_GROUPS} where every image is of another patient"
        )
    return [str(group) for group in groups]


def own_folders(folders: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The folders of each image but for the outermost ones that all images share.

    Example:
        >>> own_folders([("set", "P1", "a"), ("set", "P2")])
        [('P1', 'a'), ('P2',)]
    """
    left = list(folders)
    while left and all(left) and len({inner[0] for inner in left}) == 1:
        left = [inner[1:] for inner in left]
    return left


@dataclass(frozen=True)
class Choice:
    """A way to group: the option that asks for it, the group of each path, and how many paths it does not fit."""

    option: str
    groups: tuple[str, ...]
    unfit: int = 0

    def line(self) -> str:
        """The option, how many groups it gives, and the first of them."""
        count = Counter(self.groups)
        largest = sorted(count.items(), key=lambda item: (-item[1], item[0]))
        shown = ", ".join(f"{name} ({number})" for name, number in largest[:3])
        shown += f"; does not fit {self.unfit} of {len(self.groups)}" if self.unfit else ""
        return f"--group-by {shlex.quote(self.option):<38} {len(count):>5} groups of patches, as {shown}"


def _pattern(separators: str, count: int) -> str:
    """The first ``count`` words of a name, or what there is of them."""
    separators = re.escape(separators)
    word = f"[^{separators}.]+"
    return f"^{word}" if count == 1 else f"^{word}(?:[{separators}]{word}){{0,{count - 1}}}"


WORD, RUN = r"[^\W_]+", r"(?:\d+|[^\W\d_]+)"  # between signs of any kind; of digits or letters alone


def _beginnings(stems: Sequence[str], word: str) -> list[str]:
    """Patterns of the first words of names, up to the last but one."""
    gap = r"[\W_]+" if word == WORD else r"[\W_]*"
    words = max((len(re.findall(word, stem)) for stem in stems), default=1)
    counts = range(1, min(words, _MOST_WORDS + 1))
    return [f"^{word}" if count == 1 else f"^{word}(?:{gap}{word}){{{count - 1}}}" for count in counts]


def _of_one_form(stems: Sequence[str]) -> bool:
    """Whether most names have letters and digits in the same order, as numbers written into a name have, not hashes."""
    forms = Counter(re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "1", stem)) for stem in stems)
    return bool(forms) and max(forms.values()) >= len(stems) / 2


def suggestions(paths: Sequence[PurePath], folders: Sequence[Sequence[str]], kinds: Sequence[Hashable]) -> list[Choice]:
    """Ways to group that folders or shared beginnings of names suggest, no two of them with the same outcome.

    A way is one where at least half of the images share their group with another, and where the groups are not just
    the classes and parts.

    Args:
        paths: inside the data set's folder.
        folders: see :func:`own_folders`.
        kinds: class and part of each image.

    Example:
        >>> names = [PurePath(f"S{row // 2}_{row}.png") for row in range(6)]
        >>> [choice.option for choice in suggestions(names, [()] * 6, [0] * 6)]
        ['^[^_.]+']
    """
    stems = [nfc(path.stem) for path in paths]
    separators = "".join(sign for sign in "_ -" if any(sign in stem for stem in stems))
    words = max((len(re.split(f"[{re.escape(separators)}]", stem)) for stem in stems), default=1) if separators else 1
    options = [pattern for pattern in KNOWN if all(re.search(pattern, stem) for stem in stems)]
    options += [BY_FOLDER, BY_LAST_FOLDER] * any(folders) + [
        _pattern(separators, count) for count in range(1, min(words, _MOST + 1))
    ]
    found = _fitting(options, paths, folders, kinds)
    if not found:  # names that other signs divide, or nothing
        found = _fitting(_beginnings(stems, WORD), paths, folders, kinds)
    if not found and _of_one_form(stems):
        found = _fitting(_beginnings(stems, RUN), paths, folders, kinds)
    return found


def _fitting(
    options: Sequence[str], paths: Sequence[PurePath], folders: Sequence[Sequence[str]], kinds: Sequence[Hashable]
) -> list[Choice]:
    """The options that join images, and say more than the classes and parts do."""
    found: list[Choice] = []
    for option in options:
        own = [group_of(path, option, inner) for path, inner in zip(paths, folders, strict=True)]
        groups = [group or path.as_posix() for path, group in zip(paths, own, strict=True)]
        count = Counter(groups)
        together = sum(number for number in count.values() if number > 1)
        if len(count) < 2 or together < len(paths) / 2 or _is_kinds(groups, kinds):
            continue
        if all(partition(groups) != partition(choice.groups) for choice in found):
            found.append(Choice(option, tuple(groups), own.count(None)))
    return found


def _is_kinds(groups: Sequence[str], kinds: Sequence[Hashable]) -> bool:
    """Whether the groups say no more than the classes and parts do."""
    pairs = set(zip(groups, kinds, strict=True))
    return len(pairs) == len(set(groups)) <= len(set(kinds))


def partition(groups: Sequence[str]) -> list[int]:
    """For each member the first one of its group: equal where two ways to group come to the same.

    Example:
        >>> partition(["a", "b", "a"]) == partition(["x", "y", "x"])
        True
    """
    first: dict[str, int] = {}
    return [first.setdefault(group, row) for row, group in enumerate(groups)]


def resolve_groups(
    paths: Sequence[PurePath],
    pattern: str | None = None,
    *,
    folders: Sequence[Sequence[str]] | None = None,
    kinds: Sequence[Hashable] | None = None,
) -> tuple[list[str], str]:
    """The group of each path and how it was found.

    Without a pattern: the part of the name before the first ``-`` where nothing suggests another way to group (and it
    is no mere word, as of a kind of tissue); every image for itself where nothing suggests any.

    Raises:
        DataError: as of :func:`groups_of`; without a pattern, where names or folders suggest something else, with
            what each choice gives.

    Example:
        >>> resolve_groups([PurePath("S1-1.png"), PurePath("S1-2.png"), PurePath("S2-1.png")])
        (['S1', 'S1', 'S2'], "file name up to the first '-'")
    """
    if pattern is not None:
        return groups_of(paths, pattern, folders), pattern
    folders = [()] * len(paths) if folders is None else folders
    kinds = [0] * len(paths) if kinds is None else kinds
    by_dash = groups_of(paths)
    found = suggestions(paths, folders, kinds)
    # kinds of tissue, unlike patients, have no numbers
    no_number = bool(found) and not any(sign.isdigit() for group in by_dash for sign in group)
    if no_number or any(partition(choice.groups) != partition(by_dash) for choice in found):
        none = f"--group-by {NO_GROUPS:<38} {len(paths):>5} groups: every patch is of another patient"
        raise DataError(
            f"{len(paths)} patches: which of them are of one patient or slide? Their names or folders suggest groups; "
            "--group-by says which are right (or give a regular expression of your own):\n"
            + "\n".join([*(f"    {choice.line()}" for choice in found), f"    {none}"])
        )
    if any("-" in path.name for path in paths) and not (
        len(paths) > 1 and (len(set(by_dash)) == 1 or _is_kinds(by_dash, kinds))
    ):
        return by_dash, FIRST_DASH
    how = "every patch by itself: neither names nor folders suggest groups"
    beginnings = {re.split(r"[_\s-]", nfc(path.stem))[0] for path in paths}
    if len(paths) > len(beginnings) == 1 and re.search(r"\d", one := beginnings.pop()):
        how += f"; but all names begin with {one!r}: if that is one patient or slide, it is in every part and fold"
    return groups_of(paths, NO_GROUPS), how
