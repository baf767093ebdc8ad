"""Files with items of a data set: which form they have, and what is in them.

A form is told by its fields, which are those of the published files: gsm8k's and MATH-500's JSON
lines, GPQA's CSV. JSON lines, a JSON list and CSV are read.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from glmquant.errors import MeasureError, UsageError
from glmquant.storage import reading
from glmquant.survey import printable

MAX_NBYTES: Final = 500_000_000

_TAKEN: Final = frozenset(("", "gsm8k", "gpqa", "math500", "mtp", "random", "tutorial", "prefix"))
"""First words of names under which something else than a file's items is known."""

_NUMBER: Final = re.compile(r"-?\$?\d[\d,]*(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Form:
    """How the items of a data set are written down.

    Attributes:
        name: The data set's.
        question: The field with the question.
        fields: All that an item needs, each a text that is not empty.
        files: What its file is called in a folder, best first.
        published: How many items the published file has.
    """

    name: str
    question: str
    fields: tuple[str, ...]
    files: tuple[str, ...]
    published: int


_WRONG: Final = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))

FORMS: Final = {
    form.name: form
    for form in (
        Form("gsm8k", "question", ("question", "answer"), ("test.jsonl", "gsm8k/test.jsonl"), 1319),
        Form(
            "gpqa",
            "Question",
            ("Question", "Correct Answer", *_WRONG),
            ("gpqa_diamond.csv", "gpqa/gpqa_diamond.csv", "gpqa_diamond.jsonl"),
            198,
        ),
        Form(
            "math500",
            "problem",
            ("problem", "answer"),
            ("test.jsonl", "math500.jsonl", "test_prm800k_500.jsonl", "test_prm800k_500.json"),
            500,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class DataFile:
    """The items of a file.

    Attributes:
        path: The file.
        form: Its form.
        items: Field → text, of each item in its order; only what an item needs, and ``solution``
            where there is one.
        examples: Items of a ``train.jsonl`` beside it, to be shown before each question.
    """

    path: Path
    form: Form
    items: tuple[dict[str, str], ...]
    examples: tuple[dict[str, str], ...] = ()

    @property
    def dataset(self) -> str:
        """The known data set, where there are as many items as it has; else the file's own name.

        A name that begins as one under which something else is known, by its first word, does not
        stand alone: a card and published figures would take it for that.
        """
        count, stem = len(self.items), self.path.stem.strip()
        if count == self.form.published:
            return self.form.name
        if re.split(r"[^a-z0-9]", stem.lower())[0] not in _TAKEN:
            return stem
        return f"file {self.path.name} ({count:,} item{'s' * (count != 1)})"


def read_data(path: Path, dataset: str) -> DataFile:
    """The items of a file, or of a data set's file in a folder.

    Args:
        path: The file, or the folder.
        dataset: The data set's name, which decides where it is a known one.

    Raises:
        UsageError: The name is empty.
        MeasureError: There is no such file, its form is not known, or an item is not whole.
        StorageError: It cannot be read.
    """
    if not dataset.strip():
        raise UsageError(
            "no data set is named",
            where="--dataset",
            expected=f"one of {', '.join(FORMS)}, or a file",
            found=repr(dataset),
            hint="name the file: --dataset FILE.jsonl",
        )
    wanted = FORMS.get(dataset)
    file = _file_of(path, wanted)
    found = list(_objects(file))
    if not found:
        _refuse(file, "a data file holds no item", "at least one", "none", None)
    form = wanted or _form_of(file, found[0])
    train = file.with_name("train.jsonl")
    has_train = form.name == "gsm8k" and train != file and train.is_file()
    return DataFile(
        path=file,
        form=form,
        items=tuple(_item(file, form, number, each) for number, each in enumerate(found, 1)),
        examples=tuple(
            _item(train, form, number, each)
            for number, each in enumerate(_objects(train) if has_train else (), 1)
        ),
    )


def _file_of(path: Path, form: Form | None) -> Path:
    with reading(path):
        is_folder, is_file = path.is_dir(), path.is_file()
    if is_file:
        return path
    names = form.files if form else tuple({name for each in FORMS.values() for name in each.files})
    there = [path / name for name in names if (path / name).is_file()] if is_folder else []
    if not there:
        _refuse(
            path,
            "there is no data file",
            " or ".join(sorted(names)) if is_folder else "a file or folder",
            "a folder without one" if is_folder else "nothing that can be read",
            "name the file: --dataset FILE.jsonl",
        )
    return there[0]


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, however they are written."""
    with reading(path):
        nbytes = path.stat().st_size
        data = path.read_bytes() if nbytes <= MAX_NBYTES else b""
    if nbytes > MAX_NBYTES:
        _refuse(path, "a data file is too long", f"at most {MAX_NBYTES:,} bytes", f"{nbytes:,}")
    if data[:4] == b"PAR1":
        hint = (
            "write it as JSON lines, for example with pandas: to_json(orient='records', lines=True)"
        )
        _refuse(path, "a data file is Parquet", "JSON lines, a JSON list or CSV", "Parquet", hint)
    try:
        text = data.decode("utf-8-sig")
        if path.suffix.lower() == ".csv":
            yield from csv.DictReader(io.StringIO(text, newline=""), strict=True)
            return
        if text.lstrip().startswith("["):
            told = json.loads(text)
        else:
            told = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        _refuse(path, "a data file cannot be read", "JSON lines, a JSON list or CSV", str(error))
    for number, each in enumerate(told, start=1):
        if not isinstance(each, dict):
            where = f"{path}, item {number}"
            _refuse(where, "an item is no object", '{"question": …}', repr(each))
        yield each


def _form_of(path: Path, item: dict[str, Any]) -> Form:
    for form in FORMS.values():
        if all(field in item for field in form.fields):
            return form
    forms = "; ".join(f"{each.name}: {', '.join(each.fields)}" for each in FORMS.values())
    return _refuse(
        path,
        "the form of a data file is not known",
        f"the fields of one of these: {forms}",
        ", ".join(map(str, item)) or "no field",
        "rename its fields",
    )


def _item(path: Path, form: Form, number: int, told: dict[str, Any]) -> dict[str, str]:
    """The fields of an item as text; a number is taken for its text."""
    where = f"{path}, item {number}"
    optional = ("solution",) if form.name == "math500" else ()
    item: dict[str, str] = {}
    for field in (*form.fields, *optional):
        value = told.get(field)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            value = str(value)
        if isinstance(value, str) and value.strip():
            item[field] = _writable(where, field, value)
        elif field in form.fields:
            found = repr(value) if field in told else f"only {', '.join(map(str, told))}"
            _refuse(where, f"an item of {form.name} is not whole", f"a text in {field!r}", found)
    if form.name == "gsm8k":
        result = item["answer"].rpartition("####")[2].strip()
        if not _NUMBER.fullmatch(result):
            expected = 'a number, alone or behind "####" as in "#### 18"'
            _refuse(where, "an answer has no result", expected, item["answer"][-100:])
        if "####" not in item["answer"]:
            item["answer"] = f"#### {result}"
    return item


def _writable(where: str, field: str, text: str) -> str:
    """The same text, which a suite's file and a request can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = text[max(0, error.start - 20) : error.end + 20]
        expected = f"text in {field!r}, without half a surrogate pair"
        hint = "take the item out, or write the character that was meant"
        _refuse(where, "an item cannot be written as UTF-8", expected, found, hint)
    return text


def _refuse(
    where: Path | str, what: str, expected: str, found: str, hint: str | None = None
) -> NoReturn:
    raise MeasureError(
        what,
        where=printable(str(where), 300),
        expected=expected,
        found=printable(found, 300),
        hint=hint,
    )
