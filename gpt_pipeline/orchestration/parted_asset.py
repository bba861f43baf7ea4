"""A data stage as an asset whose source files are steps of the run: each seen, retried and done again alone."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from gpt_pipeline.data.stage import PartedStage
from gpt_pipeline.orchestration.attributes import OWNERS, stage_tags
from gpt_pipeline.orchestration.failures import explained
from gpt_pipeline.orchestration.metadata import fact, stage_metadata
from gpt_pipeline.orchestration.run_config import switch

# For a worker that was killed, or a disk or network that failed for a moment; a user's mistake is not tried again.
_RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL)


_OPTIONS = {"force": switch("Make the stage again even if it is finished.")}
_LABEL_LENGTH = 60
StageFactory = Callable[[], PartedStage]


def parted_asset(
    stage: StageFactory,
    *,
    key: dg.AssetKey,
    group: str,
    upstream: dg.AssetKey | None,
    part: str,
    kinds: set[str],
    metadata: Mapping[str, Any],
    description: str,
) -> dg.AssetsDefinition:
    """Return the asset `key` made by `stage`; `part` names the step that does one group of source files."""
    # Aliases: in the run a step is called by what it does, while an op's own name must be its alone in the project.
    plan = _plan_op(stage, key, waits=upstream is not None).alias("plan")
    make = _part_op(stage, key, part).alias(part)
    finish = _finish_op(stage, key).alias("finish")

    def first_stage() -> object:
        return finish(plan().map(make).collect())

    def later_stage(upstream: object) -> object:
        return finish(plan(upstream).map(make).collect())

    decorate = dg.graph_asset(
        key=key,
        group_name=group,
        ins={"upstream": dg.AssetIn(key=upstream, dagster_type=dg.Nothing)} if upstream else None,
        config=dg.ConfigMapping(
            config_fn=lambda chosen: {"plan": {"config": chosen}},
            config_schema=_OPTIONS,
        ),
        kinds=kinds,
        owners=OWNERS,
        tags=stage_tags(key.path[-1]),
        metadata=metadata,
        code_version=key.path[0],
        description=description,
    )
    return decorate(later_stage if upstream else first_stage)


def _plan_op(stage: StageFactory, key: dg.AssetKey, *, waits: bool) -> dg.OpDefinition:
    @dg.op(
        name=f"{'__'.join(key.path)}__plan",
        ins={"upstream": dg.In(dg.Nothing)} if waits else {},
        out=dg.DynamicOut(list),
        config_schema=_OPTIONS,
        description="Find out which source files are still to be done.",
    )
    def plan(context: dg.OpExecutionContext) -> Iterator[dg.DynamicOutput]:
        with explained():
            groups = stage().plan(force=context.op_config["force"], say=context.log.info)
        for label, names in zip(labels(groups), groups, strict=True):
            yield dg.DynamicOutput(list(names), mapping_key=label)

    return plan


def _part_op(stage: StageFactory, key: dg.AssetKey, part: str) -> dg.OpDefinition:
    @dg.op(
        name=f"{'__'.join(key.path)}__{part}",
        retry_policy=_RETRIES,
        description="Do one source file, or a few small ones.",
    )
    def make(context: dg.OpExecutionContext, names: list) -> dict:
        started = time.monotonic()
        with explained(stopped="Stopped; source files that are finished are kept, and the next run makes the others."):
            facts = stage().make(names, say=context.log.info)
        seconds = max(0.001, round(time.monotonic() - started, 3))
        own = {"files": ", ".join(names), "seconds": seconds, "megabytes_per_second": facts["megabytes"] / seconds}
        context.add_output_metadata({**own, **{name: fact(value) for name, value in facts.items()}})
        return {"seconds": seconds, "megabytes": facts["megabytes"]}

    return make


def _finish_op(stage: StageFactory, key: dg.AssetKey) -> dg.OpDefinition:
    @dg.op(name=f"{'__'.join(key.path)}__finish", out=dg.Out(dg.Nothing), description="Put the parts together.")
    def finish(context: dg.OpExecutionContext, made: list) -> dg.Output:
        with explained():
            result = stage().finish(say=context.log.info)
        context.set_data_version(key, dg.DataVersion(result.fingerprint))
        metadata = {**stage_metadata(result), **_work(made), "already_finished": result.reused and not made}
        return dg.Output(None, metadata=metadata)

    return finish


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
        first, last = (
            re.sub(r"\W", "_", name.removesuffix(".parquet"), flags=re.ASCII) for name in (names[0], names[-1])
        )
        label = first if len(names) == 1 else f"{first}_to_{last}"
        label = label[-_LABEL_LENGTH:]
        while label in found:
            label = f"{label}_{len(found)}"
        found.append(label)
    return found
