"""Which patches belong to one patient or slide, and when that has to be asked."""

import hashlib
import re
import unicodedata
from pathlib import PurePath

import pytest

from shared.data.patches.groups import group_of, groups_of, own_folders, resolve_groups, suggestions
from shared.errors import DataError


@pytest.mark.parametrize(
    ("path", "pattern", "group"),
    [
        ("a/GT1-2-3.png", None, "GT1"),
        ("a/GT1.png", None, "a/GT1"),  # names may start anew in every folder
        ("a/-1.png", None, "a/-1"),
        ("a/GT1-2-3.png", "none", "a/GT1-2-3"),
        ("a/GT1-2-3.png", r"^GT\d", "GT1"),
        ("a/GT1-2-3.png", r"^(\w+)-(\d)", "GT1"),
        ("a/P7_31.png", r"^(.+)_\d+$", "P7"),  # without the ending
        ("a/P7_31.png", r"^(.+)_\d+\.png$", "P7"),
        ("a/P7/x.png", r"([^/]+)/[^/]+$", "P7"),
        ("a/x.png", r"^P\d", None),
        ("a/x.png", r"^(P\d)?", None),
        ("a/P7/x.png", "folder", "patient"),
        ("a/P7/x.png", "last-folder", "slide"),
    ],
)
def test_the_group_of_a_file(path, pattern, group):
    assert group_of(PurePath(path), pattern, ("patient", "block", "slide")) == group


def test_a_pattern_that_fits_nothing_or_is_none():
    paths = [PurePath("a/P1_1.png"), PurePath("a/x.png")]
    with pytest.raises(DataError, match=r"does not fit 1 of 2 file names, as a/x.png; .* --group-by none"):
        groups_of(paths, r"^P\d")
    with pytest.raises(DataError, match="is no regular expression: missing"):
        groups_of(paths, r"(P\d")
    with pytest.raises(DataError, match="'folder' does not fit 1 of 2 images have a folder"):
        groups_of(paths, "folder", [("P1",), ()])


def test_folders_that_all_share_are_no_patients():
    assert own_folders([("set", "P1", "a"), ("set", "P2"), ("set", "P1", "b")]) == [("P1", "a"), ("P2",), ("P1", "b")]
    assert own_folders([("P1",), ()]) == [("P1",), ()] and own_folders([("set",), ("set",)]) == [(), ()]


def names(text, count=12, each=3):
    """Paths of ``count`` patches, ``each`` of a slide; ``{s}`` is the slide, ``{n}`` the patch, ``{c}`` its class."""
    rows = [{"s": f"{10250 + row // each}", "n": row, "c": row % 2} for row in range(count)]
    return [PurePath(text.format(**row)) for row in rows], [row["c"] for row in rows], [row["s"] for row in rows]


def ask(text, folders=False, **options):
    """The choices that are offered, by option."""
    paths, kinds, slides = names(text, **options)
    with pytest.raises(DataError, match="--group-by says which") as caught:
        resolve_groups(paths, folders=[(slide,) for slide in slides] if folders else None, kinds=kinds)
    return {line.split()[1].strip("'"): line for line in str(caught.value).splitlines()[1:]}, paths, slides


def test_slides_by_folder_are_asked_for():
    choices, paths, slides = ask("HP/{s}/patch{n}.png", folders=True)
    assert list(choices) == ["folder", "none"]
    assert "4 groups of patches, as 10250 (3), 10251 (3), 10252 (3)" in choices["folder"]
    assert "12 groups: every patch is of another patient" in choices["none"]
    assert resolve_groups(paths, "folder", folders=[(slide,) for slide in slides]) == (slides, "folder")


def test_of_two_levels_of_folders_both_are_offered():
    paths = [PurePath(f"HP/{'ab'[n % 2]}/P{n % 4}/{n}.png") for n in range(12)]
    folders = [path.parts[1:-1] for path in paths]
    with pytest.raises(DataError) as caught:
        resolve_groups(paths, folders=folders)
    _, first, last, none = str(caught.value).splitlines()
    assert "--group-by folder " in first and "2 groups of patches, as a (6), b (6)" in first
    assert "--group-by last-folder " in last and "4 groups of patches, as P0 (3)" in last and "12 groups" in none
    assert resolve_groups(paths, "last-folder", folders=folders)[0] == [f"P{n % 4}" for n in range(12)]


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("{s}_idx5_x1{n}_y7_class{c}.png", "{s}"),
        ("SOB_B_A-14-{s}AB-40-0{n}.png", "14-{s}AB"),
        ("TCGA-AA-{s}-01Z-00-DX1_{n}_7.png", "TCGA-AA-{s}"),
        ("HP-{s}-{n}.png", "HP-{s}"),  # a dash that tells the class from the rest
        ("slide {s} {n}.png", "slide {s}"),
    ],
)
def test_beginnings_of_names_that_many_share_are_asked_for_and_what_is_offered_can_be_typed(text, group):
    choices, paths, slides = ask(text)
    expected = [group.format(s=slide) for slide in slides]
    offered = [choice for choice in suggestions(paths, [()] * 12, [0] * 12) if list(choice.groups) == expected]
    assert len(offered) == 1 and offered[0].line() in "\n".join(choices.values())
    assert resolve_groups(paths, offered[0].option)[0] == expected


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("S{s}.{n}.png", "S{s}"),
        ("S{s}#{n}.png", "S{s}"),
        ("S{s}({n}).png", "S{s}"),
        ("S{s},{n}.png", "S{s}"),
        ("S{s}x1{n}y3.png", "S{s}"),
        ("1.2.840.113619.2.55.3.{s}.{n}.png", "1.2.840.113619.2.55.3.{s}"),
    ],
)
def test_whatever_sign_divides_a_name_its_beginning_is_offered(text, group):
    paths, kinds, slides = names(text)
    expected = [group.format(s=slide) for slide in slides]
    offered = next(c for c in suggestions(paths, [()] * 12, kinds) if list(c.groups) == expected)
    with pytest.raises(DataError, match="--group-by says which") as caught:
        resolve_groups(paths, kinds=kinds)
    assert offered.line() in str(caught.value)
    assert resolve_groups(paths, offered.option)[0] == expected


