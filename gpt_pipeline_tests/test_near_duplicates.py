"""Documents that are nearly the same: found by signatures, left out by the stages, the same however they are made."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents import near as near_module
from gpt_pipeline.data.documents.near import NearDuplicates, band_rows, bytes_per_document, signatures_of
from gpt_pipeline.data.documents.raw import RawStage, files_of, left_out_of, prepare_raw
from gpt_pipeline.data.documents.stage import prepare_documents
from gpt_pipeline.data.stage import prepare
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.orchestration.keys import data_group
from gpt_pipeline.storage.atomic import sha256_of
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline_tests.test_formats_text import BODY, config_of, texts_in, write_texts
from gpt_pipeline_tests.test_shingles import plain_shingles


def silent(line: str) -> None:
    pass


def near(folder: Path, threshold: float) -> NearDuplicates:
    return NearDuplicates(threshold=threshold, format=BODY, data_folder=folder)


def signed(folder: Path, number: int, texts: Sequence[str], threshold: float) -> StageResult:
    path = write_texts(folder / f"{number}.parquet", texts)
    return near(folder, threshold).prepare(path, sha256_of(path), seen=path.stat(), say=silent)


def prose(rng: random.Random, words: int = 120) -> list[str]:
    return [f"w{rng.randrange(1000)}" for _ in range(words)]


def changed(rng: random.Random, words: list[str], count: int) -> list[str]:
    """Return the words with `count` of them exchanged."""
    words = list(words)
    for at in rng.sample(range(len(words)), count):
        words[at] = f"x{rng.randrange(10**9)}"
    return words


def likeness(left: str, right: str) -> float:
    one, other = set(plain_shingles(left)), set(plain_shingles(right))
    return len(one & other) / len(one | other)


@settings(max_examples=8, deadline=None)
@given(
    files=st.lists(st.lists(st.lists(st.integers(0, 2), max_size=8), max_size=8), min_size=1, max_size=3),
    threshold=st.sampled_from([0.3, 0.5, 0.8, 1.0]),
    bucket=st.sampled_from([3, 100]),
)
def test_near_duplicates_are_those_whose_signatures_share_a_band_and_enough_with_an_earlier_one(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[list[int]]], threshold: float, bucket: int
) -> None:
    folder = tmp_path_factory.mktemp("near")
    texts = [[" ".join(f"word{word}" for word in document) or "!" for document in file] for file in files]
    wanted: list[list[int]] = []
    earlier: list[np.ndarray] = []
    for own in texts:
        wanted.append([])
        for row, (signature, empty) in enumerate(zip(*signatures_of(pa.array(own, pa.string())), strict=True)):
            same = [signature == other for other in earlier]
            bands = [each.reshape(-1, band_rows(threshold)).all(axis=1).any() for each in same]
            if not empty and any(each.mean() >= threshold and band for each, band in zip(same, bands, strict=True)):
                wanted[-1].append(row)
            if not empty:
                earlier.append(signature)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_module, "_BUCKET_DOCUMENTS", bucket)
        patch.setattr(near_module, "_SORTED_DOCUMENTS", bucket)
        patch.setattr(near_module, "_BACK", 100)
        parts = [signed(folder, number, own, threshold) for number, own in enumerate(texts)]
        assert [rows.tolist() for rows in near(folder, threshold).find(parts)] == wanted


def test_near_duplicates_of_generated_texts_are_found_by_their_likeness(tmp_path: Path) -> None:
    rng = random.Random(0)
    first = [prose(rng) for _ in range(400)]
    before = [" ".join(words) for words in first]
    behind = [" ".join(changed(rng, words, rng.choice([0, 1, 2, 4, 12]))).upper() + "!" for words in first]
    parts = [signed(tmp_path, number, texts, 0.8) for number, texts in enumerate((before, behind))]
    none, found = near(tmp_path, 0.8).find(parts)
    assert not len(none)
    alike = np.array([likeness(*pair) for pair in zip(before, behind, strict=True)])
    is_found = np.isin(np.arange(400), found)
    assert is_found[alike >= 0.9].all()
    assert not is_found[alike < 0.65].any()
    assert min((alike >= 0.9).sum(), (alike < 0.65).sum()) > 50
    assert is_found[alike >= 0.8].mean() > 0.9


def test_near_duplicates_of_a_crowd_with_one_band_are_found(tmp_path: Path) -> None:
    rng = random.Random(1)
    words = prose(rng)
    crowd = [" ".join(changed(rng, words, 1)) for _ in range(60)]
    (found,) = near(tmp_path, 0.8).find([signed(tmp_path, 0, crowd, 0.8)])
    assert found.tolist() == list(range(1, 60))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_bytes_per_document_are_those_of_the_files(tmp_path: Path, threshold: float) -> None:
    stage = signed(tmp_path, 0, ["one text", "and another"], threshold)
    assert sum(record.size for record in stage.manifest.files.values()) == 2 * bytes_per_document(threshold)


def test_near_duplicates_of_no_files_and_of_files_without_documents_are_none(tmp_path: Path) -> None:
    assert near(tmp_path, 0.8).find([]) == []
    parts = [signed(tmp_path, 0, [], 0.8), signed(tmp_path, 1, ["...", "?!", "."], 0.8)]
    assert [rows.tolist() for rows in near(tmp_path, 0.8).find(parts)] == [[], []]


def test_signatures_are_those_of_every_version_and_machine() -> None:
    """What an update of numpy or rensa may not change; else data that is finished would be made again differently."""
    texts = pa.array(["The quick brown fox jumps over the lazy dog.", "日本語です", ""], pa.string())
    signatures, is_empty = signatures_of(texts)
    assert signatures[:, :4].tolist() == SIGNATURES
    assert is_empty.tolist() == [False, False, True]


SIGNATURES = [[1193, 8017, 28825, 42686], [8748, 5993, 15942, 60808], [35634, 35634, 35634, 35634]]


def test_signatures_of_another_version_of_the_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_module, "_ALGORITHM", 3)
    with pytest.raises(UserError, match="version 2 of its signatures, need 3; run: pip install"):
        signatures_of(pa.array(["a"], pa.string()))


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.5])
def test_near_duplicates_with_a_share_that_is_none_are_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="near_duplicates"):
        DataConfig(num_samples="all", source="./x", format="text", near_duplicates=threshold)


def test_data_group_of_other_near_duplicates_is_another(tmp_path: Path) -> None:
    groups = {data_group(config_of(tmp_path, near_duplicates=threshold)) for threshold in (None, 0.8, 0.9)}
    assert len(groups) == 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of 20 texts; ten of each of the last two are nearly those of the file before, and one is repeated."""
    rng = random.Random(2)
    files = [[" ".join(prose(rng)) for _ in range(20)]]
    for _ in range(2):
        like = [" ".join(changed(rng, text.split(), 1)) for text in files[-1][10:]]
        files.append([*like[:9], files[-1][0], *(" ".join(prose(rng)) for _ in range(10))])
    for number, texts in enumerate(files):
        write_texts(tmp_path / "raw" / f"{number}.parquet", texts)
    return tmp_path / "raw"


