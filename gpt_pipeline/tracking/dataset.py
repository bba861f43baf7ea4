"""The data of an experiment as MLflow shows the inputs of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.storage.fingerprint import SHORT
from gpt_pipeline.storage.manifest import StageResult
from gpt_pipeline.tracking.store import OpenStore

_LONGEST_NAME = 500  # MLflow's limit
_CONTEXT_TAG = "mlflow.data.context"
_SPLITS = ("train", "validation")
_SCHEMA = {"mlflow_colspec": [{"name": "tokens", "type": "integer", "required": True}]}


@dataclass(frozen=True, kw_only=True)
class LoggedDataset:
    """The token shards that a training and its evaluations read; MLflow knows them by name and digest."""

    name: str
    """Where the documents come from."""

    fingerprint: str
    """Of the shards; its first digits, which their folder bears too, are the digest."""

    source_type: str
    source: Mapping[str, str]
    profile: Mapping[str, Any]
    """`num_rows` (documents) and `num_elements` (tokens), as MLflow calls them, and both by split."""


def dataset_of(experiment: Experiment, shards: StageResult) -> LoggedDataset:
    """Return the data of the experiment, whose finished `shards` are given."""
    facts = shards.manifest.facts
    counts = {f"{split}_{what}": int(facts[f"{split}_{what}"]) for split in _SPLITS for what in ("documents", "tokens")}
    source_type, source = _source(experiment, shards)
    return LoggedDataset(
        name=experiment.config.data.origin[:_LONGEST_NAME],
        fingerprint=shards.fingerprint,
        source_type=source_type,
        source=source,
        profile={
            "num_rows": sum(counts[f"{split}_documents"] for split in _SPLITS),
            "num_elements": sum(counts[f"{split}_tokens"] for split in _SPLITS),
            **counts,
            "shards_fingerprint": shards.fingerprint,
        },
    )


def log_dataset(
    store: OpenStore, run_id: str, dataset: LoggedDataset, *, context: Literal["training", "evaluation"]
) -> None:
    """Name `dataset` as an input of the run; doing so again changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(
        name=dataset.name,
        digest=dataset.fingerprint[:SHORT],
        source_type=dataset.source_type,
        source=json.dumps(dataset.source),
        schema=json.dumps(_SCHEMA),
        profile=json.dumps(dataset.profile),
    )
    store.client.log_inputs(run_id, datasets=[DatasetInput(entity, [InputTag(_CONTEXT_TAG, context)])])


def _source(experiment: Experiment, shards: StageResult) -> tuple[str, dict[str, str]]:
    """Return MLflow's word for the kind of source and how to find it: on the hub, or in a folder."""
    data = experiment.data
    if data.mix is None and data.local is None and not data.is_sample:
        named = {"path": data.source, "config_name": data.subset, "split": data.split, "revision": data.revision}
        return "hugging_face", {key: value for key, value in named.items() if value is not None}
    place = data.local if data.mix is None else None
    return "local", {"uri": place or str(shards.folder)}
