"""Which files of a dataset on the hub a subset and a split are."""

from __future__ import annotations

from typing import Any

import pytest

from gpt_pipeline.data.sources.hub.layout import chosen_files, front_matter
from gpt_pipeline.errors import ConfigError, DataError

CARD = """---
license: mit
configs:
- config_name: en
  data_files:
  - {split: train, path: 'en/train-*'}
  - split: validation
    path: [en/b.jsonl, en/a.jsonl]
- config_name: all
  default: true
  data_files: '**/*.jsonl'
- config_name: folder
  data_dir: more
---
# The dataset
"""
REPEATED = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 8)}]" for number in range(1, 9)
)
MERGED = "m0: &m0 {x: 1}\n" + "\n".join(
    f"m{number}: &m{number} {{<<: [{', '.join([f'*m{number - 1}'] * 9)}]}}" for number in range(1, 9)
)
LISTED = (
    ".gitattributes README.md en/a.jsonl en/b.jsonl en/train-1.jsonl en/train-0.jsonl more/test.csv more/train.csv "
    "more/deep/c.jsonl"
)


def chosen(listed: str, card: str = "", *, subset: str | None = None, split: str | None = None) -> list[str]:
    values = front_matter(card, where="team/texts")
    return list(chosen_files(listed.split(), values, subset=subset, split=split, where="team/texts").names)


@pytest.mark.parametrize(
    ("subset", "split", "names"),
    [
        ("en", None, ["en/train-0.jsonl", "en/train-1.jsonl"]),
        ("en", "train", ["en/train-0.jsonl", "en/train-1.jsonl"]),
        ("en", "validation", ["en/b.jsonl", "en/a.jsonl"]),
        ("en", "dev", ["en/b.jsonl", "en/a.jsonl"]),
        (None, None, ["en/a.jsonl", "en/b.jsonl", "en/train-0.jsonl", "en/train-1.jsonl", "more/deep/c.jsonl"]),
        ("folder", "test", ["more/test.csv"]),
    ],
)
def test_chosen_files_of_a_described_dataset_are_those_of_its_patterns(
    subset: str | None, split: str | None, names: list[str]
) -> None:
    assert chosen(LISTED, CARD, subset=subset, split=split) == names


@pytest.mark.parametrize(
    ("data_files", "names"),
    [
        ("a?.jsonl", ["a1.jsonl"]),
        ("[!b]*.jsonl", ["a1.jsonl"]),
        ("./*.jsonl", ["a1.jsonl", "b.jsonl"]),
        ("**.jsonl", ["a1.jsonl", "b.jsonl", "deep/d.jsonl", "deep/er/c.jsonl"]),
        ("deep/**/*.jsonl", ["deep/d.jsonl", "deep/er/c.jsonl"]),
        ("deep/*", ["deep/d.jsonl"]),
        ({"train": "b.jsonl", "test": ["a1.jsonl"]}, ["b.jsonl"]),
        (["b.jsonl", "a1.jsonl", "*.jsonl"], ["b.jsonl", "a1.jsonl"]),
    ],
)
def test_chosen_files_patterns_mean_what_they_do_on_the_hub(data_files: Any, names: list[str]) -> None:
    listed = ["a1.jsonl", "b.jsonl", "deep/d.jsonl", "deep/er/c.jsonl"]
    card = {"configs": [{"config_name": "any", "data_files": data_files}]}
    assert list(chosen_files(listed, card, subset=None, split=None, where="").names) == names


