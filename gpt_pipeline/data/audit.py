"""Checks of finished data stages against what they promise, made from the files themselves."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpt_pipeline.data.columns import of_indices, text_sizes
from gpt_pipeline.data.documents.files import read_documents
from gpt_pipeline.data.documents.split import is_held_out
from gpt_pipeline.data.tokens.stream import TRAIN, VALIDATION, TokenShards, TokenStream
from gpt_pipeline.data.tokens.tokenizer import Tokenizer
from gpt_pipeline.findings import Finding, verdict

_BATCH_ROWS = 4096
_PURITY_SAMPLE = 2000  # documents, evenly spread over the file
_MAX_FOREIGN_SHARE = 0.02  # of these, before the check warns
_SPLIT_SAMPLE = 200  # documents of each split that are decoded and looked up
_MIN_FOREIGN_WORDS = 3  # fewer function words of another language prove nothing: "die" and "a" are in several

# The commonest function words that tell these languages apart; the languages are SYNTH's most frequent ones.
_FUNCTION_WORDS = {
    "en": "the of and to in is that for with are was it as how what from this by be",
    "de": "der die und das ist nicht ein eine mit für auf den von zu wie sich dem",
    "fr": "le les des et est une dans pour que pas qui du sur au avec il",
    "es": "el los las y es una para que no por con del se cómo qué un",
    "it": "il lo gli di e è una per che non con del della sono come un",
    "pl": "i w na jest nie się do to z że jak o po ile od",
    "nl": "het een en van is dat niet met voor op zijn aan hoe te er",
    "la": "et est non quod cum ad ab sunt quae ut qui sed ex",
}
_WORDS_OF = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}


def looks_foreign(text: str) -> bool:
    """Whether the function words of `text` are rather those of another language than English."""
    words = re.findall(r"\w+", text.lower())
    counts = {language: sum(word in known for word in words) for language, known in _WORDS_OF.items()}
    strongest = max(counts.values())
    return strongest >= _MIN_FOREIGN_WORDS and strongest > counts["en"]


def check_language_purity(document_files: Sequence[Path]) -> Finding:
    """Look for documents in other languages among some 2,000 spread over the files; only their row groups are read."""
    every = max(1, sum(pq.read_metadata(path).num_rows for path in document_files) // _PURITY_SAMPLE)
    sampled = list(_every_text(document_files, every))
    foreign = sum(looks_foreign(text) for text in sampled)
    share = foreign / max(1, len(sampled))
    return verdict(
        passed=share <= _MAX_FOREIGN_SHARE,
        text=f"{foreign} of {len(sampled)} sampled documents look like another language than English "
        f"({share:.2%}; at most {_MAX_FOREIGN_SHARE:.0%} is fine)",
        facts={"sampled": len(sampled), "foreign": foreign, "foreign_share": share},
    )


def check_groups_kept_apart(
    document_files: Sequence[Path], shards: TokenShards, tokenizer: Tokenizer, *, seed: int, fraction: float
) -> Finding:
    """Find no seed article, or other group, on both sides of the split, from what the shards really hold.

    Some documents of each split are decoded and looked up in the parquet files by their text.
    """
    wanted = {
        split: set(_sample_documents(stream, tokenizer))
        for split, stream in ((TRAIN, shards.train), (VALIDATION, shards.validation))
    }
    articles: dict[str, set[str]] = {TRAIN: set(), VALIDATION: set()}
    for text, article in _articles_of(document_files, itertools.chain(*wanted.values())):
        for split, texts in wanted.items():
            if text in texts:
                articles[split].add(article)
    both = articles[TRAIN] & articles[VALIDATION]
    misplaced = [a for a in articles[TRAIN] if is_held_out(a, seed=seed, fraction=fraction)]
    misplaced += [a for a in articles[VALIDATION] if not is_held_out(a, seed=seed, fraction=fraction)]
    checked = len(articles[TRAIN]) + len(articles[VALIDATION])
    return verdict(
        passed=checked > 0 and not both and not misplaced,
        text=f"{len(both)} in both splits and {len(misplaced)} on the wrong side, of {checked} looked up",
        facts={"groups": checked, "in_both_splits": len(both), "misplaced": len(misplaced)},
    )


def check_token_counts(shards: TokenShards, *, documents: int) -> Finding:
    """Find that the shards' tokens and documents are those of the manifest, and that every document is in a split."""
    facts = shards.manifest.facts
    found = {
        "train_tokens": shards.train.n_tokens,
        "validation_tokens": shards.validation.n_tokens,
        "train_documents": _count_documents(shards.train),
        "validation_documents": _count_documents(shards.validation),
    }
    wrong = [
        f"{name} is {count}, the manifest says {facts[name]}" for name, count in found.items() if count != facts[name]
    ]
    total = found["train_documents"] + found["validation_documents"]
    if total != documents:
        wrong.append(f"{total} documents in the splits, {documents} in the files of documents")
    return verdict(
        passed=not wrong,
        text="; ".join(wrong) or f"{sum(list(found.values())[:2]):,} tokens and {total:,} documents, all accounted for",
        facts=found,
    )


def _every_text(paths: Sequence[Path], every: int) -> Iterator[str]:
    """Yield the texts of the rows 0, `every`, 2 * `every`, ... of all files together."""
    first = 0
    for path in paths:
        with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            for number in range(file.num_row_groups):
                rows = file.metadata.row_group(number).num_rows
                if len(chosen := np.arange(-first % every, rows, every)):
                    group = file.read_row_group(number, columns=["text"], use_threads=False)
                    yield from group["text"].take(of_indices(chosen)).to_pylist()
                first += rows


def _count_documents(stream: TokenStream) -> int:
    return sum(len(bounds) - 1 for bounds in stream.documents_by_shard())


def _articles_of(paths: Sequence[Path], texts: Iterable[bytes]) -> Iterator[tuple[bytes, str]]:
    """Yield each of `texts` that is found in the files with the article of each row that has it."""
    wanted = set(texts)
    sizes = np.array(sorted({len(text) for text in wanted}), np.int64)
    for batch in read_documents(paths, ("text", "group"), batch_rows=_BATCH_ROWS):
        # Most rows have a size that no wanted text has, and need not be looked at.
        rows = batch.take(of_indices(np.flatnonzero(np.isin(text_sizes(batch["text"]), sizes))))
        pairs = zip(rows["text"].cast(pa.binary()).to_pylist(), rows["group"].to_pylist(), strict=True)
        yield from ((text, article) for text, article in pairs if text in wanted)


def _sample_documents(stream: TokenStream, tokenizer: Tokenizer) -> Iterator[bytes]:
    """Yield the texts of some documents, evenly spread over the stream."""
    documents = _count_documents(stream)
    chosen = np.linspace(0, documents - 1, num=min(_SPLIT_SAMPLE, documents), dtype=np.int64)
    first = 0
    for bounds in stream.documents_by_shard():
        for index in chosen[(chosen >= first) & (chosen < first + len(bounds) - 1)] - first:
            start, end = bounds[index] + 1, bounds[index + 1]  # past the <|endoftext|> that precedes the document
            yield tokenizer.decode_bytes(stream.read(int(start), int(end - start)).tolist())
        first += len(bounds) - 1
