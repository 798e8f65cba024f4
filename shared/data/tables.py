"""Tables as spreadsheets write them; what could be read in two ways is refused."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from shared.data.names import clean, differing_in_case, look_alikes
from shared.errors import DataError

_MARKS = (  # UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_END = "\u0003"  # a row that is not read as such lies in a quotation that never ends


class Table(list[dict[str, str]]):
    """Rows of a table, names and values stripped and in Unicode's composed form.

    Attributes:
        delimiter: between its columns; encoding: of its text; numbers: of its rows, the header being row 1.
    """

    delimiter: str
    encoding: str
    numbers: list[int]


def decode(content: bytes, path: str | os.PathLike) -> tuple[str, str]:
    """Text of a file and its encoding: UTF-8, UTF-16 or UTF-32 (with or without byte-order mark), else Windows-1252.

    Raises:
        DataError: it is none of these.

    Example:
        >>> decode("Jörg;1\\n".encode("utf-16-be"), "x"), decode("Jörg;1\\n".encode("cp1252"), "x")
        (('Jörg;1\\n', 'utf-16-be'), ('Jörg;1\\n', 'cp1252'))
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            try:
                return content[len(mark) :].decode(encoding), encoding
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: says it is {encoding.upper()} and is not ({error}); save it anew") from error
    wide = b"\0" in content
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be") if wide else ("utf-8", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        # the wrong order of bytes gives text, too, in which no line ends
        if not wide or ("\0" not in text and {"\n", "\r"} & set(text)):
            return text, encoding
    raise DataError(f"{path}: is no text in UTF-8, UTF-16 or Windows-1252; save it as CSV in UTF-8")


def read_table(path: str | os.PathLike, columns: Sequence[str] = ()) -> Table:
    """Rows of a CSV as spreadsheets write it: any usual encoding, comma, semicolon, tab or bar, spaces around values.

    Empty columns and empty rows are left out.

    Args:
        path: the file; its encoding is found by :func:`decode`.
        columns: columns that must be there.

    Returns:
        one dictionary a row.

    Raises:
        DataError: no such file, empty, no rows, a column missing or twice, a quotation that does not end, values
            beyond the last column (as of decimal commas without quotation marks).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "labels.csv"
        >>> _ = path.write_bytes(b"\\xef\\xbb\\xbfpatient ; label;;\\r\\n P001 ; 1;;\\r\\n;;;\\r\\n")
        >>> read_table(path, ["label"])
        [{'patient': 'P001', 'label': '1'}]
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such label table; give the CSV file with one row per patient")
    content = path.read_bytes()
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{path}: is an Excel workbook; save the sheet as CSV and give that")
    table = Table()
    text, table.encoding = decode(content, path)
    table.delimiter, text = _delimiter(text)
    if not re.search(r"\w", text.partition("\n")[0]):
        raise DataError(f"{path}: the first line must name the columns, it is empty")
    end = "" if text.endswith(("\n", "\r")) else "\n"
    reader = csv.reader(io.StringIO(f"{text}{end}{_END}", newline=""), delimiter=table.delimiter, skipinitialspace=True)
    try:
        lines = [[clean(value) for value in row] if row != [_END] else row for row in reader]
    except csv.Error as error:
        raise DataError(f"{path}: is no CSV: {error} in line {reader.line_num}; save it anew") from error
    if lines.pop() != [_END]:
        raise DataError(f"{path}: a quotation mark in row {len(lines) + 1} is opened and not closed; correct the row")
    names = lines[0]
    while names and not names[-1]:
        names.pop()
    twice = sorted({name for name in names if name and names.count(name) > 1})
    problems = [f"{path}: column {name!r} appears twice" for name in twice]
    missing = [name for name in map(clean, columns) if name not in names]
    hints = look_alikes(missing, names)
    problems += [f"{path}: no column {name!r}; its columns are {', '.join(names)}{hints[name]}" for name in missing]
    beyond = [(number, row) for number, row in enumerate(lines[1:], 2) if any(row[len(names) :])]
    if beyond:
        number, row = beyond[0]
        more = f" (and {len(beyond) - 1} more)" if len(beyond) > 1 else ""
        problems.append(
            f"{path}: row {number}{more} has values beyond the last column {names[-1]!r}, as "
            f"{next(value for value in row[len(names) :] if value)!r}; name that column, and put values that hold "
            f"{table.delimiter!r} into quotation marks"
        )
    if problems:
        raise DataError(problems)
    found = [(number, row) for number, row in enumerate(lines[1:], 2) if any(row)]
    table.numbers = [number for number, _ in found]
    for _, row in found:
        cells = dict(zip(names, row, strict=False))
        table.append({name: cells.get(name, "") for name in names if name})
    if not table:
        raise DataError(f"{path}: has column names and no rows")
    return table


def _delimiter(text: str) -> tuple[str, str]:
    """What parts the columns, and the text without Excel's line ``sep=;``, which says so."""
    said = re.match(r'"?sep=(.)"?[^\S\n\r]*\r?[\n\r]', text, re.IGNORECASE)
    if said:
        return said[1], text[said.end() :]
    # The header alone decides: values may hold commas as decimal signs, quoted names anything.
    header = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", text, maxsplit=1)[0])
    return max(",;\t|", key=header.count), text


def rows_by_patient(rows: Sequence[Mapping[str, str]], column: str) -> tuple[dict[str, Mapping[str, str]], list[str]]:
    """Rows of a label table by patient, and what is wrong with them (no name, a patient twice, or in other capitals).

    Example:
        >>> rows_by_patient([{"id": "a"}, {"id": "a"}, {"id": ""}], "id")[1]
        ['a: appears twice in the label table (rows 2 and 3); keep one',
         "row 4 of the label table: column 'id' is empty"]
        >>> rows_by_patient([{"id": "P1"}, {"id": "p1"}], "id")[1]
        ['P1 and p1 differ in capitals only (rows 2 and 3 of the label table); keep one, or rename one of two patients']
    """
    found: dict[str, tuple[int, Mapping[str, str]]] = {}
    problems = []
    for number, row in zip(getattr(rows, "numbers", range(2, len(rows) + 2)), rows, strict=True):
        patient = row[column]
        if not patient:
            problems.append(f"row {number} of the label table: column {column!r} is empty")
        elif patient in found:
            first = found[patient][0]
            problems.append(f"{patient}: appears twice in the label table (rows {first} and {number}); keep one")
        else:
            found[patient] = (number, row)
    problems += [
        f"{a} and {b} differ in capitals only (rows {found[a][0]} and {found[b][0]} of the label table); keep one, or "
        "rename one of two patients"
        for a, b in differing_in_case(found)
    ]
    return {patient: row for patient, (_, row) in found.items()}, problems


def some(names: Iterable[str], limit: int = 5) -> str:
    """Up to ``limit`` names, and how many more there are.

    Example:
        >>> some(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
