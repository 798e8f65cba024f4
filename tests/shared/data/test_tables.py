"""Tables as spreadsheets, zip programs and hospitals leave them."""

import codecs

import pytest

from shared.data.tables import read_table, rows_by_patient
from shared.errors import DataError

TEXT = "patient;ort\r\nJörg;Köln\r\n"
ROWS = [{"patient": "Jörg", "ort": "Köln"}]


def write(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (TEXT.encode(), "utf-8"),
        (TEXT.encode("utf-8-sig"), "utf-8"),
        (TEXT.encode("cp1252"), "cp1252"),
        (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"), "utf-16-le"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "utf-16-be"),
        (TEXT.encode("utf-16-le"), "utf-16-le"),
        (TEXT.encode("utf-16-be"), "utf-16-be"),
        (codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"), "utf-32-le"),
        (TEXT.encode("utf-32-be"), "utf-32-be"),
        (TEXT.replace("\r\n", "\r").encode(), "utf-8"),
        (TEXT.replace("ö", "o\u0308").encode(), "utf-8"),
    ],
)
def test_any_usual_encoding_reads_alike(tmp_path, content, encoding):
    table = read_table(write(tmp_path, content), ["ort"])
    assert table == ROWS and table.encoding == encoding and table.delimiter == ";"


@pytest.mark.parametrize(
    "content", [b"patient;ort\nJ\x81rg;K\n", b"patient;ort\nJ\0rg;K\n", codecs.BOM_UTF16_LE + b"p\0a\0t"]
)
def test_other_bytes_are_refused_by_name(tmp_path, content):
    with pytest.raises(DataError, match="UTF-16"):
        read_table(write(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        "patient;age;;\nA;4;;\n;;;\nB;5;;\n",
        "patient;age\nA;4;;;\nB;5\n",
        'sep=;\npatient;age\nA;4\n"B";"5"\n',
        "patient|age\nA|4\nB|5\n",
        '"patient","age"\n"A","4"\n"B" ,5\n',
        ",patient,age\n0,A,4\n1,B,5\n",
    ],
)
def test_empty_columns_and_rows_are_ignored(tmp_path, content):
    assert read_table(write(tmp_path, content), ["age"]) == [{"patient": "A", "age": "4"}, {"patient": "B", "age": "5"}]


def test_quoted_cells_may_hold_anything(tmp_path):
    content = '"Age, in, years, at MRI";"patient";"note"\r\n"61,5";"Doe; J.";"first\nsecond"\r\n'
    assert read_table(write(tmp_path, content)) == [
        {"Age, in, years, at MRI": "61,5", "patient": "Doe; J.", "note": "first\nsecond"}
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "patient,age\nA,4\nB,61,5\n",
            "row 3 has values beyond the last column 'age', as '5'.*hold ',' into quotation",
        ),
        ("patient,age,\nA,61,5\nB,62,5\n", r"row 2 \(and 1 more\) has values beyond the last column 'age'"),
        ('patient,note,age\nA,"5 cm,4\nB,x,5\n', "a quotation mark in row 2 is opened and not closed"),
        ("patient,A\u030a,\u00c5\nP,1,2\n", "column 'Å' appears twice"),
        ("patient, age,age \nP,1,2\n", "column 'age' appears twice"),
        (
            "patient;;Age\nP;;1\n",
            "no column 'age'; its columns are patient, , Age; 'Age' looks alike, the difference: cap",
        ),
        ("patient,age\n", "has column names and no rows"),
        (";;;\nP;1;;\n", "the first line must name the columns"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_table(write(tmp_path, content), ["age"] if "ge" in content and "Å" not in content else [])


def test_rows_are_numbered_as_the_spreadsheet_shows_them(tmp_path):
    rows = read_table(write(tmp_path, "id;x\nA;1\n;\n\nA;2\nB;3\nb;4\n;5\n"))
    assert rows.numbers == [2, 5, 6, 7, 8]
    table, problems = rows_by_patient(rows, "id")
    assert list(table) == ["A", "B", "b"] and table["A"]["x"] == "1"
    assert problems == [
        "A: appears twice in the label table (rows 2 and 5); keep one",
        "row 8 of the label table: column 'id' is empty",
        "B and b differ in capitals only (rows 6 and 7 of the label table); keep one, or rename one of two patients",
    ]
