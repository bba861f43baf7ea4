"""A byte-level BPE of the experiment's own, from the text of its training documents; never of those held out.

The same documents give the same bytes on any machine, with any number of threads: pairs are counted over all words, and
of pairs that are equally frequent the one with the lower ids is merged first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gpt_pipeline.data.columns import of_flags
from gpt_pipeline.data.config import PLAIN, DataConfig
from gpt_pipeline.data.documents.split import read_side
from gpt_pipeline.data.formats.forms import MARKS
from gpt_pipeline.data.tokens.tokenizer import EOT
from gpt_pipeline.errors import DataError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.manifest import StageResult

TRAINED_BYTES = 256 << 20
"""Text that a tokenizer is trained on at most, about; taken evenly over the training documents."""

_DOCUMENT_BYTES = 1 << 20  # of a longer document only its beginning counts
_LONGEST_TOKEN = 128  # bytes; longer ones are rulers and blanks, which cost ids
_BATCH_ROWS = 1024
_MARKS = f"[{''.join(MARKS)}]"  # which stand for tokens, and are no text to learn from

TrainedOn = Sequence[tuple[StageResult, DataConfig]]
"""Stages of documents, each with the block that says which of its documents are held out."""


def train_tokenizer(size: int, documents: TrainedOn, say: Say) -> tuple[str, dict[str, Any]]:
    """Return the tokenizer.json of a byte-level BPE of at most `size` ids, and what it was trained on.

    Raises:
        DataError: the text has no pair to merge.
    """
    from tokenizers import Tokenizer as Encoding
    from tokenizers import decoders, models, pre_tokenizers, trainers

    taken = _Taken(share=_share(documents))
    say(
        f"training a tokenizer of {size:,} ids on {taken.share_in_words} of the training documents' text; "
        "whoever stops the run meanwhile waits until that is done"  # the library heeds no signal
    )
    encoding = Encoding(models.BPE())
    encoding.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=_LONGEST_TOKEN,
        show_progress=False,
    )
    encoding.train_from_iterator(taken.texts(documents), trainer)
    merges = encoding.get_vocab_size() - 257
    if merges == 0:
        raise DataError(
            f"data.tokenizer.train: found no two bytes beside each other in {taken.documents:,} training documents "
            f"({taken.text_bytes:,} bytes), need a pair to merge; add documents, or use gpt2"
        )
    say(f"{merges:,} merges learnt from {taken.documents:,} documents, {taken.text_bytes / 1e6:,.1f} MB")
    return encoding.to_str(), {"documents": taken.documents, "text_bytes": taken.text_bytes, "merges": merges}


def _share(documents: TrainedOn) -> tuple[int, int]:
    """Return which share of the training documents to take, as a ratio of bytes."""
    total = sum(int(_sizes(texts).sum()) for texts in _training_texts(documents))
    return min(TRAINED_BYTES, max(total, 1)), max(total, 1)


def _training_texts(documents: TrainedOn) -> Iterator[pa.StringArray]:
    """Yield the texts of the training documents, some at a time; no held-out document is among them."""
    from gpt_pipeline.data.documents.stage import document_files

    for stage, data in documents:
        for batch in read_side(document_files(stage), ("text", "group"), data, held_out=False, batch_rows=_BATCH_ROWS):
            texts = batch["text"]
            yield texts if data.template == PLAIN else pc.replace_substring_regex(texts, _MARKS, "\n")


def _sizes(texts: pa.StringArray) -> NDArray[np.int64]:
    sizes = pc.binary_length(texts).to_numpy(zero_copy_only=False)
    found: NDArray[np.int64] = np.minimum(sizes, _DOCUMENT_BYTES).astype(np.int64)
    return found


@dataclass(kw_only=True)
class _Taken:
    """The documents that a tokenizer is trained on, counted while they are read."""

    share: tuple[int, int]
    documents: int = 0
    text_bytes: int = 0

    @property
    def share_in_words(self) -> str:
        part, whole = self.share
        return "all" if part == whole else f"{math.ceil(100 * part / whole)} %, evenly taken,"

    def texts(self, documents: TrainedOn) -> Iterator[list[str]]:
        """Yield the texts: of n documents, those at which the share of them passes a whole number."""
        part, whole = self.share
        seen = 0
        for texts in _training_texts(documents):
            numbers = np.arange(seen, seen + len(texts) + 1) * part // whole
            seen += len(texts)
            chosen = texts.filter(of_flags(np.diff(numbers) > 0))
            self.documents += len(chosen)
            self.text_bytes += int(_sizes(chosen).sum())
            yield [text if len(text) < _DOCUMENT_BYTES else _beginning(text) for text in chosen.to_pylist()]


def _beginning(text: str) -> str:
    return text.encode()[:_DOCUMENT_BYTES].decode(errors="ignore")
