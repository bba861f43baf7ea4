"""The rows of files of every kind: the same for each, and what wrong input is told."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pipeline.data.file_kinds import COMPRESSIONS
from gpt_pipeline.data.formats.text import TextFormat
from gpt_pipeline.data.readers import records
from gpt_pipeline.data.readers.rows import count_rows, read_rows
from gpt_pipeline.data.readers.wanted import MAX_DOCUMENT_BYTES, Wanted
from gpt_pipeline.errors import UnreadableFileError

ROWS = [
    {"body": "One.", "meta": {"lang": "en", "score": 3}},
    {"body": 'Two, "quoted"\nand é \u2603 \x00', "meta": {"lang": "de", "score": 2.5}},
    {"body": "", "meta": {"lang": None, "score": None}},
]
WANTED = Wanted(texts=("body",), values=("meta.lang", "meta.score"), remedy="set data.columns.text")


def write_json_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\r\n\n" for row in ROWS), encoding="utf-8-sig", newline="")


def write_json(path: Path) -> None:
    path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8")


def write_json_objects(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS), encoding="utf-8")


def table() -> pa.Table:
    return pa.Table.from_pylist(ROWS)


def write_parquet(path: Path) -> None:
    pq.write_table(table(), path)


def write_arrow_stream(path: Path) -> None:
    with pa.ipc.new_stream(path, table().schema) as writer:
        writer.write_table(table())


def write_arrow_file(path: Path) -> None:
    with pa.ipc.new_file(path, table().schema) as writer:
        writer.write_table(table())


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for number, row in enumerate(ROWS):
            for end, content in (("body", str(row["body"]).encode()), ("meta", b""), ("jpg", b"\xff\xd8")):
                member = tarfile.TarInfo(f"shard/{number:04}.{end}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def read(path: Path, wanted: Wanted = WANTED, batch_rows: int | None = None) -> list[list[object]]:
    batches = list(read_rows(path, wanted, batch_rows=batch_rows))
    return [list(row.values()) for batch in batches for row in batch.to_pylist()]


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_json_lines),
        ("a.json", write_json),
        ("b.json", write_json_objects),
        ("a.parquet", write_parquet),
        ("a.arrow", write_arrow_stream),
        ("b.arrow", write_arrow_file),
    ],
)
@pytest.mark.parametrize("batch_rows", [None, 1])
def test_read_rows_of_each_kind_are_the_same_with_columns_inside_others(
    tmp_path: Path, name: str, write: Callable[[Path], None], batch_rows: int | None
) -> None:
    write(tmp_path / name)
    found = read(tmp_path / name, batch_rows=batch_rows)
    assert found == [["One.", "en", "3"], [ROWS[1]["body"], "de", "2.5"], ["", None, None]]
    with (tmp_path / name).open("rb") as file:
        assert count_rows(file, name, WANTED) >= len(ROWS)


@pytest.mark.parametrize(("end", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_read_rows_of_a_table_keep_quoted_line_ends(tmp_path: Path, end: str, delimiter: str) -> None:
    path = tmp_path / f"a.{end}"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([["n", "body"], ["1", "One,\r\n\t“two”"], ["2", "x"]])
    assert read(path, Wanted(texts=("body",), values=("n",))) == [["One,\r\n\t“two”", "1"], ["x", "2"]]


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("head", [["n", "body"], ["n, m", "body"], ["n\n(short)", "body"]])
def test_read_rows_of_a_csv_without_commas_in_its_first_line_are_parted_by_what_stands_there(
    tmp_path: Path, delimiter: str, head: list[str]
) -> None:
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        table.writerows([head, ["1,5", "One;\r\n\ttwo, three"]])
    assert read(tmp_path / "a.csv", Wanted(texts=("body",), values=(head[0],))) == [["One;\r\n\ttwo, three", "1,5"]]


def test_read_rows_of_a_table_whose_other_columns_have_no_names_of_their_own_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,,\nx,1,2\n", encoding="utf-8")  # as from a sheet with empty columns
    assert read(tmp_path / "a.csv", Wanted(texts=("text",))) == [["x"]]


def test_read_rows_of_a_tar_are_its_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar")
    found = read(tmp_path / "a.tar", Wanted(texts=("body",), values=("__key__",)))
    assert found == [[row["body"], f"shard/{number:04}"] for number, row in enumerate(ROWS)]


@pytest.mark.parametrize(
    ("split_at", "found"),
    [
        (None, ["one\n\ntwo<|x|>\nthree"]),
        ("line", ["one", "two<|x|>", "three"]),
        ("<|x|>", ["one\n\ntwo", "three"]),
        ("<|nowhere|>", ["one\n\ntwo<|x|>\nthree"]),
    ],
)
def test_read_rows_of_a_text_end_where_they_are_said_to(tmp_path: Path, split_at: str | None, found: list[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo<|x|>\r\nthree\r\n")
    wanted = Wanted(texts=("text",), values=("file",), split_at=split_at)
    assert read(tmp_path / "a.txt", wanted) == [[text, "a.txt"] for text in found]
    assert count_rows(tmp_path / "a.txt", "a.txt", wanted) >= len(found)


@pytest.mark.parametrize("split_at", ["\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_read_rows_of_a_text_split_at_blank_lines_are_the_same_with_either_line_end(
    tmp_path: Path, split_at: str, end: str
) -> None:
    around = (1 << 20) - 3  # so that line ends lie where the file is read in pieces
    text = f"{'a' * around}\n\none\ntwo\n\nthree\n"
    for cut in range(4):
        (tmp_path / "a.txt").write_text(text[cut:], encoding="utf-8", newline=end)
        wanted = Wanted(texts=("text",), split_at=split_at)
        assert read(tmp_path / "a.txt", wanted) == [["a" * (around - cut)], ["one\ntwo"], ["three"]]
        assert count_rows(tmp_path / "a.txt", "a.txt", wanted) == 3


compressed = pytest.mark.parametrize(
    ("end", "compress"),
    [
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
        (".zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
    ],
)


@compressed
def test_read_rows_of_a_compressed_file_are_its_own_and_a_truncated_one_is_named(
    tmp_path: Path, end: str, compress: Callable[[bytes], bytes]
) -> None:
    lines = b"".join(json.dumps({"text": f"{number} {number**5}"}).encode() + b"\n" for number in range(5000))
    path = tmp_path / f"a.jsonl{end}"
    path.write_bytes(compress(lines))
    wanted = Wanted(texts=("text",))
    assert read(path, wanted) == [[json.loads(line)["text"]] for line in lines.splitlines()]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableFileError, match=rf"a\.jsonl{end}: damaged \(.+\); bring the file here again"):
        read(path, wanted)


@compressed
def test_read_rows_of_several_compressed_streams_are_those_of_each_unless_one_is_damaged(
    tmp_path: Path, end: str, compress: Callable[[bytes], bytes]
) -> None:
    path, wanted = tmp_path / f"a.jsonl{end}", Wanted(texts=("text",))
    texts = [str(number) * 1_000_000 for number in range(3)]
    streams = [compress(json.dumps({"text": text}).encode() + b"\n") for text in texts]
    path.write_bytes(b"".join(streams))
    assert [row[0] for row in read(path, wanted)] == texts
    for second in (b"X" + streams[1][1:], streams[1][:3], b"no stream"):
        path.write_bytes(streams[0] + second)
        with pytest.raises(UnreadableFileError, match=rf"a\.jsonl{end}: damaged"):
            read(path, wanted)


@pytest.mark.parametrize(("end", "compress"), [(".xz", lzma.compress), (".bz2", bz2.compress), (".gz", gzip.compress)])
def test_read_rows_of_a_compressed_stream_filled_up_with_zeros_are_its_own(
    tmp_path: Path, end: str, compress: Callable[[bytes], bytes]
) -> None:
    stream = compress(b'{"text": "x"}\n') + b"\0" * 512
    (tmp_path / f"a.jsonl{end}").write_bytes(stream + stream)
    assert read(tmp_path / f"a.jsonl{end}", Wanted(texts=("text",))) == [["x"], ["x"]]


@compressed
def test_read_rows_of_a_compressed_arrow_stream_are_its_own(
    tmp_path: Path, end: str, compress: Callable[[bytes], bytes]
) -> None:
    write_arrow_stream(tmp_path / "a.arrow")
    (tmp_path / f"a.arrow{end}").write_bytes(compress((tmp_path / "a.arrow").read_bytes()))
    assert read(tmp_path / f"a.arrow{end}") == read(tmp_path / "a.arrow")


def dropped(path: Path, **settings: str) -> dict[str, int]:
    """Return why rows of `path` become no documents."""
    format = TextFormat(column="text", **settings)
    counts = [format.select(batch).dropped for batch in read_rows(path, format.columns)]
    return dict(sum(counts[1:], counts[0]))


def test_read_rows_that_no_document_can_be_are_counted_by_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "invalid \xff\xfe"}',
        rb'{"text": "a lone surrogate \ud800"}',
        b'{"text": null, "other": 1}',
        b'{"other": 1}',
        b'{"text": "' + b"x" * (MAX_DOCUMENT_BYTES + 1) + b'"}',
        b'{"text": "' + b"x" * (17 << 20) + b'"}',  # not even read as JSON
        b'{"text": "good, too"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert dropped(tmp_path / "a.jsonl") == {"invalid_utf8": 2, "no_text": 2, "too_long": 2}
    (tmp_path / "a.csv").write_bytes(b"text\ngood\n\xff\xfe\n" + b"x" * (17 << 20) + b"\ngood too\n")
    assert dropped(tmp_path / "a.csv") == {"invalid_utf8": 1, "too_long": 1}
    (tmp_path / "a.txt").write_bytes(b"good<>" + b"x" * (17 << 20) + b"<>good, too<> <>")
    assert dropped(tmp_path / "a.txt", split_at="<>") == {"too_long": 1}
    assert dropped(tmp_path / "a.txt") == {"too_long": 1}


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
@pytest.mark.parametrize("split_at", [None, "line", "<>"])
def test_read_rows_of_utf16_says_so_rather_than_reading_nuls(
    tmp_path: Path, name: str, order: str, split_at: str | None
) -> None:
    (tmp_path / name).write_bytes("\ufefftext\nmore\n".encode(order))
    with pytest.raises(UnreadableFileError, match=r"a\.\w+: found UTF-16, need UTF-8"):
        read(tmp_path / name, Wanted(texts=("text",), split_at=split_at))


def test_read_rows_of_a_table_with_a_quote_without_end_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_MAX_WHOLE_CHARACTERS", 1_000)
    (tmp_path / "a.csv").write_text('text\n"no end\n' + "more\n" * 1_000, encoding="utf-8")
    with pytest.raises(
        UnreadableFileError, match=r"a\.csv, line 2\d\d: field larger .* begins in line 2; see whether a quote in it"
    ):
        read(tmp_path / "a.csv", Wanted(texts=("text",)))


def test_read_rows_column_that_is_null_for_long_is_read(tmp_path: Path) -> None:
    lines = ['{"text": null}\n'] * 30_000 + ['{"text": "late", "more": [1]}\n']
    (tmp_path / "a.jsonl").write_text("".join(lines), encoding="utf-8")
    found = read(tmp_path / "a.jsonl", Wanted(texts=("text",)))
    assert len(found) == 30_001
    assert found[-1] == ["late"]


NULL_OUTSIDE = [{"body": "One.", "meta": None}, {"body": "Two.", "meta": None}]


@pytest.mark.parametrize("end", ["jsonl", "parquet", "arrow"])
def test_read_rows_column_inside_one_that_is_null_in_every_row_is_null(tmp_path: Path, end: str) -> None:
    path, found = tmp_path / f"a.{end}", pa.Table.from_pylist(NULL_OUTSIDE)
    if end == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in NULL_OUTSIDE), encoding="utf-8")
    elif end == "parquet":
        pq.write_table(found, path)
    else:
        with pa.ipc.new_stream(path, found.schema) as writer:
            writer.write_table(found)
    assert read(path) == [["One.", None, None], ["Two.", None, None]]


def test_read_rows_column_inside_one_that_is_null_here_and_there_has_to_be_somewhere(tmp_path: Path) -> None:
    rows = [NULL_OUTSIDE[0], ROWS[0]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(
        UnreadableFileError, match=r"lacks the column meta\.lag; .*nearest: meta\.lang; correct the key .*data\.filter"
    ):
        read(tmp_path / "a.jsonl", Wanted(texts=("body",), values=("meta.lag",), remedy="set data.columns.text"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv", *(f"a.jsonl{end}" for end in COMPRESSIONS)])
def test_read_rows_of_an_empty_file_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert read(tmp_path / name, Wanted(texts=("text",))) == []
    with (tmp_path / name).open("rb") as file:
        assert count_rows(file, name, Wanted(texts=("text",))) <= 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"txt": "x"}\n', r"a\.jsonl: lacks the column text; found txt; nearest: txt; do this"),
        ("a.jsonl", '{"text": "x"}\n{"text": ["y"]}\n', r"a\.jsonl, line 2: text is a list, need text; do this"),
        ("a.jsonl", '{"text": 5}\n', r"a\.jsonl, line 1: text is a number, need text; do this, or write"),
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl, line 2: not JSON \(.*\); it begins with"),
        ("a.jsonl", '[{"text": "x"},\n{"text": "y"}]\n', r"a\.jsonl, line 1: not JSON .* in a file named \.json"),
        ("a.json", '["x"]', r"a\.json, record 1: found text, need an object"),
        ("a.jsonl", "[1, 2]\n", r"a\.jsonl, line 1: found a list, need an object"),
        ("a.json", '[{"text": "x"}, {"text": "y"', r"record 2: not JSON .*; need a list .* bring the file here again$"),
        ("a.json", '[{"text": "x"},\n{"text": "y"},\n', r"a\.json: ends before its list does, after 2 records; bring"),
        ("a.json", "[", r"a\.json: ends before its list does, after 0 records"),
        (
            "a.json",
            '[{"text": "x"}]\n[{"text": "y"}]',
            r"a\.json: found '\[{\"text\".* behind the end of its list, need",
        ),
        ("a.json", "[]" + " " * (2 << 20) + "rest", r"a\.json: found 'rest' behind the end of its list"),
        ("a.json", '{"text": "x"}]{"text": "y"}', r"a\.json, record 2: not JSON"),
        ("a.tsv", 'n\ttext\n1\t"Stay\n2\tgo\n3\t"so\n', r"a\.tsv, line 4: .* begins in line 2; see whether a quote in"),
        ("a.csv", 'n,text\n1,"whole"\n\n2,"cut in the mid', r"a\.csv, line 4: unexpected end .* begins in line 4; see"),
        ("a.csv", "text,n\nx,1\ny\n", r"a\.csv, line 3: found 1 fields, need the 2 of its first line \(text, n\)"),
        ("a.csv", "text,text\nx,1\n", r"a\.csv: has the column text 2 times, need it once; rename the others$"),
        ("a.csv", "body\nx\n", r"a\.csv: lacks the column text; found body; do this"),
        ("a.gone", None, r"a\.gone: cannot be read"),
        ("a.tar", "no archive", r"a\.tar: damaged"),
        ("a.jsonl", '{"text": "x"}\n' + "\0" * 4099, r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, r"a\.jsonl, line 1: not JSON"),
        ("a.arrow", "no arrow", r"a\.arrow: damaged"),
        ("a.arrow", "", r"a\.arrow: is empty \(0 bytes\); bring the file here again, or remove it"),
        ("a.parquet", "", r"a\.parquet: not a readable parquet file .* has 0 bytes; download it again"),
        ("a.tar", "", r"a\.tar: damaged \(empty file\); bring the file here again"),
    ],
)
def test_read_rows_of_a_wrong_file_name_it_with_place_and_remedy(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UnreadableFileError, match=said):
        read(tmp_path / name, Wanted(texts=("text",), remedy="do this"))


def test_read_rows_long_json_records_span_chunks(tmp_path: Path) -> None:
    texts: Sequence[str] = [str(number) * 400_000 for number in range(30)]
    (tmp_path / "a.json").write_text(json.dumps([{"text": text} for text in texts]), encoding="utf-8")
    batches = list(read_rows(tmp_path / "a.json", Wanted(texts=("text",))))
    assert [text for batch in batches for text in batch["text"].to_pylist()] == texts
    assert len(batches) > 1


def test_read_rows_of_many_short_json_records_take_their_time_once(tmp_path: Path) -> None:
    records = [{"text": f"number {number}"} for number in range(60_000)]
    (tmp_path / "a.json").write_text(json.dumps(records), encoding="utf-8")  # 1.6 MB: a minute, if each copied the rest
    assert [row[0] for row in read(tmp_path / "a.json", Wanted(texts=("text",)))] == [each["text"] for each in records]


def test_read_rows_of_a_tar_leave_out_what_macos_adds(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (("._0.txt", b"\x00\x05"), (".DS_Store", b"\xff"), ("0.txt", b"text")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert read(tmp_path / "a.tar", Wanted(texts=("txt",))) == [["text"]]


@pytest.mark.parametrize("end", ["tar", "arrow"])
def test_read_rows_of_an_archive_or_a_stream_cut_anywhere_is_refused(tmp_path: Path, end: str) -> None:
    """Also at the edge of a member or a batch, where the libraries see an end as good as any."""
    path = tmp_path / f"a.{end}"
    write_tar(path) if end == "tar" else write_arrow_stream(path)
    whole = path.read_bytes()
    wanted = Wanted(texts=("body",))
    members = len(whole.rstrip(b"\0")) if end == "tar" else len(whole) - 1
    for cut in range(8, members, 8 if end == "arrow" else 128):
        path.write_bytes(whole[:cut])
        with pytest.raises(UnreadableFileError, match=rf"a\.{end}: "):
            read(path, wanted)


@pytest.mark.parametrize(
    ("end", "said"), [("tar", "leave archives apart that were joined$"), ("arrow", "behind the end of its stream")]
)
def test_read_rows_of_joined_archives_or_streams_are_not_those_of_the_first_alone(
    tmp_path: Path, end: str, said: str
) -> None:
    path = tmp_path / f"a.{end}"
    write_tar(path) if end == "tar" else write_arrow_stream(path)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UnreadableFileError, match=said):
        read(path, Wanted(texts=("body",)))


def test_read_rows_of_a_tar_with_a_damaged_header_do_not_end_there(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar")
    content = bytearray((tmp_path / "a.tar").read_bytes())
    at = content.index(b"shard/0001.body")
    content[at] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(
        UnreadableFileError, match=rf"found no member at byte {at}, .*bad checksum\); bring the .*again$"
    ):
        read(tmp_path / "a.tar", Wanted(texts=("body",)))
    content[at : at + 512] = bytes(512)
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(
        UnreadableFileError, match=r"found one block of zeros with something behind .*; bring the .*again"
    ):
        read(tmp_path / "a.tar", Wanted(texts=("body",)))


def test_read_rows_of_a_tar_with_rubbish_behind_its_end_are_its_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar")
    content = bytearray((tmp_path / "a.tar").read_bytes())
    wanted = Wanted(texts=("body",))
    whole = read(tmp_path / "a.tar", wanted)
    end = len(content.rstrip(b"\0")) // 512 * 512 + 3 * 512
    content[end:] = bytes(range(256)) * ((len(content) - end) // 256) + b"rest"
    (tmp_path / "a.tar").write_bytes(content)
    assert read(tmp_path / "a.tar", wanted) == whole


def test_read_rows_of_a_tar_ended_as_its_error_says_are_its_samples(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar")
    whole = read(tmp_path / "a.tar", Wanted(texts=("body",)))
    members = (tmp_path / "a.tar").read_bytes().rstrip(b"\0")
    padded = members + b"\0" * (-len(members) % 512)
    (tmp_path / "a.tar").write_bytes(padded)
    with pytest.raises(
        UnreadableFileError, match=r"a\.tar: found no .*; bring the .* again, or, where it is .* FILE`$"
    ):
        read(tmp_path / "a.tar", Wanted(texts=("body",)))
    for zeros in (512, 1024):  # GNU tar takes one block, too
        (tmp_path / "a.tar").write_bytes(padded + b"\0" * zeros)
        assert read(tmp_path / "a.tar", Wanted(texts=("body",))) == whole


def test_read_rows_of_a_compressed_file_in_arrows_file_format_are_refused_for_what_it_is(tmp_path: Path) -> None:
    write_arrow_file(tmp_path / "b.arrow")
    (tmp_path / "b.arrow.gz").write_bytes(gzip.compress((tmp_path / "b.arrow").read_bytes()))
    with pytest.raises(UnreadableFileError, match=r"b\.arrow\.gz: Arrow's file format is read from its end"):
        read(tmp_path / "b.arrow.gz")


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.arrow"])
def test_read_rows_of_a_file_that_is_not_there_says_what_to_do(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableFileError, match=rf"{name}: cannot be read \(.+\); let this user read it, or bring"):
        read(tmp_path / name)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_read_rows_of_a_tar_whose_member_has_a_name_beyond_measure_hold_none_of_it(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("a")
    member.type, member.size = kind, 64 << 20  # some kilobytes of the file
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write(member.tobuf(tarfile.USTAR_FORMAT) + bytes(member.size))
    tracemalloc.start()
    with pytest.raises(UnreadableFileError, match="found 67,108,864 bytes of a member's name or attributes, need"):
        read(tmp_path / "a.tar.gz", Wanted(texts=("body",)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < member.size / 4


def test_read_rows_of_a_tar_of_headers_without_a_member_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("a")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 512
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
        file.write((header.tobuf(tarfile.USTAR_FORMAT) + bytes(512)) * 3_000)
    with pytest.raises(UnreadableFileError, match="found hundreds of headers without a member, need one or two"):
        read(tmp_path / "a.tar.gz", Wanted(texts=("body",)))