def test_accents_composed_or_not_are_one_patient():
    forms = [unicodedata.normalize(form, "M\u00fcller7") for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    paths = [PurePath(f"{name}-{n}.png") for n, name in enumerate(forms)]
    for pattern in (None, "^[^-]+", unicodedata.normalize("NFD", "^M\u00fcller\\d")):
        assert groups_of(paths, pattern) == [forms[0]] * 2
    assert groups_of([PurePath("1.png"), PurePath("2.png")], "folder", [(name,) for name in forms]) == [forms[0]] * 2


def test_types_of_tumour_are_not_taken_for_patients():
    paths = [PurePath(f"SOB_{'BM'[n % 2]}_{['A', 'F', 'DC', 'LC'][n % 4]}-14-{n % 6}AB-40-{n}.png") for n in range(24)]
    with pytest.raises(DataError, match="--group-by") as caught:
        resolve_groups(paths, kinds=[n % 2 for n in range(24)])
    first = str(caught.value).splitlines()[1]
    assert "6 groups of patches, as 14-0AB (4)" in first


def test_kinds_of_tissue_before_the_dash_are_not_taken_for_patients():
    paths = [PurePath(f"{['normal', 'inflamed', 'mixed'][n % 3]}-{n}.png") for n in range(12)]
    with pytest.raises(DataError, match=r"3 groups of patches, as inflamed \(4\), mixed \(4\), normal \(4\)"):
        resolve_groups(paths, kinds=[n % 2 for n in range(12)])


@pytest.mark.parametrize("text", ["S{s}-{n}.png", "GT{s}-1-400-{n}.png"])
def test_the_first_dash_decides_where_nothing_suggests_anything_else(text):
    paths, kinds, _ = names(text)
    groups, how = resolve_groups(paths, kinds=kinds)
    assert groups == [path.name.split("-")[0] for path in paths] and how == "file name up to the first '-'"


@pytest.mark.parametrize(
    "text", ["{n}.png", "patch{n}.png", "patch_{n}.png", "c{c}-{n}.png", "a/{c}_{n}.png", "({n}).png", "0.{n}.png"]
)
def test_every_patch_is_by_itself_where_nothing_suggests_a_group(text):
    paths, kinds, _ = names(text)
    groups, how = resolve_groups(paths, kinds=kinds)
    assert groups == [path.with_suffix("").as_posix() for path in paths] and how.startswith("every patch by itself")


@pytest.mark.parametrize("text", ["P1-{n}.png", "slide12_{n}.png"])
def test_one_beginning_of_all_names_is_told(text):
    groups, how = resolve_groups([PurePath(text.format(n=n)) for n in range(8)], kinds=[n % 2 for n in range(8)])
    assert len(set(groups)) == 8 and re.search("all names begin with '(P1|slide12)': if that is one patient", how)
    assert "begin with" not in resolve_groups([PurePath(f"patch_{n}.png") for n in range(8)])[1]


def test_hashes_are_no_beginnings_of_names():
    paths = [PurePath(f"{hashlib.sha256(bytes([n])).hexdigest()}.png") for n in range(40)]
    assert resolve_groups(paths, kinds=[n % 2 for n in range(40)])[0] == [path.stem for path in paths]


def test_a_folder_that_only_some_have_is_said_to_fit_some():
    paths, kinds, slides = names("{s}-{n}.png")
    folders = [(slide,) if row < 8 else () for row, slide in enumerate(slides)]
    with pytest.raises(DataError, match=r"--group-by folder .*; does not fit 4 of 12"):
        resolve_groups(paths, folders=folders, kinds=kinds)


def test_a_choice_is_taken_as_it_is():
    paths, _, _ = names("{s}_{n}.png")
    assert resolve_groups(paths, "none")[0] == [path.stem for path in paths]
    assert resolve_groups(paths, "^1")[0] == ["1"] * 12
