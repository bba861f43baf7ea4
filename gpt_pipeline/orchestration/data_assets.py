"""The assets of the data stages, shared by every experiment with the same documents."""

from collections.abc import Mapping, Sequence

import dagster as dg

from gpt_pipeline.data.config import DataConfig, SharedTokenizerConfig, TokenizerConfig
from gpt_pipeline.data.formats import stage_names
from gpt_pipeline.data.stage import PartedStage, Say
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.mirroring import bring_data, send_data_to_mirror
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.attributes import OWNERS, code_references, stage_tags
from gpt_pipeline.orchestration.failures import explained
from gpt_pipeline.orchestration.keys import node_name
from gpt_pipeline.orchestration.metadata import stage_metadata
from gpt_pipeline.orchestration.parted_asset import OPTIONS, Announce, StageFactory, parted_asset
from gpt_pipeline.shown import in_markdown

_HOW = (
    "*Materialize all* of an experiment's job `run_...` makes data and training; of its job `data_...`, the data alone."
)
_ABOUT_DOCUMENTS = {
    "synth": "{amount} different {english}documents{languages} with a query and an answer, one text each.",
    "text": "{amount} different documents, one text each.",
    "chat": "{amount} different conversations, one text each.",
    "question_answer": "{amount} different documents with a question and an answer, one text each.",
}


def data_assets(
    group: str,
    experiment: Experiment,
    all_documents: Sequence[dg.AssetKey],
    *,
    shown: str,
    users: Sequence[Experiment],
) -> Sequence[dg.AssetsDefinition]:
    """Return the assets of raw files, documents and token shards for the documents that `experiment` names.

    Their keys begin with `group`; the pages call the group `shown`. `all_documents` are the keys of the documents of
    the whole mix, if it is one. `users` are the experiments that share them.
    """
    data, folder, announce = experiment.data, experiment.data_folder, _announcing(users)
    own_keys = [dg.AssetKey([group, name]) for name in stage_names(data).all]
    raw_key, documents_key, *tokenizer_keys, shards_key = own_keys

    def raw() -> PartedStage:
        from gpt_pipeline.data.documents.raw import RawStage
        from gpt_pipeline.data.documents.stage import find_documents

        return RawStage(config=data, data_folder=folder, is_needed=lambda: find_documents(data, folder) is None)

    def documents() -> PartedStage:
        from gpt_pipeline.data.documents.stage import DocumentsStage

        return DocumentsStage(config=data, data_folder=folder)

    def tokenizer() -> PartedStage:
        from gpt_pipeline.data.tokens.tokenizer_stage import TokenizerStage

        return TokenizerStage(config=data, data_folder=folder)

    def shards() -> PartedStage:
        from gpt_pipeline.data.tokens.shards import ShardsStage

        return ShardsStage(config=data, data_folder=folder)

    def asset(
        stage: StageFactory, key: dg.AssetKey, *, upstream: dg.AssetKey | None, part: str, kind: str, about: str
    ) -> dg.AssetsDefinition:
        return parted_asset(
            stage,
            announce=announce,
            key=key,
            name=node_name(experiment, group, key.path[-1]),
            group=shown,
            upstream=upstream,
            part=part,
            kinds={kind},
            metadata=code_references(key.path[-1]),
            description=f"{about} {_HOW}",
            mirrored=_mirrored(users),
        )

    about_files = f"The files of {in_markdown(data.origin)} that hold {_amount(data)} documents."
    of_gpt2 = "" if tokenizer_keys else " GPT-2"
    about_shards = f"The documents'{of_gpt2} tokens as uint16 shards, split into training and validation."
    return [
        asset(raw, raw_key, upstream=None, part="check_file", kind="parquet", about=about_files),
        asset(
            documents,
            documents_key,
            upstream=raw_key,
            part="filter_file",
            kind="parquet",
            about=_about_documents(data),
        ),
        *(
            _asset_in_one_go(
                tokenizer,
                key,
                announce=announce,
                upstream=all_documents if isinstance(data.tokenizer, SharedTokenizerConfig) else [documents_key],
                name=node_name(experiment, group, key.path[-1]),
                group=shown,
                kind="json",
                about=f"The tokenizer: {_about_tokenizer(data)}.",
                mirrored=_mirrored(users),
            )
            for key in tokenizer_keys
        ),
        asset(shards, shards_key, upstream=own_keys[-2], part="tokenize_file", kind="numpy", about=about_shards),
    ]


