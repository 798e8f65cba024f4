"""Rules on headers."""

import pytest

pytest.importorskip("pydicom")

from shared.data.dicom.rules import parse_series, passes
from shared.errors import DataError

HEADER = {
    "SeriesDescription": "t1 vibe PORTAL",
    "EchoTime": 2.4,
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "SeriesNumber": 7,
}


@pytest.mark.parametrize(
    ("rule", "takes"),
    [
        ("SeriesDescription~portal", True),
        ("SeriesDescription~^portal", False),
        ("SeriesDescription!~late", True),
        ("SeriesDescription=t1 vibe portal", True),
        ("SeriesDescription=portal", False),
        ("SeriesNumber=7.0", True),
        ("SeriesNumber!=7", False),
        ("EchoTime<3 & EchoTime>2", True),
        ("EchoTime<=2.4 & SeriesDescription~vibe & SeriesNumber>=8", False),
        ("ImageType=PRIMARY", True),
        ("ImageType~DERIVED", False),
        ("ImageType=original\\primary", True),  # as messages show it
        ("ImageType=PRIMARY\\ORIGINAL", False),
        ("ImageType!=DERIVED", True),
        ("RepetitionTime<3", False),  # a header that lacks it does not pass
        ("RepetitionTime!=3", True),
    ],
)
def test_comparisons(rule, takes):
    assert passes(parse_series([f"T1={rule}"], ["T1"])["T1"], HEADER) is takes


def test_several_rules_are_alternatives():
    rules = parse_series(["T1=SeriesNumber=6", "T1=SeriesNumber=7", "mask=Modality=SEG"], ["T1", "mask"])
    assert passes(rules["T1"], HEADER) and not passes(rules["T1"][:1], HEADER) and len(rules["mask"]) == 1


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("T9=SeriesNumber=1", "one of T1"),
        ("T1", "MODALITY=RULE"),
        ("T1=portal", "KEYWORD~TEXT"),
        ("T1=SeriesNumber=", "KEYWORD~TEXT"),
        ("T1=Description~x", "no attribute 'Description'"),
        ("T1=InstitutionName!~north", "tells who somebody is"),
        ("T1=EchoTime<low", "must be a number"),
        ("T1=SeriesDescription~(", "no regular expression"),
    ],
)
def test_refused(item, message):
    with pytest.raises(DataError, match=message):
        parse_series([item], ["T1"])
