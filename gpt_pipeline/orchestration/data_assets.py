"""The assets of the data stages, shared by every experiment with the same documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import dagster as dg

from gpt_pipeline.data.config import DataConfig, SharedTokenizerConfig, TokenizerConfig, as_of_part
from gpt_pipeline.data.formats import stage_names
from gpt_pipeline.data.stage import PartedStage
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.experiment.mirroring import bring_data, send_data_to_mirror
from gpt_pipeline.orchestration import keys
from gpt_pipeline.orchestration.attributes import OWNERS, code_references, stage_tags
from gpt_pipeline.orchestration.failures import explained
from gpt_pipeline.orchestration.keys import node_name
from gpt_pipeline.orchestration.metadata import stage_metadata
from gpt_pipeline.orchestration.parted_asset import OPTIONS, StageFactory, parted_asset
from gpt_pipeline.shown import Say, in_markdown

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
    data, folder = experiment.data, experiment.data_folder
    made = _Group(name=group, shown=shown, experiment=experiment, users=users)
    own_keys = [dg.AssetKey([group, name]) for name in stage_names(data).all]
    raw_key, documents_key, *tokenizer_keys, shards_key = own_keys
    of_gpt2 = "" if tokenizer_keys else " GPT-2"
    return [
        made.parted(
            partial(_raw, data, folder),
            raw_key,
            upstream=None,
            part="check_file",
            kind="parquet" if data.format == "synth" else "file",
            about=f"The source files that hold {_amount(data)} documents: {in_markdown(data.origin)}.",
        ),
        made.parted(
            partial(_documents, data, folder),
            documents_key,
            upstream=raw_key,
            part="filter_file",
            kind="parquet",
            about=_about_documents(data),
        ),
        *(
            made.in_one_go(
                partial(_tokenizer, data, folder),
                key,
                upstream=all_documents if isinstance(data.tokenizer, SharedTokenizerConfig) else [documents_key],
                kind="json",
                about=f"The tokenizer: {_about_tokenizer(data)}.",
            )
            for key in tokenizer_keys
        ),
        made.parted(
            partial(_shards, data, folder),
            shards_key,
            upstream=own_keys[-2],
            part="tokenize_file",
            kind="numpy",
            about=f"The documents'{of_gpt2} tokens as uint16 shards, split into training and validation.",
        ),
    ]


def mixed_asset(
    group: str, experiment: Experiment, groups: Mapping[str, str], *, shown: str, users: Sequence[Experiment]
) -> dg.AssetsDefinition:
    """Return the asset of the shards of a mix, in `group`; `groups` are those of the experiment, `data_groups`.

    `users` are the experiments that share them.
    """
    data = experiment.data
    shares = ", ".join(f"{share:.1%} {in_markdown(name)}" for name, share in data.shares.items())
    return _Group(name=group, shown=shown, experiment=experiment, users=users).in_one_go(
        partial(_mixed_shards, data, experiment.data_folder),
        keys.shards_key(experiment, groups),
        upstream=[keys.shards_key(part, {"": groups[name]}) for name, part in experiment.parts.items()],
        kind="numpy",
        about=f"The shards of several sources in their shares of the training tokens: {shares}.",
    )


def _raw(data: DataConfig, folder: Path) -> PartedStage:
    from gpt_pipeline.data.documents.raw import RawStage
    from gpt_pipeline.data.documents.stage import find_documents

    return RawStage(config=data, data_folder=folder, is_needed=lambda: find_documents(data, folder) is None)


def _documents(data: DataConfig, folder: Path) -> PartedStage:
    from gpt_pipeline.data.documents.stage import DocumentsStage

    return DocumentsStage(config=data, data_folder=folder)


def _tokenizer(data: DataConfig, folder: Path) -> PartedStage:
    from gpt_pipeline.data.tokens.tokenizer_stage import TokenizerStage

    return TokenizerStage(config=data, data_folder=folder)


def _shards(data: DataConfig, folder: Path) -> PartedStage:
    from gpt_pipeline.data.tokens.shards import ShardsStage

    return ShardsStage(config=data, data_folder=folder)


def _mixed_shards(data: DataConfig, folder: Path) -> PartedStage:
    from gpt_pipeline.data.tokens.mixed import MixedShardsStage

    return MixedShardsStage(config=data, data_folder=folder)


@dataclass(frozen=True, kw_only=True)
class _Group:
    """A group of assets of data, and what they have in common."""

    name: str
    """With which their keys begin."""

    shown: str
    """What the pages call it."""

    experiment: Experiment
    """Whose data they make."""

    users: Sequence[Experiment]
    """Who shares them."""

    def parted(
        self,
        stage: StageFactory,
        key: dg.AssetKey,
        *,
        upstream: dg.AssetKey | None,
        part: str,
        kind: str,
        about: str,
    ) -> dg.AssetsDefinition:
        """Return the asset `key` made by `stage`, with a step for each of its parts."""
        return parted_asset(
            stage,
            announce=self._announce,
            told=self._told,
            key=key,
            name=self._node_name(key),
            group=self.shown,
            upstream=upstream,
            part=part,
            kinds={kind},
            metadata=code_references(key.path[-1]),
            description=f"{about} {_HOW}",
            mirrored=self._mirrored,
        )

    def in_one_go(
        self, stage: StageFactory, key: dg.AssetKey, *, upstream: Sequence[dg.AssetKey], kind: str, about: str
    ) -> dg.AssetsDefinition:
        """Return the asset `key` made by `stage` in a single step, since it has no parts."""
        mirrored = self._mirrored
        spec = dg.AssetSpec(
            key=key,
            deps=upstream,
            group_name=self.shown,
            kinds={kind},
            owners=OWNERS,
            tags=stage_tags(key.path[-1]),
            metadata=code_references(key.path[-1]),
            description=f"{about} {_HOW}",
            code_version=key.path[0],
        )

        @dg.multi_asset(name=self._node_name(key), specs=[spec], config_schema=OPTIONS)
        def whole(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            force, say = context.op_execution_context.op_config["force"], context.log.info
            with explained(told=partial(self._told, context.run)):
                self._announce(say)
                if mirrored is not None and not force:
                    bring_data(mirrored, stage(), say=say)
                made = stage()
                made.plan(force=force, say=say)
                result = made.finish(force=force, say=say)
            if mirrored is not None:
                send_data_to_mirror(mirrored)
            return dg.MaterializeResult(
                metadata={**stage_metadata(result), "already_finished": result.reused},
                data_version=dg.DataVersion(result.fingerprint),
            )

        return whole

    def _node_name(self, key: dg.AssetKey) -> str:
        return node_name(self.experiment, self.name, key.path[-1])

    def _announce(self, say: Say) -> None:
        from gpt_pipeline.progress.data_users import note_users  # numpy and pyarrow

        note_users(self.users, say=say)

    def _told(self, run: dg.DagsterRun, text: str) -> str:
        """Return `text` with the keys of the experiment that the run is of, of whose mix this may be a part.

        A run of data alone that somebody picked by hand is of none: then they are those of the first.
        """
        wanted = keys.jobs_of(run)
        user = next((each for each in self.users if each.name in wanted), self.users[0])
        return as_of_part(text, keys.part_of(user, self.name))

    @property
    def _mirrored(self) -> Experiment | None:
        """The first of the experiments that has a mirror."""
        return next((each for each in self.users if each.config.storage.mirror is not None), None)


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