@pytest.mark.parametrize(
    ("listed", "asked", "names"),
    [
        ("b.jsonl a.jsonl", {}, "a.jsonl b.jsonl"),
        ("b.jsonl a.jsonl", {"split": "train"}, "a.jsonl b.jsonl"),
        ("data/train-00000-of-00001.parquet data/test-00000-of-00001.parquet", {}, "data/train-00000-of-00001.parquet"),
        ("data/odd-00000-of-00001.csv", {}, "data/odd-00000-of-00001.csv"),
        ("train/00.jsonl.zst train/01.jsonl.zst val.jsonl.zst", {}, "train/00.jsonl.zst train/01.jsonl.zst"),
        ("train/00.jsonl.zst train/01.jsonl.zst val.jsonl.zst", {"split": "validation"}, "val.jsonl.zst"),
        ("c4-train.00000.json.gz c4-validation.0.json.gz", {}, "c4-train.00000.json.gz"),
        ("stories.txt stories-valid.txt", {}, "stories.txt"),
        ("testament.txt trained.txt", {}, "testament.txt trained.txt"),
        ("en/train.csv en/test.csv de/train.csv de/test.csv", {"subset": "de", "split": "test"}, "de/test.csv"),
        ("default/train/0.parquet small/train/0.parquet", {}, "default/train/0.parquet"),
        ("2023/01.jsonl 2024/01.jsonl", {}, "2023/01.jsonl 2024/01.jsonl"),
        ("2023/01.jsonl 2024/01.jsonl", {"subset": "2024"}, "2024/01.jsonl"),
        ("data/c/1.parquet data/d/1.parquet", {"subset": "d"}, "data/d/1.parquet"),
        ("a.parquet b.jsonl c.jsonl notes.txt", {}, "a.parquet"),
        ("b.jsonl c.jsonl index.csv notes.txt dataset_infos.json", {}, "b.jsonl c.jsonl"),
        ("a.txt b.txt LICENSE.txt README.md .hidden/c.txt", {}, "a.txt b.txt"),
    ],
)  # fmt: skip
def test_chosen_files_of_a_dataset_that_says_nothing_go_by_their_names(
    listed: str, asked: dict[str, str], names: str
) -> None:
    assert chosen(listed, **asked) == names.split()


@pytest.mark.parametrize(
    ("listed", "card", "asked", "said"),
    [
        (LISTED, CARD, {"subset": "ena"}, r"subset: found 'ena', need one .*: en, all, folder; .*nearest, en$"),
        (LISTED, CARD, {"subset": "en", "split": "trian"}, r"split: found 'trian', .* train, validation; .* train$"),
        (LISTED, CARD.replace("  default: true\n", ""), {}, "need one of the subsets of team/texts: en, all, folder"),
        ("en/train.csv de/train.csv", "", {}, r"data\.subset: found None, need one of .*: de, en"),
        ("en/a.csv de/b.csv", "", {"subset": "fr"}, r"data\.subset: found 'fr', need one of .*: de, en"),
        ("a.csv", "", {"subset": "fr"}, "need none: team/texts has no subsets; leave it out"),
        ("test.csv dev.csv", "", {}, r"split: found None, need one of the splits .*: validation, test"),
        ("a.csv", "", {"split": "test"}, r"data\.split: found 'test', need one of the splits of team/texts: train"),
    ],
)  # fmt: skip
def test_chosen_files_of_an_unknown_or_ambiguous_part_name_those_there(
    listed: str, card: str, asked: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        chosen(listed, card, **asked)


@pytest.mark.parametrize(
    ("listed", "card", "said"),
    [
        ("README.md texts.py", "", r"holds the program texts\.py.*set data\.revision: refs/convert/parquet"),
        ("README.md a.bin b.bin c", "", r"no files to read: parquet.*holds \.bin \(2\), \.md \(1\), no ending \(1\)"),
        ("a.csv b.jsonl", "", "as many files of csv and jsonl: which are meant"),
        (
            LISTED,
            CARD.replace("'**/*.jsonl'", "images/*.zip"),
            "split train of team/texts, subset all has no files to read",
        ),
        (LISTED, CARD.replace("license: mit", "license: [mit"), r"front matter of README\.md cannot be read as YAML"),
        (
            LISTED,
            CARD.replace("license: mit", f"a: {'[' * 9000}{']' * 9000}"),
            r"front matter of README\.md cannot be read as YAML",
        ),
        (LISTED, CARD.replace("license: mit", "a: &a [*a]"), r"front matter of README\.md cannot be read as YAML"),
        (LISTED, CARD.replace("license: mit", REPEATED), "it stands for more than 1,000,000 values"),
        (LISTED, CARD.replace("license: mit", MERGED), "it stands for more than 1,000,000 values"),
        (LISTED, CARD.replace("license: mit", "? [[a], b]\n: c"), r"front matter of README\.md cannot be read"),
        (LISTED, CARD.replace("'**/*.jsonl'", "[1, 2]"), "`data_files` in README.md has 1, need a split and its path"),
    ],
)
def test_chosen_files_of_a_dataset_that_cannot_be_read_say_why(listed: str, card: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        chosen(listed, card)


def test_front_matter_is_what_stands_at_the_top_alone() -> None:
    card = CARD.replace("\n", "\r\n")
    assert front_matter(f"\ufeff{card}", where="")["license"] == "mit"
    assert front_matter("# Title\n---\nlicense: mit\n---\n", where="") == front_matter("", where="") == {}