def mixed_asset(
    group: str, experiment: Experiment, groups: Mapping[str, str], *, shown: str, users: Sequence[Experiment]
) -> dg.AssetsDefinition:
    """Return the asset of the shards of a mix, in `group`; `groups` are those of the experiment, `data_groups`.

    `users` are the experiments that share them.
    """
    data, folder = experiment.data, experiment.data_folder
    key = keys.shards_key(experiment, groups)
    shares = ", ".join(f"{share:.1%} {in_markdown(name)}" for name, share in data.shares.items())

    def mixed_shards() -> PartedStage:
        from gpt_pipeline.data.tokens.choose import shards_stage

        return shards_stage(data, folder)

    return _asset_in_one_go(
        mixed_shards,
        key,
        announce=_announcing(users),
        upstream=[keys.shards_key(part, {"": groups[name]}) for name, part in experiment.parts.items()],
        name=node_name(experiment, group, key.path[-1]),
        group=shown,
        kind="numpy",
        about=f"The shards of several sources in their shares of the training tokens: {shares}.",
        mirrored=_mirrored(users),
    )


def _asset_in_one_go(
    stage: StageFactory,
    key: dg.AssetKey,
    *,
    announce: Announce,
    upstream: Sequence[dg.AssetKey],
    name: str,
    group: str,
    kind: str,
    about: str,
    mirrored: Experiment | None,
) -> dg.AssetsDefinition:
    """Return the asset `key` made by `stage` in a single step, since it has no parts."""
    spec = dg.AssetSpec(
        key=key,
        deps=upstream,
        group_name=group,
        kinds={kind},
        owners=OWNERS,
        tags=stage_tags(key.path[-1]),
        metadata=code_references(key.path[-1]),
        description=f"{about} {_HOW}",
        code_version=key.path[0],
    )

    @dg.multi_asset(name=name, specs=[spec], config_schema=OPTIONS)
    def whole(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        force, say = context.op_execution_context.op_config["force"], context.log.info
        with explained():
            announce(context.log.info)
            if mirrored is not None and not force:
                bring_data(mirrored, stage(), say=say)
            made = stage()
            made.plan(force=force, say=say)
            result = made.finish(say=say)
        if mirrored is not None:
            send_data_to_mirror(mirrored)
        return dg.MaterializeResult(
            metadata={**stage_metadata(result), "already_finished": result.reused},
            data_version=dg.DataVersion(result.fingerprint),
        )

    return whole


def _announcing(users: Sequence[Experiment]) -> Announce:
    def announce(say: Say) -> None:
        from gpt_pipeline.progress.data_users import note_users  # numpy and pyarrow

        note_users(users, say=say)

    return announce


def _mirrored(users: Sequence[Experiment]) -> Experiment | None:
    """Return the first of the experiments that has a mirror."""
    return next((each for each in users if each.config.storage.mirror is not None), None)


def _about_documents(data: DataConfig) -> str:
    english, languages = ("English ", "") if data.is_english else ("", in_markdown(data.in_languages))
    return _ABOUT_DOCUMENTS[data.format].format(amount=_amount(data).capitalize(), english=english, languages=languages)


def _about_tokenizer(data: DataConfig) -> str:
    if isinstance(data.tokenizer, TokenizerConfig):
        whose = " of all parts" if isinstance(data.tokenizer, SharedTokenizerConfig) else ""
        return f"a byte-level BPE of {data.tokenizer.train:,} ids, trained on the training documents{whose}"
    return f"the tokenizer.json of {in_markdown(data.tokenizer)}"


def _amount(data: DataConfig) -> str:
    return data.amount if data.document_limit is None else f"the first {data.amount}"