def test_stages_leave_near_duplicates_out_and_count_them(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder, near_duplicates=0.8)
    raw = prepare_raw(config, tmp_path)
    assert [raw.manifest.facts[reason] for reason in ("repeated", "near_duplicate")] == [2, 18]
    assert [file["documents"] for file in raw.manifest.facts["files"]] == [20, 10, 10]
    left_out = [{reason: rows.tolist() for reason, rows in left_out_of(raw, file).items()} for file in files_of(raw)]
    assert left_out == [{}, *[{"repeated": [9], "near_duplicate": list(range(9))}] * 2]
    documents = prepare_documents(config, raw, tmp_path)
    assert documents.manifest.facts["dropped"] == {"near_duplicate": 18, "repeated": 2}
    everything = prepare_documents(config_of(folder), prepare_raw(config_of(folder), tmp_path), tmp_path)
    assert everything.manifest.facts["dropped"] == {"repeated": 2}
    assert set(texts_in(documents)) < set(texts_in(everything))
    assert len(texts_in(documents)) == 40


def test_raw_files_are_taken_until_enough_documents_are_not_near_others(tmp_path: Path, folder: Path) -> None:
    raw = prepare_raw(config_of(folder, 35, near_duplicates=0.8), tmp_path)
    assert len(files_of(raw)) == 3
    assert len(files_of(prepare_raw(config_of(folder, 35), tmp_path))) == 2
    with pytest.raises(ConfigError, match="at most 40, the different documents"):
        prepare_raw(config_of(folder, 41, near_duplicates=0.8), tmp_path)


def test_raw_stage_with_near_duplicates_is_the_same_in_any_order_and_after_an_interruption(
    tmp_path: Path, folder: Path
) -> None:
    config = config_of(folder, near_duplicates=0.8)
    whole = prepare_raw(config, tmp_path / "a")
    stage = RawStage(config=config, data_folder=tmp_path / "b")
    stage.plan(force=False, say=silent)
    for name in ("2.parquet", "0.parquet"):
        stage.make([name], say=silent)
    for half in (tmp_path / "b/parts").glob("near_index-*/manifest.json"):  # as after a kill before the last rename
        half.unlink()
        break
    other = prepare(RawStage(config=config, data_folder=tmp_path / "b"), say=silent)
    assert (other.fingerprint, other.manifest) == (whole.fingerprint, whole.manifest)


def test_raw_stage_makes_signatures_only_if_asked_and_once_for_thresholds_with_the_same_bands(
    tmp_path: Path, folder: Path
) -> None:
    plain = prepare_raw(config_of(folder), tmp_path)
    assert not list((tmp_path / "parts").glob("near_index-*"))
    stages = [prepare_raw(config_of(folder, near_duplicates=threshold), tmp_path) for threshold in (0.8, 0.85, 0.99)]
    assert len({plain.fingerprint, *(stage.fingerprint for stage in stages)}) == 4
    assert len(list((tmp_path / "parts").glob("near_index-*"))) == 6
    assert [stage.manifest.facts["near_duplicate"] for stage in stages] == [18, 18, 0]
