"""Names in Dagster: asset keys, groups, jobs, partitions, pools, tags."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import dagster as dg

from gpt_pipeline.data.config import DataConfig
from gpt_pipeline.data.formats import shards_name, stage_names
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.storage.fingerprint import fingerprint, identity_of
from gpt_pipeline.storage.names import slug

TRAINING_POOL = "training"
EVALUATION_POOL = "evaluation"
POOLS = (TRAINING_POOL, EVALUATION_POOL)
EXPERIMENT_TAG = "gpt_pipeline/experiment"
STAGE_TAG = "gpt_pipeline/stage"
JOB_TAG = "gpt_pipeline/job"
"""Of a run: which job of which engine trains for it."""

_DIGITS = 6  # of the digest at the end of a `data_group`
_DIGEST = re.compile(r"_[0-9a-f]{6}$")
_DIGEST_AND_NAME = re.compile(r"_[0-9a-f]{6}(_.*)?$")  # of a `node_name`
COMMAND_TAG = ".dagster/gpt_pipeline_command"
"""Of a run that a command executes, which tells itself how it ended."""

EVALUATION_TAG = ".dagster/gpt_pipeline_evaluation"
"""Bears an evaluation's fingerprint. Dagster's pages hide what begins with `.dagster/`: it says nothing to a person."""

REPORT_TAG = ".dagster/gpt_pipeline_report"
"""Bears the fingerprint of what the report would show."""

COMPARISON_TAG = ".dagster/gpt_pipeline_comparison"
"""Bears the fingerprint of what the comparison would show."""

COMPARISON_JOB = "compare_experiments"

_MAKERS = {"report": "report", "evaluation": "evaluate", "rl_prompts": "run", "training": "run"}
"""By an experiment's own assets, how the name of the job begins that makes them; the last one makes the most."""

_WHOLE = {"training", "evaluation", "report"}  # picked together, as much as the job that makes everything


def stage_of(step_key: str) -> str:
    """`raw_synth_1907de.check_file[synth_001]` -> `raw_synth`, `demo__training` -> `training`: a step's stage."""
    return _DIGEST_AND_NAME.sub("", step_key.partition(".")[0].rpartition("__")[2])


def part_of(experiment: Experiment, group: str) -> str:
    """Return the part of the experiment's mix whose data group this is; empty for others, and without a mix."""
    parts = experiment.config.data.parts.items()
    return next((name for name, part in parts if name and group.startswith(data_group(part))), "")


def node_name(experiment: Experiment, group: str, stage: str) -> str:
    """Return what the steps of a data stage are called: the stage, then what tells `group` from others.

    The whole group's name, which says what the data is, would not fit beside what a step does. Nothing of it depends on
    the project's other experiments: one that is added while a run is at work must not rename its steps.
    """
    return f"{stage}_{group.removeprefix(data_group(experiment.config.data)[:-_DIGITS])}"


def data_group(data: DataConfig) -> str:
    """Return a readable name that two `data:` blocks share exactly if all their data stages are the same.

    That takes the same documents, split and tokenizer: the token shards, which are assets of the group too, differ
    with each of these. `max_length` does not count, for shards hold whole documents.
    """
    if data.mix is not None:
        return _mix_group(data)
    name = "local" if data.local else data.source.split("/")[-1]
    identity = {
        "source": data.source,
        "revision": data.revision,
        "local_dataset_path": Path(data.local_dataset_path).as_posix() if data.local_dataset_path else None,
        "num_samples": data.document_limit or "all",
        "validation_fraction": data.validation_fraction,
        "seed": data.seed,
        **identity_of(
            data,
            *("format", "columns", "filter", "group", "kind", "split_text_at", "subset", "split", "tokenizer"),
            "near_duplicates",
            "join_parts",
            "template",
        ),
        **({} if data.is_english or data.format != "synth" else {"languages": data.wanted_languages}),
    }
    digest = fingerprint("data_group", config=identity, code_version="1")
    return f"data_{slug(name)}_{data.document_limit or 'all'}_{digest[:_DIGITS]}"


def _mix_group(data: DataConfig) -> str:
    parts = sorted([data_group(part), data.shares[name]] for name, part in data.parts.items())
    digest = fingerprint("data_group", config={"parts": parts, "until": data.mix_until}, code_version="1")
    return f"data_mix_{data.document_limit or 'all'}_{digest[:_DIGITS]}"


def data_groups(experiments: Sequence[Experiment]) -> Mapping[str, Mapping[str, str]]:
    """Return the data groups of each experiment by its name: those of a mix's parts by theirs, of its shards by ''.

    Experiments with the same documents share a group, unless they keep them in different base folders: then the
    second group bears the first experiment's name too.
    """
    owners: dict[str, str] = {}
    groups: dict[str, Mapping[str, str]] = {}
    for experiment in experiments:
        folder = experiment.config.storage.base_folder
        own = {}
        for name, each in {**experiment.parts, "": experiment}.items():
            group = data_group(each.config.data)
            own[name] = group if owners.setdefault(group, folder) == folder else f"{group}_{experiment.name}"
        groups[experiment.name] = own
    return groups


