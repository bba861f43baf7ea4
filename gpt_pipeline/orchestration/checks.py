"""Asset checks: what must be true of a stage's output, and what to do otherwise."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import dagster as dg

from gpt_pipeline.data.formats import has_questions, stage_names
from gpt_pipeline.errors import DataError
from gpt_pipeline.evaluation.result import EvaluationResult, find_evaluation, read_evaluations
from gpt_pipeline.evaluation.verdicts import FORGETTING_MARGIN, forgetting_verdict, loss_verdict, output_verdict
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.training import base_experiment
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.failures import explained
from gpt_pipeline.orchestration.stages import finished_documents, finished_shards, finished_training

if TYPE_CHECKING:
    from gpt_pipeline.evaluation.unseen import TrainedOn
    from gpt_pipeline.findings import Finding

_VERSION_TAG = "dagster/data_version"

# SYNTH is 80.8 % English; a source far from that is probably not what the user meant.
_ENGLISH_SHARE = (0.7, 0.9)

_REMAKE = "materialize {documents} and token_shards with force, then train anew; validation losses do not count"


def data_checks(group: str, experiment: Experiment) -> Sequence[dg.AssetChecksDefinition]:
    """Return the checks of the data stages in `group`."""
    names = stage_names(experiment.data)
    documents, shards = dg.AssetKey([group, names.documents]), dg.AssetKey([group, names.all[-1]])
    remake = _REMAKE.format(documents=names.documents)
    of_english = [_english_share(documents, experiment), _language_purity(documents, experiment)]
    return [
        *(of_english if experiment.data.is_english else []),
        _groups_kept_apart(shards, experiment, remake),
        _token_counts_add_up(shards, experiment, remake),
    ]


def _english_share(key: dg.AssetKey, experiment: Experiment) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=key, description="The share of English rows is about SYNTH's 80.8 %.")
    def english_share() -> dg.AssetCheckResult:
        with explained():
            languages = finished_documents(experiment).manifest.facts["languages"]
        share = languages.get("en", 0) / max(1, sum(languages.values()))
        low, high = _ENGLISH_SHARE
        return dg.AssetCheckResult(
            passed=low <= share <= high,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{share:.1%} of the rows read are English; SYNTH has 80.8 %. "
            "Another share is fine if the source is meant to differ.",
            metadata={"english_share": share},
        )

    return english_share


def _language_purity(key: dg.AssetKey, experiment: Experiment) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=key, description="The documents kept read as English.")
    def language_purity() -> dg.AssetCheckResult:
        from gpt_pipeline.data.audit import check_language_purity
        from gpt_pipeline.data.documents.stage import document_files

        with explained():
            finding = check_language_purity(document_files(finished_documents(experiment)))
        return _result(finding, remedy="a source of other languages: see data.source and the examples in the metadata")

    return language_purity


def _groups_kept_apart(key: dg.AssetKey, experiment: Experiment, remake: str) -> dg.AssetChecksDefinition:
    is_synth = experiment.data.format == "synth"
    name = f"{'articles' if is_synth else 'groups'}_kept_apart"

    @dg.asset_check(name=name, asset=key, description=f"No {_kin(experiment)} has documents in both splits.")
    def groups_kept_apart() -> dg.AssetCheckResult:
        from gpt_pipeline.data.audit import check_groups_kept_apart
        from gpt_pipeline.data.documents.stage import document_files
        from gpt_pipeline.data.tokens.stream import open_shards
        from gpt_pipeline.data.tokens.tokenizer import tokenizer_of

        data = experiment.data
        with explained():
            shards = finished_shards(experiment)
            finding = check_groups_kept_apart(
                document_files(finished_documents(experiment)),
                open_shards(shards.folder),
                tokenizer_of(shards),
                seed=data.seed,
                fraction=data.validation_fraction,
            )
        return _result(finding, remedy=remake)

    return groups_kept_apart


def _token_counts_add_up(key: dg.AssetKey, experiment: Experiment, remake: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=key, description="Tokens and documents of the shards are those of the manifests.")
    def token_counts_add_up() -> dg.AssetCheckResult:
        from gpt_pipeline.data.audit import check_token_counts
        from gpt_pipeline.data.tokens.stream import open_shards

        with explained():
            documents = finished_documents(experiment).manifest.facts["documents"]
            finding = check_token_counts(open_shards(finished_shards(experiment).folder), documents=documents)
        return _result(finding, remedy=remake)

    return token_counts_add_up


def _kin(experiment: Experiment) -> str:
    """Return what documents share that stay on one side of the split."""
    return "seed article" if all(part.format == "synth" for part in experiment.data.parts.values()) else "group"


def _written(experiment: Experiment) -> str:
    """Return what an evaluation lets the model write."""
    ask = {has_questions(part) for part in experiment.data.parts.values()}
    return "Answers and continuations" if len(ask) > 1 else "Answers" if ask == {True} else "Continuations"


def _result(finding: "Finding", *, remedy: str) -> dg.AssetCheckResult:
    """Return the finding as a check's result; a failed one says what to do."""
    text = finding.text if finding.passed else f"{finding.text}. To do: {remedy}."
    return dg.AssetCheckResult(passed=finding.passed, description=text, metadata=dict(finding.facts))


def training_checks(experiment: Experiment) -> Sequence[dg.AssetChecksDefinition]:
    """Return the checks of the experiment's training."""
    uniform = math.log(experiment.config.model.vocab_size)

    @dg.asset_check(
        asset=keys.asset_key(experiment, "training"),
        description="The validation loss at the end is finite and below that of a uniform guess.",
    )
    def loss_below_uniform() -> dg.AssetCheckResult:
        with explained():
            loss = finished_training(experiment).val_loss
        passed = math.isfinite(loss) and loss < uniform
        text = f"{loss:.4f} nats per token; a uniform guess gives {uniform:.4f}"
        if not passed:
            text += ". To do: lower training.learning_rate, raise training.warmup_steps, or train longer"
        return dg.AssetCheckResult(
            passed=passed,
            description=text,
            metadata={"val_loss": round(loss, 4), "uniform_loss": round(uniform, 4)},
        )

    return [loss_below_uniform]


