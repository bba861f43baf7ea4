from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt_pipeline.data.audit import check_groups_kept_apart, check_language_purity, check_token_counts
from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.tokens.stream import TokenShards, open_shards
from gpt_pipeline.data.tokens.tokenizer import EOT_TOKEN, gpt2
from gpt_pipeline.data.tokens.writer import Documents, SplitWriter
from gpt_pipeline.experiment.load import read_experiment
from gpt_pipeline.orchestration.checks import data_checks
from gpt_pipeline.storage.manifest import Manifest, record_file

SEED, FRACTION = 0, 0.5
ARTICLES = [f"article {number}" for number in range(8)]
TEXTS = [f"Q: {number}?\n\nA: {'yes ' * number}no" for number in range(40)]
GERMAN = "Q: Was ist das für ein Tier?\n\nA: Das ist nicht der Hund, und die Katze ist es auch nicht."


def english(folder: Path, texts: Sequence[str], *, files: int = 2) -> list[Path]:
    """Files with these documents, whose articles take turns, in small row groups."""
    articles = [ARTICLES[number % len(ARTICLES)] for number in range(len(texts))]
    table = pa.table({"text": list(texts), "article": articles})
    each = -(-len(texts) // files)
    paths = [folder / f"{number}.parquet" for number in range(files)]
    for number, path in enumerate(paths):
        pq.write_table(table.slice(number * each, each), path, row_group_size=7)
    return paths


def shards(folder: Path, splits: Mapping[str, Sequence[str]], **facts: int) -> TokenShards:
    """Shards of a few documents each."""
    files: list[Path] = []
    counts: dict[str, int] = {}
    for split, texts in splits.items():
        with SplitWriter(folder=folder, split=split, max_shard_tokens=100) as writer:
            for text in texts:
                ids = np.array([EOT_TOKEN, *gpt2().encode(text)], np.uint16)
                lengths = np.array([len(ids)])
                writer.add(
                    Documents(
                        tokens=ids,
                        lengths=lengths,
                        answers=lengths - 1,
                        spans=np.stack((lengths - 1, lengths), axis=1),
                        span_counts=np.ones(1, np.int64),
                        text_bytes=len(text),
                    )
                )
        files += writer.files
        counts |= {f"{split}_tokens": writer.tokens, f"{split}_documents": writer.documents}
    records = {path.name: record_file(path) for path in files}
    Manifest(stage="token_shards", fingerprint="f", config={}, files=records, facts=counts).write(folder)
    opened = open_shards(folder)
    told = Manifest(stage="token_shards", fingerprint="f", config={}, files=records, facts={**counts, **facts})
    return TokenShards(train=opened.train, validation=opened.validation, manifest=told)


def split_of(number: int) -> str:
    article = ARTICLES[number % len(ARTICLES)]
    return "validation" if is_held_out(article, seed=SEED, fraction=FRACTION) else "train"


def by_article() -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {"train": [], "validation": []}
    for number, text in enumerate(TEXTS):
        splits[split_of(number)].append(text)
    return splits


def test_articles_split_by_their_hash_are_found_apart(tmp_path: Path) -> None:
    finding = check_groups_kept_apart(
        english(tmp_path, TEXTS), shards(tmp_path / "shards", by_article()), gpt2(), seed=SEED, fraction=FRACTION
    )
    assert finding.passed
    assert finding.facts == {"groups": len(ARTICLES), "in_both_splits": 0, "misplaced": 0}


def test_articles_whose_documents_are_in_both_splits_are_found(tmp_path: Path) -> None:
    splits = by_article()
    splits["validation"].append(splits["train"].pop())
    finding = check_groups_kept_apart(
        english(tmp_path, TEXTS), shards(tmp_path / "shards", splits), gpt2(), seed=SEED, fraction=FRACTION
    )
    assert not finding.passed
    assert finding.facts["in_both_splits"] == finding.facts["misplaced"] == 1


def test_articles_of_documents_that_are_not_in_the_files_prove_nothing(tmp_path: Path) -> None:
    other = {"train": ["Q: who?\n\nA: me"], "validation": ["Q: why?\n\nA: why not"]}
    finding = check_groups_kept_apart(
        english(tmp_path, TEXTS), shards(tmp_path / "shards", other), gpt2(), seed=SEED, fraction=FRACTION
    )
    assert not finding.passed


@pytest.mark.parametrize(("format", "name"), [("synth", "articles_kept_apart"), ("text", "groups_kept_apart")])
def test_check_of_the_split_speaks_of_articles_only_where_documents_have_some(
    tmp_path: Path, format: str, name: str
) -> None:
    languages = "[de]" if format == "synth" else "[en]"
    text = f"experiment_name: a\ndata: {{num_samples: 5, source: ./own, format: {format}, languages: {languages}}}\n"
    experiment = read_experiment(tmp_path / "a.yaml", text + "storage: {base_folder: .}\n")
    names = {key.name for check in data_checks("group", experiment) for key in check.check_keys}
    assert names == {name, "token_counts_add_up"}


@pytest.mark.parametrize(("german", "passed"), [(0, True), (5, False)])
def test_documents_in_another_language_are_found_in_every_file(tmp_path: Path, german: int, passed: bool) -> None:
    texts = list(TEXTS)
    for number in range(german):
        texts.insert(8 * number, GERMAN)
    finding = check_language_purity(english(tmp_path, texts))
    assert finding.passed == passed
    assert finding.facts["foreign"] == german
    assert finding.facts["sampled"] == len(TEXTS) + german


def test_language_sample_of_many_documents_is_spread_over_all_files(tmp_path: Path) -> None:
    texts = [GERMAN if number % 3 == 0 else f"Q: {number}?\n\nA: the answer" for number in range(6_000)]
    finding = check_language_purity(english(tmp_path, texts, files=7))
    assert finding.facts == {"sampled": 2_000, "foreign": 2_000, "foreign_share": 1.0}  # every third row


def test_token_counts_that_are_those_of_the_manifests_add_up(tmp_path: Path) -> None:
    finding = check_token_counts(shards(tmp_path, by_article()), documents=len(TEXTS))
    assert finding.passed
    assert finding.facts["train_documents"] + finding.facts["validation_documents"] == len(TEXTS)


def test_token_counts_that_differ_are_named(tmp_path: Path) -> None:
    finding = check_token_counts(shards(tmp_path, by_article(), train_documents=3), documents=len(TEXTS) + 1)
    assert not finding.passed
    assert "the manifest says 3" in finding.text
    assert f"{len(TEXTS) + 1} in the files of documents" in finding.text
