from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.tokens.stream import TokenStream, answers_name, map_shard, new_shard, shard_name, starts_name
from gpt_pipeline.errors import DamagedFileError


def make_stream(folder: Path, lengths: list[int]) -> TokenStream:
    """Shards of the given lengths whose tokens count up from 0 (modulo 2^16) through the whole stream."""
    names = tuple(shard_name("train", number) for number in range(1, len(lengths) + 1))
    base = 0
    for name, length in zip(names, lengths, strict=True):
        with new_shard(folder / name) as shard:
            shard.append(np.arange(base, base + length).astype(np.uint16))
        np.save(folder / starts_name(name), np.unique([0, length - 1]))
        np.save(folder / answers_name(name), np.unique([length // 2, length - 1]))
        base += length
    return TokenStream(folder, names)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> TokenStream:
    return make_stream(tmp_path_factory.mktemp("shards"), [100, 3, 1, 250])


def test_shard_file_begins_with_the_header_of_llm_c(tmp_path: Path) -> None:
    with new_shard(tmp_path / "train_000001.bin") as shard:
        shard.append(np.array([50256, 1, 2], dtype=np.uint16))
        shard.append(np.array([65535], dtype=np.uint16))
    content = (tmp_path / "train_000001.bin").read_bytes()
    assert np.frombuffer(content[:1024], dtype="<i4").tolist() == [20240520, 1, 4] + [0] * 253
    assert np.frombuffer(content[1024:], dtype="<u2").tolist() == [50256, 1, 2, 65535]


def test_shard_file_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_shard(tmp_path / "train_000001.bin") as shard:
            shard.append(np.array([1], dtype=np.uint16))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@given(data=st.data())
def test_stream_read_any_range_is_that_of_one_array(data: st.DataObject, stream: TokenStream) -> None:
    start = data.draw(st.integers(0, stream.n_tokens))
    length = data.draw(st.integers(0, stream.n_tokens - start))
    assert stream.read(start, length).tolist() == list(range(start, start + length))


@settings(max_examples=50)
@given(data=st.data())
def test_stream_gather_any_rows_are_those_of_read(data: st.DataObject, stream: TokenStream) -> None:
    length = data.draw(st.integers(1, 120))
    starts = data.draw(st.lists(st.integers(0, stream.n_tokens - length), max_size=20))
    rows = stream.gather(np.array(starts, dtype=np.int64), length)
    assert rows.tolist() == [stream.read(start, length).tolist() for start in starts]


@pytest.mark.parametrize(("start", "length"), [(-1, 2), (354, 1), (300, 55), (3, -1)])
def test_stream_range_outside_is_refused(stream: TokenStream, start: int, length: int) -> None:
    with pytest.raises(IndexError):
        stream.read(start, length)
    if length > 0:
        with pytest.raises(IndexError):
            stream.gather(np.array([0, start]), length)


def test_stream_document_starts_are_positions_in_the_whole_stream(stream: TokenStream) -> None:
    assert stream.document_starts.tolist() == [0, 99, 100, 102, 103, 104, 353]


def test_stream_answer_starts_are_positions_in_the_whole_stream(stream: TokenStream) -> None:
    assert stream.answer_starts.tolist() == [50, 99, 101, 102, 103, 229, 353]


def test_stream_positions_of_no_shards_are_none(tmp_path: Path) -> None:
    assert TokenStream(tmp_path, ()).answer_starts.tolist() == []


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        (np.array([0, 10], dtype=np.int64), "10 tokens"),
        (np.array([-1, 3], dtype=np.int64), "10 tokens"),
        (np.array([3, 3], dtype=np.int64), "ascending"),
        (np.array([0, 1], dtype=np.int32), "int32"),
        (np.array([[0, 1]], dtype=np.int64), "documents"),
    ],
)
@pytest.mark.parametrize("sidecar", ["starts", "answers"])
def test_stream_sidecar_of_other_content_is_refused_by_name(
    tmp_path: Path, sidecar: str, positions: np.ndarray, said: str
) -> None:
    stream = make_stream(tmp_path, [10])
    np.save(tmp_path / f"train_000001.{sidecar}.npy", positions)
    with pytest.raises(DamagedFileError, match=rf"train_000001\.{sidecar}\.npy.*{said}"):
        _ = stream.document_starts if sidecar == "starts" else stream.answer_starts


@pytest.mark.parametrize(("content", "said"), [(None, "missing"), (b"", "not readable"), (b"<html>", "not readable")])
def test_stream_sidecar_missing_or_not_numpys_is_refused_by_name(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    stream = make_stream(tmp_path, [10])
    path = tmp_path / "train_000001.answers.npy"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"train_000001\.answers\.npy.*{said}"):
        _ = stream.answer_starts


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-2], "bytes"),
        (lambda content: content + b"\0\0", "bytes"),
        (lambda content: content[:100], "header"),
        (lambda content: b"<htm" + content[4:], "header"),
    ],
)
def test_shard_damaged_file_is_refused_by_name(tmp_path: Path, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    make_stream(tmp_path, [10])
    path = tmp_path / "train_000001.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFileError, match=rf"train_000001\.bin.*{said}"):
        map_shard(path)


def test_shard_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=r"train_000001\.bin is missing"):
        TokenStream(tmp_path, ("train_000001.bin",))
