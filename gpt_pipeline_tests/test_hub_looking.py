"""What is found out about a dataset of the hub before anything of it is downloaded."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pipeline.data.config import ColumnsConfig, DataConfig
from gpt_pipeline.data.preview import previews
from gpt_pipeline.data.tokens.tokenizer import gpt2
from gpt_pipeline.errors import ConfigError, UserError
from gpt_pipeline.experiment.new import write_new_experiment
from gpt_pipeline.planning.survey import survey
from gpt_pipeline_tests.hub_server import FakeHub, running_hub

_CARD = """---
configs:
- {config_name: pages, data_files: [{split: train, path: pages/*.parquet}]}
- {config_name: notes, data_files: [{split: train, path: notes.jsonl.gz}, {split: test, path: more.jsonl}]}
---
"""
_NOTES = [{"id": number, "note": f"Note {number} says little.", "area": "ab"[number % 2]} for number in range(30)]
_PAGES = 4_000


@pytest.fixture(scope="module")
def published() -> dict[str, bytes]:
    noise = random.Random(0)
    pages = [{"page": noise.randbytes(250).hex(), "other": noise.randbytes(250).hex()} for _ in range(_PAGES)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist(pages), sink, use_dictionary=False, data_page_size=1 << 16, write_batch_size=100
    )
    content = sink.getvalue().to_pybytes()
    notes = "".join(json.dumps(note) + "\n" for note in _NOTES).encode()
    return {
        "README.md": _CARD.encode(),
        **{f"pages/{number}.parquet": content for number in range(10)},
        "notes.jsonl.gz": gzip.compress(notes),
        "more.jsonl": notes[: notes.index(b"\n") + 1],
    }


@pytest.fixture
def server(published: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub that huggingface_hub's own settings name."""
    with running_hub() as server:
        server.repository = "team/texts"
        server.commits["c" * 40] = published
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server


def _config(subset: str, column: str) -> DataConfig:
    columns = ColumnsConfig(text=column)
    return DataConfig(source="team/texts", subset=subset, format="text", columns=columns, num_samples="all")


def test_new_experiment_of_a_hub_dataset_has_its_columns_and_transfers_little(
    server: FakeHub, published: dict[str, bytes], tmp_path: Path
) -> None:
    data = write_new_experiment(tmp_path / "pages.yaml", data="team/texts", subset="pages").config.data
    assert (data.source, data.subset, data.format, data.columns.text) == ("team/texts", "pages", "text", "page")
    assert "# 10 files; columns: page (text), other (text)" in (tmp_path / "pages.yaml").read_text()
    assert 0 < server.bytes_sent("pages/0.parquet") < len(published["pages/0.parquet"]) / 4
    data = write_new_experiment(tmp_path / "t.yaml", data="team/texts", subset="notes", split="test").config.data
    assert (data.split, data.columns.text) == ("test", "note")
    assert not (tmp_path / "cache").exists()


def test_new_experiment_of_a_hub_dataset_with_subsets_names_the_option_and_writes_no_file(
    server: FakeHub, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"--subset: found None, need one of the subsets of .*: pages, notes"):
        write_new_experiment(tmp_path / "mine.yaml", data="team/texts")
    with pytest.raises(UserError, match="does not exist or you may not read it"):
        write_new_experiment(tmp_path / "mine.yaml", data="team/gone")
    with pytest.raises(UserError, match="--split is for datasets of the hub"):
        write_new_experiment(tmp_path / "mine.yaml", data=str(tmp_path), split="test")
    assert not (tmp_path / "mine.yaml").exists()


def test_survey_of_a_hub_dataset_goes_by_the_first_files_and_asks_once(
    server: FakeHub, published: dict[str, bytes], tmp_path: Path
) -> None:
    held = survey(_config("pages", "page"), tmp_path)
    assert (held.rows, held.documents, held.files, held.is_exact) == (10 * _PAGES, 10 * _PAGES, 10, False)
    assert held.size == 10 * len(published["pages/0.parquet"])
    assert held.text_bytes == 10 * _PAGES * 500
    server.requests.clear()
    assert survey(_config("pages", "page"), tmp_path) == held
    assert server.requests == []
    notes = survey(_config("notes", "note"), tmp_path)
    assert (notes.rows, notes.documents, notes.is_exact) == (30, 30, True)
    with pytest.raises(UserError, match=r"lacks the column note; found page, other"):
        survey(_config("pages", "note"), tmp_path)


@pytest.mark.parametrize(("subset", "column"), [("pages", "page"), ("notes", "note")])
def test_previews_of_a_dataset_that_is_not_here_transfer_its_beginning(
    server: FakeHub, published: dict[str, bytes], tmp_path: Path, subset: str, column: str
) -> None:
    config = _config(subset, column)
    found = list(previews(config, tmp_path / "data", gpt2(), start=1, count=2, say=lambda line: None))
    assert [(each.row, each.dropped, each.text == each.values[column]) for each in found] == [
        (1, None, True),
        (2, None, True),
    ]
    assert sum(sent.count for sent in server.sent) < len(published["pages/0.parquet"]) / 4
    assert list((tmp_path / "data").rglob("*")) == []
