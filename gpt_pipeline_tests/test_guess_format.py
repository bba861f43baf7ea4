"""What files of one's own are guessed to be, and the experiment file that is written for them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.guess_format import look_at
from gpt_pipeline.data.readers.wanted import MAX_DOCUMENT_BYTES
from gpt_pipeline.errors import ConfigError, DataError
from gpt_pipeline.experiment.new import write_new_experiment
from gpt_pipeline_tests.synth_rows import rows, write_synth

PAGES = [{"path": f"p{n}", "area": "ab"[n % 2], "page": f"A long enough page number {n}.", "n": n} for n in range(20)]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


def test_look_at_texts_takes_the_longest_column_unless_a_name_says_more(own: Path) -> None:
    pq.write_table(pa.Table.from_pylist(PAGES), own / "a.parquet")
    look = look_at(str(own))
    assert (look.format, look.chosen, look.kinds) == ("text", {"text": "page"}, ["area"])
    assert look.columns == {"path": "text", "area": "text", "page": "text", "n": "number"}
    pq.write_table(pa.Table.from_pylist([{**page, "Body": "short"} for page in PAGES]), own / "a.parquet")
    assert look_at(str(own)).chosen == {"text": "Body"}


def test_look_at_files_of_which_the_first_is_empty_looks_into_the_next(own: Path) -> None:
    (own / "a.jsonl").write_text("", encoding="utf-8")
    (own / "b.jsonl").write_text('{"body": "Some text."}\n', encoding="utf-8")
    assert look_at(str(own)).chosen == {"text": "body"}


@pytest.mark.parametrize("name", ["Text\n(short) ☃\U0001f642", "a\tb", "\u2028x", "\x85'\"\\"])
def test_written_experiment_names_a_column_with_line_ends_and_the_like(own: Path, tmp_path: Path, name: str) -> None:
    (own / "a.jsonl").write_text(json.dumps({name: "Some text.", f"{name} kind": "a"}) + "\n", encoding="utf-8")
    written = write_new_experiment(tmp_path / "mine.yaml", data=str(own))
    assert written.config.data.columns.text == name


@pytest.mark.parametrize("head", ["text", "Größe"])
def test_look_at_a_table_of_windows_says_how_it_becomes_utf8(own: Path, head: str) -> None:
    (own / "a.csv").write_bytes(f"{head};n\nStraße;ä\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"a\.csv: .*; save the files as UTF-8, such as by `iconv"):
        look_at(str(own))


def test_look_at_a_table_of_windows_is_not_taken_for_the_column_that_it_can_read(own: Path) -> None:
    (own / "a.csv").write_bytes("Title;Text\nT1;Größe\nT2;Straße\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"a\.csv: found no UTF-8 in the column Text .*; save the files as UTF-8, such"):
        look_at(str(own))
    (own / "a.csv").write_bytes("Title;Text\nT1;Größe\nT2;size\n".encode("cp1252"))
    assert look_at(str(own)).chosen == {"text": "Text"}


def test_look_at_pictures_speaks_of_no_other_encoding(own: Path) -> None:
    pq.write_table(pa.table({"image": [b"\x89PNG\xff"], "label": [3]}), own / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: no column of text .* label \(number\); need a text in each"):
        look_at(str(own))


def test_look_at_questions_finds_their_parts_by_name(own: Path) -> None:
    with (own / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["Question", "Worked answer", "Result"], ["How many?", "Two and two.", "4"]])
    look = look_at(str(own / "a.csv"))
    assert look.format == "question_answer"
    assert look.chosen == {"question": "Question", "reasoning": "Worked answer", "answer": "Result"}


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"question": "How many?", "answer": 4}, "answer"),
        ({"problem": "How many?", "label": 1}, "label"),
        ({"question": "How many?", "answer": 4, "response": "Four."}, "response"),
    ],
)
def test_look_at_questions_whose_answers_are_numbers_does_not_take_the_questions_for_texts(
    own: Path, row: dict[str, Any], answer: str
) -> None:
    (own / "a.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    look = look_at(str(own))
    assert (look.format, look.chosen) == ("question_answer", {"question": next(iter(row)), "answer": answer})


@pytest.mark.parametrize("names", [("role", "content"), ("from", "value")])
def test_look_at_conversations_finds_the_list_of_messages(own: Path, names: tuple[str, str]) -> None:
    turns = [dict(zip(names, said, strict=True)) for said in (("user", "Why?"), ("assistant", "So."))]
    rows_of_own = [{"prompt": "Why?", "tags": ["a"], "talk": turns if n else None} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows_of_own), own / "a.parquet")
    assert (look_at(str(own)).format, look_at(str(own)).chosen) == ("chat", {"messages": "talk"})


def test_look_at_synth_and_plain_text_needs_no_columns(own: Path) -> None:
    write_synth(own / "synth_001.parquet", rows(5))
    assert (look_at(str(own)).format, look_at(str(own)).chosen) == ("synth", {})
    (own / "a.txt").write_text("Some text.", encoding="utf-8")
    assert (look_at(str(own / "a.txt")).format, look_at(str(own / "a.txt")).chosen) == ("text", {})


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("mark", "found"), [("\n\n", "\n\n"), ("\n<|endoftext|>\n", "<|endoftext|>"), ("\n", "line")])
def test_new_experiment_of_a_text_too_long_for_one_document_parts_it(
    own: Path, tmp_path: Path, end: str, mark: str, found: str
) -> None:
    texts = [f"{number} {'word ' * 20}".strip() for number in range(12_000)]
    (own / "a.txt").write_text(f"{mark.join(texts[:9])}\n\n", encoding="utf-8", newline=end)  # which parts nothing
    assert write_new_experiment(tmp_path / "short.yaml", data=str(own / "a.txt")).config.data.split_text_at == found
    (own / "a.txt").write_text(mark.join(texts), encoding="utf-8", newline=end)
    data = write_new_experiment(tmp_path / "long.yaml", data=str(own / "a.txt")).config.data
    assert data.split_text_at == found
    assert prepare_raw(data, tmp_path / "data").manifest.facts["documents"] == len(texts)
    for name in ("b", "c"):
        (own / f"{name}.txt").write_text(mark.join(texts[:9]), encoding="utf-8", newline=end)
    assert look_at(str(own)).split_at is None  # one long text among others that are documents


def test_look_at_packed_texts_parts_them_by_what_they_hold_and_not_by_the_size_of_their_files(own: Path) -> None:
    for name in "abc":
        (own / f"{name}.txt.gz").write_bytes(gzip.compress(b"word\n\n" * (MAX_DOCUMENT_BYTES // 6 + 1)))
    assert look_at(str(own)).split_at == "\n\n"


def test_texts_that_are_all_too_long_are_told_how_they_are_parted(own: Path, tmp_path: Path) -> None:
    (own / "a.txt").write_text("x" * (MAX_DOCUMENT_BYTES + 1), encoding="utf-8")
    data = DataConfig(num_samples="all", source=str(own), format="text")
    said = r'\(too_long: 1\); .*a document has at most 1 MiB: .* such as `split_text_at: "\\n\\n"`'
    with pytest.raises(ConfigError, match=said):
        prepare_raw(data, tmp_path / "data")


def test_look_at_files_without_text_says_what_they_have(own: Path) -> None:
    (own / "a.jsonl").write_text('{"messages": [1], "n": 2}\n', encoding="utf-8")
    said = r"a\.jsonl: no column of text .*; found messages \(list\), n \(number\); need .* by data\.columns$"
    with pytest.raises(DataError, match=said):
        look_at(str(own))


def test_new_experiment_with_data_names_it_as_the_file_sees_it(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "a.jsonl").write_text("".join(json.dumps(page) + "\n" for page in PAGES), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    data = write_new_experiment(tmp_path / "experiments" / "mine.yaml", recipe="cpu", data="own").config.data
    assert (data.source, data.format, data.columns.text, data.num_samples) == ("../own", "text", "page", "all")
    absolute = write_new_experiment(tmp_path / "experiments" / "other.yaml", data=str(own / "*.jsonl"), num_samples=7)
    assert (absolute.config.data.source, absolute.config.data.num_samples) == (str(own / "*.jsonl"), 7)


@pytest.mark.parametrize("recipe", ["demo", "gpt2-124m", "nanochat-124m", "gpu-8gb", "cpu"])
def test_new_experiment_of_a_recipe_gives_no_reasons_of_synth_for_ones_own_data(
    own: Path, tmp_path: Path, recipe: str
) -> None:
    (own / "a.jsonl").write_text("".join(json.dumps(page) + "\n" for page in PAGES), encoding="utf-8")
    data = write_new_experiment(tmp_path / "mine.yaml", recipe=recipe, data=str(own)).config.data
    assert data.max_length == write_new_experiment(tmp_path / "theirs.yaml", recipe=recipe).config.data.max_length
    lines = (tmp_path / "mine.yaml").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if "SYNTH" in line and not line.lstrip().startswith("#")]


def test_new_experiment_with_data_that_is_nothing_writes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--data: found 'gone', need .* a path such as \./gone"):
        write_new_experiment(tmp_path / "mine.yaml", data="gone")
    with pytest.raises(ConfigError, match=r"--data: .*need a folder, a file or a pattern that exists"):
        write_new_experiment(tmp_path / "mine.yaml", data="./gone")
    assert not (tmp_path / "mine.yaml").exists()


def test_look_at_a_tar_guesses_the_text_of_its_samples_and_no_picture(own: Path) -> None:
    with tarfile.open(own / "a.tar", "w") as archive:
        for name, content in (
            ("0.jpg", b"\xff\xd8\xff"),
            ("0.txt", b"A text."),
            ("1.jpg", b"\xff"),
            ("1.txt", b"Two."),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    look = look_at(str(own))
    assert (look.format, look.chosen) == ("text", {"text": "txt"})
    assert look.columns["jpg"] == "nothing"


@pytest.mark.parametrize("lines", ['{"a": "text"}\n{"a": 5}\n', '{"a": null}\n{"a": "text"}\n'])
def test_look_at_values_of_several_kinds_guesses_all_the_same(own: Path, lines: str) -> None:
    (own / "a.jsonl").write_text(lines, encoding="utf-8")
    assert look_at(str(own)).chosen == {"text": "a"}


def test_look_at_parquet_with_text_that_is_no_utf8_or_damage_says_so(own: Path) -> None:
    letters, bounds = pa.py_buffer(b"ok\xff\xfe"), pa.py_buffer(np.array([0, 2, 4], np.int32))
    column = pa.Array.from_buffers(pa.string(), 2, [None, bounds, letters])
    pq.write_table(pa.table({"a": column}), own / "a.parquet")
    assert look_at(str(own)).chosen == {"text": "a"}
    content = bytearray((own / "a.parquet").read_bytes())
    content[4:60] = b"x" * 56
    (own / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: damaged"):
        look_at(str(own))
