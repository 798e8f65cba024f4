"""Which series is which modality: common names, rules, and all that is refused instead of guessed."""

from pathlib import Path

import pytest

pytest.importorskip("pydicom")

from shared.apps.preparation.dicom_series import Series, choose_all, choose_series, group_series
from shared.apps.preparation.glioma import WORDS
from shared.apps.preparation.matching import Lacking
from shared.data.dicom.headers import Frame, Instance
from shared.data.dicom.rules import parse_series

MR = "1.2.840.10008.5.1.4.1.1.4"


def series(description, number=1, count=6, **values):
    header = {
        "SeriesDescription": description,
        "SeriesNumber": number,
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "SOPClassUID": MR,
    }
    header |= {
        "SeriesInstanceUID": f"1.{number}",
        "StudyInstanceUID": "9",
        "FrameOfReferenceUID": "8",
        "PatientID": "P1",
    }
    frame = Frame((0, 0, 0), (1, 0, 0, 0, 1, 0), (1, 1), 1, 0)
    one = [
        Instance(
            Path("x"),
            header | {"SOPInstanceUID": f"1.{number}.{k}"} | values,
            (frame,),
            "",
            ("", ""),
            frozenset({"anna"}),
        )
        for k in range(count)
    ]
    return Series(f"1.{number}", tuple(one))


LIVER = [
    *("t1_vibe_fs_tra_pre", "t1_vibe_fs_tra_arterial", "t1_vibe_fs_tra_portal_venous", "t1_vibe_fs_tra_late"),
    *("t2_haste_cor", "ep2d_diff_b50_800_TRACEW", "t1_vibe_sub_portal", "AAHead_Scout", "T2 pre"),
]
BRAIN = ["AX T1 PRE", "AX T1 POST GD", "AX T2 FSE", "AX T2 FLAIR", "t1 post mprage", "DTI 64 FA"]


def chosen(descriptions, modality, words=None):
    return choose_series("P1", [series(text, k) for k, text in enumerate(descriptions)], modality, None, words)


@pytest.mark.parametrize(
    ("modality", "number"),
    [("T1", 0), ("T1A", 1), ("T1V", 2), ("PVP", 2), ("T1D", 3), ("T2", None)],
)
def test_phases_of_the_liver(modality, number):
    found, problems = chosen(LIVER, modality)
    if number is None:  # two are T2: none is guessed
        assert found is None and "2 series are T2" in problems[0]
    else:
        assert not problems and found.values["SeriesNumber"] == number


def test_sequences_of_brats():
    found, problems = choose_all("P1", [series(text, k) for k, text in enumerate(BRAIN[:4])], [*WORDS], {}, WORDS)[:2]
    assert not problems and [found[name].values["SeriesNumber"] for name in WORDS] == [0, 1, 2, 3]
    assert "2 series are T1c" in chosen(BRAIN, "T1c", WORDS["T1c"])[1][0]


def test_candidates_are_listed_without_names():
    found, (line,) = chosen(["T1 portal Anna", "portal 19610101 P1"], "T1V")
    assert found is None and not isinstance(line, Lacking)
    assert "'T1 portal ...'" in line and "'portal ... ...'" in line and "Choose one: --series T1V=" in line


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "ImageType holds DERIVED"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "ImageType holds LOCALIZER"),
        ({"count": 2}, "2 images only"),
        ({"description": "portal scout"}, "scout"),
    ],
)
def test_derived_series_and_scouts_need_a_rule_on_image_type(values, reason):
    one = series(values.pop("description", "T1 portal"), **values)
    found, (line,) = choose_series("P1", [one], "T1V", None, None)
    assert found is None and isinstance(line, Lacking) and reason in line
    rules = parse_series(["T1V=SeriesDescription~portal"], ["T1V"])["T1V"]
    found, (line,) = choose_series("P1", [one], "T1V", rules, None)
    assert found is None and reason in line
    if "ImageType" in values:
        rules = parse_series(["T1V=SeriesDescription~portal & ImageType~" + values["ImageType"][2]], ["T1V"])["T1V"]
        assert choose_series("P1", [one], "T1V", rules, None) == (one, [])


def test_contrast_agent_speaks_against_native():
    found, (line,) = choose_series("P1", [series("t1 vibe", ContrastBolusAgent="Gd")], "T1", None, None)
    assert found is None and "contrast agent" in line
    assert "of a contrast agent" in choose_series("P1", [series("t1 mprage +C")], "T1", None, WORDS["T1"])[1][0]
    for name in ("t1 vibe dyn", "T1 dynamic", "T1 Kontrast", "t1 vibe 20s", "T1 tra 3 min"):
        assert choose_series("P1", [series(name)], "T1", None, None)[0] is None, name
    rules = parse_series(["T1=SeriesDescription~vibe"], ["T1"])["T1"]
    assert choose_series("P1", [series("t1 vibe", ContrastBolusAgent="Gd")], "T1", rules, None)[0]


def test_screen_shots_and_reports_are_no_candidates():
    shot = series("T1 portal", 1, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    assert choose_series("P1", [shot, series("T1 portal", 2)], "T1V", None, None)[0].values["SeriesNumber"] == 2


def test_a_rule_may_take_a_part_of_a_series_and_that_is_told():
    both = series("T1 portal")
    half = Series(
        both.uid,
        tuple(
            Instance(o.path, {**o.values, "AcquisitionNumber": k % 2}, *list(vars(o).values())[2:])
            for k, o in enumerate(both.instances)
        ),
    )
    rules = parse_series(["T1V=AcquisitionNumber=1"], ["T1V"])
    found, problems, flags = choose_all("P1", [half], ["T1V"], rules, {})
    assert not problems and found["T1V"].frames == 3 and "takes 3 of 6 images" in flags[0]


def test_one_series_twice_two_studies_two_frames():
    portal, late = series("T1 portal", 1), series("T1 late", 2, StudyInstanceUID="7", FrameOfReferenceUID="6")
    _, problems, flags = choose_all("P1", [portal, late], ["T1V", "T1D"], {}, {})
    assert "2 studies" in problems[0] and "2 frames of reference" in flags[0]
    rules = parse_series(["T1V=SeriesNumber=1", "T1D=SeriesNumber=1"], ["T1V", "T1D"])
    assert "one series is T1V and T1D" in choose_all("P1", [portal, late], ["T1V", "T1D"], rules, {})[1][0]


def test_series_are_grouped_and_ordered():
    mixed = [one for k in (3, 1) for one in series("x", k).instances]
    assert [one.values["SeriesNumber"] for one in group_series(mixed[::-1])] == [1, 3]
