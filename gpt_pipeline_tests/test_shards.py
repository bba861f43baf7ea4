from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.documents.raw import prepare_raw
from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.documents.stage import document_files, prepare_documents
from gpt_pipeline.data.tokens.choose import find_shards
from gpt_pipeline.data.tokens.shards import prepare_shards
from gpt_pipeline.data.tokens.stream import TokenStream, open_shards
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2
from gpt_pipeline.errors import ConfigError, DamagedFileError
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline_tests.synth_rows import row, write_synth

_HOSTILE = "before <|endoftext|> after \u200d\U0001f469 \r\n" + "a" * 5000


def config_of(folder: Path, **changed: object) -> DataConfig:
    values = {"num_samples": 400, "validation_fraction": 0.2, "max_length": 64, **changed}
    return DataConfig(local_dataset_path=str(folder), **values)  # type: ignore[arg-type]


def english_of(config: DataConfig, data_folder: Path) -> StageResult:
    return prepare_documents(config, prepare_raw(config, data_folder), data_folder)


def prepared(config: DataConfig, data_folder: Path) -> StageResult:
    return prepare_shards(config, english_of(config, data_folder), data_folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = [row(i, synthetic_answer=_HOSTILE if i == 17 else f"It is {i}.") for i in range(400)]
    folder = tmp_path_factory.mktemp("raw")
    for number, (first, last) in enumerate([(0, 130), (130, 140), (140, 400)], start=1):
        write_synth(folder / f"synth_{number:03d}.parquet", values[first:last])
    return folder


def documents_in(stream: TokenStream) -> list[str]:
    """The texts of a stream's documents, each checked to begin with the end-of-text token and to have no other."""
    ends = [*stream.document_starts.tolist()[1:], stream.n_tokens]
    texts = []
    for start, end in zip(stream.document_starts.tolist(), ends, strict=True):
        ids = stream.read(start, end - start).tolist()
        assert ids[0] == EOT_TOKEN
        assert EOT_TOKEN not in ids[1:]
        texts.append(gpt2().decode(ids[1:]))
    return texts


def test_shards_hold_every_document_once_on_the_side_of_its_article(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder)
    english = english_of(config, tmp_path)
    opened = open_shards(prepare_shards(config, english, tmp_path).folder)
    table = [value for path in document_files(english) for value in pq.read_table(path).to_pylist()]
    sides = [is_held_out(value["article"], seed=0, fraction=0.2) for value in table]
    assert documents_in(opened.validation) == [v["text"] for v, side in zip(table, sides, strict=True) if side]
    assert documents_in(opened.train) == [v["text"] for v, side in zip(table, sides, strict=True) if not side]
    assert 0 < sum(sides) < len(sides)


def test_shards_facts_add_up(tmp_path: Path, folder: Path) -> None:
    stage = prepared(config_of(folder), tmp_path)
    facts, opened = stage.manifest.facts, open_shards(stage.folder)
    english = english_facts(config_of(folder), tmp_path)
    assert facts["train_documents"] + facts["validation_documents"] == english["documents"] == 400
    assert facts["train_text_bytes"] + facts["validation_text_bytes"] == english["text_bytes"]
    assert facts["train_tokens"] == opened.train.n_tokens
    assert facts["validation_tokens"] == opened.validation.n_tokens
    assert facts["train_documents"] == len(opened.train.document_starts)
    assert facts["tokens_per_document"] == pytest.approx((facts["train_tokens"] + facts["validation_tokens"]) / 400)


def english_facts(config: DataConfig, data_folder: Path) -> dict[str, object]:
    return dict(english_of(config, data_folder).manifest.facts)


def test_shards_document_keeps_its_side_when_samples_grow(tmp_path: Path, folder: Path) -> None:
    small, large = (
        open_shards(prepared(config_of(folder, num_samples=n, max_length=16), tmp_path).folder) for n in (150, 400)
    )
    assert documents_in(large.validation)[: len(small.validation.document_starts)] == documents_in(small.validation)
    assert documents_in(large.train)[: len(small.train.document_starts)] == documents_in(small.train)


def test_shards_second_time_does_no_work(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder)
    first, again, found = prepared(config, tmp_path), prepared(config, tmp_path), find_shards(config, tmp_path)
    assert found is not None
    assert (first.reused, again.reused) == (False, True)
    assert found.manifest == again.manifest == first.manifest


def test_shards_identity_knows_the_split_but_not_the_sequence_length(tmp_path: Path, folder: Path) -> None:
    first = prepared(config_of(folder), tmp_path)
    assert prepared(config_of(folder, max_length=128), tmp_path).reused
    for changed in ({"seed": 1}, {"validation_fraction": 0.1}):
        assert prepared(config_of(folder, **changed), tmp_path).fingerprint != first.fingerprint


def test_shards_without_a_held_out_document_are_refused(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder, num_samples=5, validation_fraction=1e-9, max_length=16)
    with pytest.raises(ConfigError, match=r"data\.validation_fraction: found 1e-09, .*validation.*raise"):
        prepared(config, tmp_path)
    assert find_shards(config, tmp_path) is None


def test_shards_shorter_than_one_sequence_are_refused_each_time(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder, max_length=1_000_000)
    english = english_of(config, tmp_path)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"data\.num_samples: found 400, .*max_length=1000000"):
            prepare_shards(config, english, tmp_path)


def test_shards_damaged_english_file_is_noticed_before_use(tmp_path: Path, folder: Path) -> None:
    config = config_of(folder)
    english = english_of(config, tmp_path)
    path = document_files(english)[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedFileError, match="english_parquet-"):
        prepare_shards(config, english, tmp_path)


def test_open_shards_lost_shard_or_manifest_is_refused(tmp_path: Path, folder: Path) -> None:
    stage = prepared(config_of(folder), tmp_path)
    (stage.folder / "train_000001.bin").unlink()
    with pytest.raises(DamagedFileError, match=r"train_000001\.bin is missing"):
        open_shards(stage.folder)
    (stage.folder / "manifest.json").unlink()
    with pytest.raises(DamagedFileError, match="no finished token shards"):
        open_shards(stage.folder)
