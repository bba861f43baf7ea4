from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data import columns

TEXTS = st.lists(st.none() | st.text(max_size=4), max_size=20)
SLICES = st.integers(0, 20)


@settings(deadline=None)
@given(values=TEXTS, first=SLICES, last=SLICES)
def test_columns_text_of_any_slice_has_its_bounds_and_sizes(values: list[str | None], first: int, last: int) -> None:
    column, values = pa.array(values, pa.string())[first:last], values[first:last]
    bounds, letters = columns.text_bounds(column), columns.text_bytes(column)
    found = [bytes(letters[bounds[i] : bounds[i + 1]]).decode() for i in range(len(column))]
    assert found == [value or "" for value in values]
    assert columns.text_sizes(column).tolist() == [len((value or "").encode()) for value in values]


@settings(deadline=None)
@given(values=TEXTS, first=SLICES, last=SLICES)
def test_columns_without_nulls_are_the_other_texts_in_order(values: list[str | None], first: int, last: int) -> None:
    column = pa.array(values, pa.string())[first:last]
    found = columns.without_nulls(column)
    found.validate(full=True)
    assert found.to_pylist() == [value for value in values[first:last] if value is not None]


def test_columns_without_nulls_that_take_room_are_right_all_the_same() -> None:
    whole = pa.array(["a", "hidden", "b"])
    validity = pa.py_buffer(np.packbits(np.array([True, False, True]), bitorder="little"))
    column = pa.Array.from_buffers(pa.string(), 3, [validity, *whole.buffers()[1:]])
    assert columns.without_nulls(column).to_pylist() == ["a", "b"]
    assert columns.text_sizes(column).tolist() == [1, 0, 1]


@settings(deadline=None)
@given(values=st.lists(st.none() | st.booleans(), max_size=30), first=SLICES, last=SLICES)
def test_columns_flags_of_any_slice_are_its_truths(values: list[bool | None], first: int, last: int) -> None:
    column = pa.array(values, pa.bool_())[first:last]
    assert columns.flags(column).tolist() == [bool(value) for value in values[first:last]]


@settings(deadline=None)
@given(values=st.lists(st.booleans(), max_size=30))
def test_columns_made_of_numbers_hold_them(values: list[bool]) -> None:
    truths, numbers = np.array(values, np.bool_), np.arange(len(values))
    assert columns.of_flags(truths).to_pylist() == values
    assert columns.of_indices(numbers).to_pylist() == numbers.tolist()
    assert columns.of_int32s(numbers, where=truths).to_pylist() == [
        number if value else None for number, value in zip(numbers.tolist(), values, strict=True)
    ]
    assert columns.int32s(columns.of_int32s(numbers)).tolist() == numbers.tolist()
    assert columns.int32s(columns.of_int32s(numbers, where=truths)).tolist() == (numbers * truths).tolist()


def test_columns_text_value_is_arrows_own() -> None:
    for text in ("", "\n\nA: ", "é", None):
        assert columns.text_value(text).equals(pa.scalar(text, pa.string()))


def test_columns_bytes_of_first_are_those_of_pythons_slices() -> None:
    random = np.random.default_rng(5)
    letters = ["a", "z", " ", "é", "ß", "語", "\U0001f600", "\x00", "\U0010ffff"]
    texts = ["".join(random.choice(letters, size)) for size in (0, 1, 7, 50, 0, 300, 2)] + ["\U0001f600" * 5, "é"]
    for whole, first in ((pa.array(texts), 0), (pa.array(["é!", *texts]), 1)):
        column = whole.slice(first)
        for _ in range(5):
            counts = np.array([random.integers(len(text) + 1) for text in texts], np.int32)
            expected = [len(text[:count].encode()) for text, count in zip(texts, counts.tolist(), strict=True)]
            assert columns.bytes_of_first(column, counts).tolist() == expected
        full = np.array([len(text) for text in texts], np.int32)
        assert columns.bytes_of_first(column, full).tolist() == [len(text.encode()) for text in texts]


def test_columns_counts_of_texts_that_are_shown_alike_are_added_up() -> None:
    column = columns.of_texts([b"null", None, b"a", b"null", None, None, b"\xff", b"\xfe"])
    assert columns.counts_of(column) == {"null": 5, "a": 1, "\ufffd": 2}


def test_documents_are_counted_and_made_without_pandas(tmp_path: Path) -> None:
    program = (
        "import sys, pyarrow as pa, pyarrow.parquet as pq\n"
        "from gpt_pipeline.data.formats.synth import COLUMNS, count_english_rows, documents_of, select\n"
        "from pathlib import Path\n"
        "from gpt_pipeline.data.columns import text_value\n"
        "row = pa.RecordBatch.from_arrays([pa.repeat(text_value('en'), 3)] * len(COLUMNS), names=list(COLUMNS))\n"
        "assert documents_of(select(row)).num_rows == 3\n"
        "pq.write_table(pa.Table.from_batches([row]), sys.argv[1])\n"
        "assert count_english_rows(Path(sys.argv[1]), 'a file') == 3\n"
        "assert 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "rows.parquet"], check=True)