def evaluation_checks(experiment: Experiment) -> Sequence[dg.AssetChecksDefinition]:
    """Return the checks of the experiment's evaluations: one step for all of them.

    In the run of a partition they judge that partition, otherwise the newest evaluation. They warn and stop nothing: a
    failed one says something about the training, whose checkpoints are evaluated all the same.
    """
    key, ask = keys.asset_key(experiment, "evaluation"), has_questions(experiment.data)
    judges: dict[str, tuple[str, Callable[[Experiment, EvaluationResult], Finding]]] = {
        "val_loss_near_best": (
            "The loss that decides which checkpoint is best is not worse than the best so far.",
            lambda _, result: loss_verdict(
                result, read_evaluations(experiment.folder.evaluations), experiment.config.deciding_loss
            ),
        ),
        "output_not_degenerate": (
            f"{_written(experiment)} are not empty, do not repeat themselves, and end.",
            lambda _, result: output_verdict(result),
        ),
        "questions_unseen": (
            f"No training document has a question's {_kin(experiment)} or text, or asks the same.",
            _judge_questions,
        ),
    }
    if not ask:
        del judges["questions_unseen"]
    if experiment.config.training.is_post_training and experiment.config.start_from is not None:
        judges["base_not_forgotten"] = (
            f"The loss on what the pretraining held out is at most {FORGETTING_MARGIN} above that of the base.",
            _judge_forgetting,
        )
    specs = [dg.AssetCheckSpec(name, asset=key, description=does) for name, (does, _) in judges.items()]

    @dg.multi_asset_check(name=f"{experiment.name}_evaluation_checks", specs=specs, can_subset=True)
    def judge_evaluation(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with explained():
            result = _evaluation_of_run(context, experiment)
            for check in sorted(context.selected_asset_check_keys, key=lambda check: check.name):
                finding = judges[check.name][1](experiment, result)
                yield dg.AssetCheckResult(
                    asset_key=check.asset_key,
                    check_name=check.name,
                    passed=finding.passed,
                    severity=dg.AssetCheckSeverity.WARN,
                    description=finding.text,
                    metadata={"checkpoint": result.key, **finding.facts},
                )

    return [judge_evaluation]


def _evaluation_of_run(context: dg.AssetCheckExecutionContext, experiment: Experiment) -> EvaluationResult:
    """Return the evaluation that was materialized last, of the run's partition where it has one.

    Raises:
        DataError: there is none.
    """
    run = context.op_execution_context
    partitions = [run.partition_key] if run.has_partition_key else None
    wanted = dg.AssetRecordsFilter(keys.asset_key(experiment, "evaluation"), asset_partitions=partitions)
    for record in context.instance.fetch_materializations(wanted, limit=1).records:
        event = record.asset_materialization
        identity = (event.tags or {}).get(_VERSION_TAG, "") if event else ""
        if (result := find_evaluation(experiment.folder.evaluations, identity)) is not None:
            return result
    raise DataError(
        f"no evaluation of {experiment.display_name!r} is recorded with its result in "
        f"{experiment.folder.evaluations}; evaluate a checkpoint first"
    )


def _judge_forgetting(experiment: Experiment, result: EvaluationResult) -> "Finding":
    from gpt_pipeline.orchestration.evaluation_step import pretraining_shards

    base = pretraining_shards(experiment)
    same = base is not None and base.fingerprint == result.upstream.get("shards")
    return forgetting_verdict(result, read_evaluations(experiment.folder.evaluations), on_the_same_data=same)


def _judge_questions(experiment: Experiment, result: EvaluationResult) -> "Finding":
    from gpt_pipeline.evaluation.evaluate import even_counts
    from gpt_pipeline.evaluation.questions import cached_questions
    from gpt_pipeline.evaluation.unseen import cached_proof
    from gpt_pipeline.orchestration.evaluation_step import evaluated_parts

    folder, seed = experiment.folder.evaluations / "questions", int(result.config["seed"])
    parts = evaluated_parts(experiment)
    counts = even_counts(int(result.config["num_questions"]), len(parts))
    questions = [
        question
        for part, count in zip(parts, counts, strict=True)
        for question in cached_questions(folder, part.documents, part.data, count=count, seed=seed)
    ]
    mixed = None if experiment.config.data.mix is None else finished_shards(experiment)
    return cached_proof(folder, questions, parts, mixed=mixed, before=trained_before(experiment))


def trained_before(experiment: Experiment) -> "list[TrainedOn]":
    """Return what the experiments that this one goes on from were trained on, as far as it is here, each once."""
    from gpt_pipeline.data.documents.stage import find_documents
    from gpt_pipeline.data.tokens.choose import find_shards
    from gpt_pipeline.evaluation.unseen import TrainedOn

    found, known = [], {finished_shards(experiment).fingerprint}
    while (base := base_experiment(experiment)) is not None:
        documents = [(part.data, find_documents(part.data, part.data_folder)) for part in base.parts.values()]
        shards = find_shards(base.data, base.data_folder)
        here = tuple((data, each) for data, each in documents if each is not None)
        if shards is not None and shards.fingerprint not in known and len(here) == len(documents):
            found.append(TrainedOn(source=base.file.name, documents=here, shards=shards))
            known.add(shards.fingerprint)
        experiment = base
    return found