def shards_key(experiment: Experiment, groups: Mapping[str, str]) -> dg.AssetKey:
    """Return the key of the shards that the training of `experiment` reads; `groups` are its own `data_groups`."""
    return dg.AssetKey([groups[""], shards_name(experiment.config.data)])


def documents_keys(experiment: Experiment, groups: Mapping[str, str]) -> list[dg.AssetKey]:
    """Return the keys of the documents of all parts of `experiment`; `groups` are its own `data_groups`."""
    parts = experiment.parts.items()
    return [dg.AssetKey([groups[name], stage_names(part.config.data).documents]) for name, part in parts]


def data_keys(experiment: Experiment, groups: Mapping[str, str]) -> list[dg.AssetKey]:
    """Return the keys of all data that the training of `experiment` needs; `groups` are its own `data_groups`."""
    parts = experiment.parts.items()
    keys = [dg.AssetKey([groups[name], stage]) for name, each in parts for stage in stage_names(each.config.data).all]
    return list(dict.fromkeys([*keys, shards_key(experiment, groups)]))


def short_names(groups: Iterable[str]) -> Mapping[str, str]:
    """Return under which name the pages show each data group: without its digest where that leaves it unique.

    The group itself stays as it is in the assets' keys, under which their histories are found.
    """
    shown = {group: _DIGEST.sub("", group) for group in groups}
    counts = Counter(shown.values())
    return {group: name if counts[name] == 1 else group for group, name in shown.items()}


def asset_key(experiment: Experiment, name: str) -> dg.AssetKey:
    """Return the key of one of the experiment's own assets."""
    return dg.AssetKey([experiment.name, name])


def own_stages(experiment: Experiment) -> list[dg.AssetKey]:
    """Return the keys of what the experiment makes of its data, up to its training."""
    names = ("rl_prompts", "training") if experiment.config.has_rollouts else ("training",)
    return [asset_key(experiment, name) for name in names]


def run_job(experiment: Experiment) -> str:
    """Name of the job that makes data and training."""
    return f"run_{experiment.name}"


def data_job(experiment: Experiment) -> str:
    """Name of the job that makes the data alone."""
    return f"data_{experiment.name}"


def evaluate_job(experiment: Experiment) -> str:
    """Name of the job that evaluates one checkpoint."""
    return f"evaluate_{experiment.name}"


def report_job(experiment: Experiment) -> str:
    """Name of the job that writes the report anew."""
    return f"report_{experiment.name}"


def jobs_of(run: dg.DagsterRun) -> Mapping[str, str]:
    """Return the experiments that a run works for, by their names, each with its job that makes the same.

    A run of assets that somebody picked by hand has a job of Dagster's own, and may be of several experiments.
    """
    if name := run.tags.get(EXPERIMENT_TAG):
        return {name: run.job_name}
    return {name: f"{verb}_{name}" for asset, verb in _MAKERS.items() for name, own in _picked(run) if asset in own}


def ended_well(run: dg.DagsterRun) -> Mapping[str, Collection[str] | None]:
    """Return of which jobs a run makes up for a failure if it ends well, by `jobs_of`'s experiments; None for all."""
    if name := run.tags.get(EXPERIMENT_TAG):
        return {name: None if run.job_name == f"run_{name}" else {run.job_name}}
    jobs: dict[str, Collection[str] | None] = {}
    for name, own in _picked(run):
        verbs = {_MAKERS[asset] for asset in own} | ({"data"} if "training" in own else set())  # which read the data
        jobs[name] = None if own >= _WHOLE else {f"{verb}_{name}" for verb in verbs}
    return jobs


def _picked(run: dg.DagsterRun) -> list[tuple[str, set[str]]]:
    """Return the experiments of which somebody picked own assets, each with these."""
    paths = [key.path for key in run.asset_selection or () if len(key.path) == 2 and key.path[1] in _MAKERS]
    return [(name, {path[1] for path in paths if path[0] == name}) for name in sorted({path[0] for path in paths})]


def checkpoint_partitions(experiment: Experiment) -> dg.DynamicPartitionsDefinition:
    """Return the experiment's checkpoints as partitions; a key is `step_00001000`."""
    return dg.DynamicPartitionsDefinition(name=f"{experiment.name}_checkpoints")


def add_checkpoint_partitions(instance: dg.DagsterInstance, experiment: Experiment, partitions: Iterable[str]) -> None:
    """Add those of `partitions` that do not exist yet.

    Dagster checks first and inserts then, so two processes that add the same one (the training step and the evaluator
    beside it) can collide in the database; the second one has what it wanted.
    """
    from sqlalchemy.exc import IntegrityError

    name = checkpoint_partitions(experiment).name or ""
    for partition in partitions:
        try:
            instance.add_dynamic_partitions(name, [partition])
        except IntegrityError:
            if not instance.has_dynamic_partition(name, partition):
                raise
