"""How many documents and tokens an experiment trains on: counted where the shards exist, else estimated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np

from gpt_pipeline.data.config import GPT2, SYNTH, DataConfig
from gpt_pipeline.data.documents.raw import known_raw
from gpt_pipeline.data.formats import stage_names
from gpt_pipeline.data.tokens.choose import known_shards
from gpt_pipeline.data.tokens.mixed import epoch_of
from gpt_pipeline.errors import NewerFileError, UserError
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.planning.survey import Survey, is_surveyed, survey
from gpt_pipeline.storage.fingerprint import SHORT
from gpt_pipeline.storage.manifest import Manifest, read_manifest

SYNTH_TOKENS_PER_DOCUMENT = 1.6e9 / 2_000_000
"""Of the first 2,000,000 English documents of PleIAs/SYNTH, `<|endoftext|>` included: some 1.6 billion GPT-2 tokens."""

SYNTH_DOCUMENTS = 62_900_000
"""The English rows of PleIAs/SYNTH: 80.8 % of 77.9 million."""

_SYNTH_SHARES = {"en": 0.808, "de": 0.032, "es": 0.032, "fr": 0.032, "pl": 0.032, "it": 0.032, "nl": 0.016, "la": 0.016}
_SYNTH_SMALLEST_SHARE = 0.001  # of the other languages, about

BYTES_PER_TOKEN = 4.5
"""UTF-8 bytes of English text in a GPT-2 token, about."""

_BYTES_BY_IDS = {256: 1.0, 512: 1.8, 1024: 2.3, 4096: 3.2, 16384: 3.7, 65536: 4.0}
"""The same for a byte-level BPE of so many ids that was trained on such text: 2,500 texts of documentation, measured on
300 others."""

SAMPLE_TOKENS_PER_DOCUMENT = 46.3
"""Of the sample that the project writes: 16,000 documents counted, 46.33."""


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """What the shards contain, or will contain."""

    documents: int
    """0: nothing is known of the files, and a finding says why."""

    train_tokens: int
    validation_tokens: int
    exact: bool
    """Whether the shards exist and these are their counts."""

    source: str
    """Where the numbers come from."""

    parts: Mapping[str, TokenCount] = field(default_factory=dict)
    """Those of each part of a mix by itself; empty without a mix."""

    epochs: Mapping[str, float] = field(default_factory=dict)
    """How many times an epoch of a mix takes each of its parts; empty without a mix."""

    @property
    def tokens(self) -> int:
        return self.train_tokens + self.validation_tokens


def count_tokens(experiment: Experiment) -> TokenCount:
    """Return the tokens of the experiment's data."""
    shards = known_shards(experiment.data, experiment.data_folder)
    mixed = None if experiment.config.data.mix is None else _mixed(experiment)
    if shards is None:
        return mixed or _estimated(experiment)
    facts = shards.manifest.facts
    return TokenCount(
        documents=facts["train_documents"] + facts["validation_documents"],
        train_tokens=facts["train_tokens"],
        validation_tokens=facts["validation_tokens"],
        exact=True,
        source=f"counted in {shards.folder.name}",
        parts={} if mixed is None else mixed.parts,
        epochs={} if mixed is None else mixed.epochs,
    )


def _mixed(experiment: Experiment) -> TokenCount:
    """Return what the shards of a mix will contain, by the tokens of its parts."""
    data, parts = experiment.config.data, {name: count_tokens(part) for name, part in experiment.parts.items()}
    sizes = {name: max(1, part.train_tokens) for name, part in parts.items()}
    shares = [data.shares[name] for name in sizes]
    amounts = dict(zip(sizes, epoch_of([*sizes.values()], shares, until=data.mix_until), strict=True))
    held_out = epoch_of([max(1, part.validation_tokens) for part in parts.values()], shares, until="first_exhausted")
    epochs = {name: amounts[name] / size for name, size in sizes.items()}
    is_known = all(part.documents for part in parts.values())
    return TokenCount(
        documents=round(sum(part.documents * epochs[name] for name, part in parts.items())) if is_known else 0,
        train_tokens=sum(amounts.values()),
        validation_tokens=sum(held_out),
        exact=False,
        source="; ".join(f"{name}: {part.source}" for name, part in parts.items()),
        parts=parts,
        epochs=epochs if is_known else {},
    )


def _estimated(experiment: Experiment) -> TokenCount:
    data = experiment.config.data
    held = cache(partial(_surveyed, experiment))  # looked into once, if at all
    each, source = _tokens_per_document(experiment, held)
    documents = _documents(experiment, held)
    tokens = round(documents * each)
    validation = round(tokens * data.validation_fraction)
    return TokenCount(
        documents=documents,
        train_tokens=tokens - validation,
        validation_tokens=validation,
        exact=False,
        source=source,
    )


