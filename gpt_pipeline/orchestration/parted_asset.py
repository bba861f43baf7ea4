"""A data stage as an asset whose source files are steps of the run: each seen, retried and done again alone."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import dagster as dg

from gpt_pipeline.data.stage import PartedStage
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.mirroring import bring_data, send_data_to_mirror
from gpt_pipeline.orchestration.attributes import OWNERS, stage_tags
from gpt_pipeline.orchestration.failures import explained
from gpt_pipeline.orchestration.metadata import fact, stage_metadata
from gpt_pipeline.orchestration.run_config import switch
from gpt_pipeline.shown import Say

# For a worker that was killed, or a disk or network that failed for a moment; a user's mistake is not tried again.
_RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL)


OPTIONS = {"force": switch("Make the stage again even if it is finished.")}
_LABEL_LENGTH = 50
StageFactory = Callable[[], PartedStage]
Announce = Callable[[Say], None]
"""Puts those for whom a stage is made on record, before it is looked for."""

Told = Callable[[dg.DagsterRun, str], str]
"""Returns what a stage says with the keys of the experiment file that a run is of."""


def parted_asset(
    stage: StageFactory,
    *,
    announce: Announce,
    told: Told,
    key: dg.AssetKey,
    name: str,
    group: str,
    upstream: dg.AssetKey | None,
    part: str,
    kinds: set[str],
    metadata: Mapping[str, Any],
    description: str,
    mirrored: Experiment | None,
) -> dg.AssetsDefinition:
    """Return the asset `key` made by `stage`.

    `name` is what its steps are called by, its alone in the project; `part` names the step that does one group of
    source files; `mirrored` is an experiment with a mirror whose data this is.
    """
    # Aliases: in the run a step is called by what it does, while an op's own name must be its alone in the project.
    plan = _plan_op(stage, announce, told, name, mirrored, waits=upstream is not None).alias("plan")
    make = _part_op(stage, told, name, part).alias(part)
    finish = _finish_op(stage, told, key, name, mirrored).alias("finish")

    def first_stage() -> object:
        return finish(plan().map(make).collect())

    def later_stage(upstream: object) -> object:
        return finish(plan(upstream).map(make).collect())

    # `graph_asset` would call its steps by the whole key.
    compose = dg.graph(
        name=name,
        description=description,
        config=dg.ConfigMapping(
            config_fn=lambda chosen: {step: {"config": chosen} for step in ("plan", part, "finish")},
            config_schema=OPTIONS,
        ),
        ins={"upstream": dg.GraphIn()} if upstream else {},
        out=dg.GraphOut(),
    )
    return dg.AssetsDefinition.from_graph(
        compose(later_stage if upstream else first_stage),
        keys_by_input_name={"upstream": upstream} if upstream else {},
        keys_by_output_name={"result": key},
        group_name=group,
        descriptions_by_output_name={"result": description},
        metadata_by_output_name={"result": metadata},
        tags_by_output_name={"result": {**stage_tags(key.path[-1]), **{f"dagster/kind/{kind}": "" for kind in kinds}}},
        owners_by_output_name={"result": OWNERS},
        code_versions_by_output_name={"result": key.path[0]},
    )


def _plan_op(
    stage: StageFactory, announce: Announce, told: Told, name: str, mirrored: Experiment | None, *, waits: bool
) -> dg.OpDefinition:
    @dg.op(
        name=f"{name}__plan",
        ins={"upstream": dg.In(dg.Nothing)} if waits else {},
        out=dg.DynamicOut(list),
        config_schema=OPTIONS,
        description="Find out which source files are still to be done.",
    )
    def plan(context: dg.OpExecutionContext) -> Iterator[dg.DynamicOutput]:
        force, of_run = context.op_config["force"], partial(told, context.run)
        say = _say(context, of_run)
        with explained(told=of_run):
            announce(say)
            if mirrored is not None and not force:
                bring_data(mirrored, stage(), say=say)
            groups = stage().plan(force=force, say=say)
        for label, names in zip(labels(groups), groups, strict=True):
            yield dg.DynamicOutput(list(names), mapping_key=label)

    return plan


def _part_op(stage: StageFactory, told: Told, name: str, part: str) -> dg.OpDefinition:
    @dg.op(
        name=f"{name}__{part}",
        config_schema=OPTIONS,
        retry_policy=_RETRIES,
        description="Do one source file, or a few small ones.",
    )
    def make(context: dg.OpExecutionContext, names: list) -> dict:
        started, of_run = time.monotonic(), partial(told, context.run)
        stopped = "Stopped; source files that are finished are kept, and the next run makes the others."
        with explained(stopped=stopped, told=of_run):
            facts = stage().make(names, force=context.op_config["force"], say=_say(context, of_run))
        seconds = max(0.001, round(time.monotonic() - started, 3))
        own = {"files": ", ".join(names), "seconds": seconds, "megabytes_per_second": facts["megabytes"] / seconds}
        context.add_output_metadata({**own, **{name: fact(value) for name, value in facts.items()}})
        return {"seconds": seconds, "megabytes": facts["megabytes"]}

    return make


def _finish_op(
    stage: StageFactory, told: Told, key: dg.AssetKey, name: str, mirrored: Experiment | None
) -> dg.OpDefinition:
    @dg.op(
        name=f"{name}__finish",
        out=dg.Out(dg.Nothing),
        config_schema=OPTIONS,
        description="Put the parts together.",
    )
    def finish(context: dg.OpExecutionContext, made: list) -> dg.Output:
        of_run = partial(told, context.run)
        with explained(told=of_run):
            result = stage().finish(force=context.op_config["force"], say=_say(context, of_run))
        if mirrored is not None:
            send_data_to_mirror(mirrored)
        context.set_data_version(key, dg.DataVersion(result.fingerprint))
        metadata = {**stage_metadata(result), **_work(made), "already_finished": result.reused and not made}
        return dg.Output(None, metadata=metadata)

    return finish


def _say(context: dg.OpExecutionContext, told: Callable[[str], str]) -> Say:
    return lambda text: context.log.info(told(text))


def _work(made: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what this run did, all its workers together; nothing if it found everything done."""
    if not made:
        return {}
    seconds, megabytes = (sum(each[name] for each in made) for name in ("seconds", "megabytes"))
    return {
        "worker_seconds": round(seconds, 3),
        "megabytes_done": round(megabytes, 3),
        "megabytes_per_worker_second": megabytes / seconds,
    }


def labels(groups: Sequence[Sequence[str]]) -> list[str]:
    """Return a name in Dagster's letters for each group of files, all different."""
    found: list[str] = []
    for names in groups:
        first = re.sub(r"\W", "_", names[0].removesuffix(".parquet"), flags=re.ASCII)[-_LABEL_LENGTH:]
        label = first if len(names) == 1 else f"{first}_and_{len(names) - 1}_more"
        while label in found:
            label = f"{label}_{len(found)}"
        found.append(label)
    return found