def _documents(experiment: Experiment, surveyed: Callable[[], Survey | None]) -> int:
    """Return how many documents the experiment uses; of a whole source at most its rows, or what SYNTH has.

    0: its files cannot be read, or give none.
    """
    data = experiment.data
    limit = data.document_limit
    if (raw := known_raw(data, experiment.data_folder)) is not None:
        return int(raw.manifest.facts["documents"]) if limit is None else limit
    if not is_surveyed(data):
        return round(SYNTH_DOCUMENTS * documents_per_english(data)) if limit is None else limit
    held = surveyed()
    if held is None and data.local is None and limit is not None:  # the hub cannot be asked
        return limit
    if held is None or not held.documents:
        return 0
    return held.documents if limit is None else limit


def documents_per_english(data: DataConfig) -> float:
    """Return how many documents SYNTH's files have in the languages of `data` for each that is English."""
    languages = data.wanted_languages
    if languages is None:
        return 1 / _SYNTH_SHARES["en"]
    return sum(_SYNTH_SHARES.get(each, _SYNTH_SMALLEST_SHARE) for each in languages) / _SYNTH_SHARES["en"]


def _surveyed(experiment: Experiment) -> Survey | None:
    """Return what files hold; None for sources that need no look, and where a finding says what is wrong with them."""
    if not is_surveyed(experiment.data):
        return None
    try:
        return survey(experiment.data, experiment.data_folder)
    except UserError:
        return None


def _bytes_per_token(vocab_size: int | None) -> float:
    """Return the mean UTF-8 bytes of a token among so many; null: of GPT-2's."""
    if vocab_size is None:
        return BYTES_PER_TOKEN
    known = sorted(_BYTES_BY_IDS.items())
    return float(np.interp(math.log2(vocab_size), [math.log2(ids) for ids, _ in known], [each for _, each in known]))


def _tokens_per_document(experiment: Experiment, surveyed: Callable[[], Survey | None]) -> tuple[float, str]:
    """Return the mean tokens per document and where the number comes from."""
    own = None if experiment.config.data.tokenizer == GPT2 else experiment.config.model.vocab_size
    each, source = _gpt2_tokens_per_document(experiment, surveyed)
    if own is None:
        return each, source.format(each)
    each *= BYTES_PER_TOKEN / _bytes_per_token(own)
    return each, f"{source.format(each)}, with a tokenizer of {own:,} ids"


def _gpt2_tokens_per_document(experiment: Experiment, surveyed: Callable[[], Survey | None]) -> tuple[float, str]:
    """Return the mean GPT-2 tokens per document and where the number comes from, with `{:.1f}` for the number."""
    data = experiment.data
    counted = max(_counted(experiment), key=lambda pair: pair[0], default=None)
    if counted is not None:
        documents, each = counted
        return each, f"estimated: {{:.1f}} tokens per document, as counted in {documents:,} of the same source"
    if data.is_sample:
        each = SAMPLE_TOKENS_PER_DOCUMENT
        return each, "estimated: {:.1f} tokens per document, as counted in 16,000 of the sample"
    held = surveyed()
    if held is not None and held.documents:
        each = held.text_bytes / BYTES_PER_TOKEN / max(1, held.documents) + 1
        return each, f"estimated: {{:.1f}} tokens per document, from the size of the first {held.read:,} texts"
    each = SYNTH_TOKENS_PER_DOCUMENT
    if data.format != "synth":
        found = "could not be looked into" if held is None else "give no document in their first rows"
        return each, f"a guess: {{:.0f}} tokens per document; the files {found}"
    which = "" if data.source == SYNTH else f"; if the source is like {SYNTH}"
    return each, f"estimated: {{:.0f}} tokens per document, as in the first 2,000,000 of {SYNTH}{which}"


def _counted(experiment: Experiment) -> Iterator[tuple[int, float]]:
    """Yield documents, and GPT-2 tokens for each, of the finished shards here that come from the same source.

    Where they have other tokens, so many GPT-2 tokens as these would be.
    """
    for folder in experiment.data_folder.glob("token_shards-*"):
        try:
            shards = read_manifest(folder)
            raw = None if shards is None else _raw_of(experiment, shards)
        except NewerFileError:
            continue  # nothing that this experiment needs
        if shards is not None and raw is not None and _is_source(experiment.data, str(raw.facts["source"])):
            facts = shards.facts
            each = float(facts["tokens_per_document"]) * _bytes_per_token(facts.get("vocab_size")) / BYTES_PER_TOKEN
            yield facts["train_documents"] + facts["validation_documents"], each


def _raw_of(experiment: Experiment, shards: Manifest) -> Manifest | None:
    """Return the manifest of the raw files that the shards come from, if it still exists."""
    found: Manifest | None = shards
    names = stage_names(experiment.data)
    for stage in (names.documents, names.raw):
        if found is None:
            return None
        found = read_manifest(experiment.data_folder / f"{stage}-{found.upstream[0][:SHORT]}")
    return found


def _is_source(data: DataConfig, description: str) -> bool:
    """Whether raw files with this description come from where `data` says; see the sources' own `description`."""
    if data.local is not None:
        return description == data.local
    if data.is_sample:
        return description.startswith("the sample")
    return description.startswith(f"{data.origin} at ")
