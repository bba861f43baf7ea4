"""The raw files: from the hub, from a folder, or the sample that the project writes itself."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from gpt_pipeline.data.config import SAMPLE, DataConfig
from gpt_pipeline.data.eligibility import RULE_VERSION, count_documents
from gpt_pipeline.data.source.hub import Hub, open_dataset, recorded_dataset
from gpt_pipeline.data.source.local import LocalFolder, local_path, open_folder, parquet_names
from gpt_pipeline.data.source.record import FileFacts, SourceRecord, read_record
from gpt_pipeline.data.stage import Say, exclusive, prepare_stage
from gpt_pipeline.errors import ConfigError, DamagedFileError, DataError
from gpt_pipeline.storage.fingerprint import SHORT, fingerprint
from gpt_pipeline.storage.manifest import Manifest, StageResult, finished, record_file, stage_folder, utc_now
from gpt_pipeline.storage.names import slug

STAGE = "raw_synth"
CODE_VERSION = "1"
_SOURCES = "sources"  # folder of the records, one folder a source
_logger = logging.getLogger(__name__)
_HUB = Hub()


class Source(Protocol):
    """Where raw files come from, other than the sample."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def description(self) -> str: ...

    @property
    def revision(self) -> str | None: ...

    def record_key(self, name: str) -> str: ...

    def sha256(self, name: str) -> str | None: ...

    def find(self, name: str) -> Path | None: ...

    def fetch(self, name: str, *, again: bool = False) -> Path: ...


def prepare_raw(
    config: DataConfig, data_folder: Path, *, force: bool = False, say: Say = _logger.info, hub: Hub = _HUB
) -> StageResult:
    """Return the finished stage: the source's first files that hold `num_samples` documents, checked.

    Files of the hub lie in its cache, those of a folder stay where they are; only the sample is written into the
    stage. `force` checks the files anew (and writes the sample anew); it does not move to a newer revision.

    Raises:
        ConfigError: the source does not hold `num_samples` documents, or is no dataset.
        UserError: a file is damaged, or the hub cannot be reached or refuses.
    """
    if _is_sample(config):
        return _prepare_sample(config, data_folder, force=force, say=say)
    if not force and (stage := find_raw(config, data_folder, hub=hub)):
        say(f"{stage.folder} is finished already; nothing to do")
        return stage
    record_folder = _record_folder(config, data_folder)
    with exclusive(record_folder, purpose=f"checking the files of {_origin(config)}", say=say):
        if not force and (stage := find_raw(config, data_folder, hub=hub)):
            say(f"{stage.folder} was finished by another process; nothing left to do")
            return stage
        record = read_record(record_folder)
        if force:
            record.files.clear()
        source = _open_source(config, record, hub, say)
        chosen = _choose(source, config.num_samples, record, say)
    return _prepare_pointer(source, chosen, data_folder, force=force, say=say)


def find_raw(config: DataConfig, data_folder: Path, *, hub: Hub = _HUB) -> StageResult | None:
    """Return the finished stage, or None; reads no file's content and asks no network."""
    if _is_sample(config):
        wanted = _sample_fingerprint(config)
        return finished(stage_folder(data_folder, STAGE, wanted), wanted)
    known = _known(config, data_folder, hub)
    if known is None:
        return None
    source, chosen = known
    wanted = _files_fingerprint(chosen)
    is_there = all(source.find(name) is not None for name in chosen)
    return finished(stage_folder(data_folder, STAGE, wanted), wanted) if is_there else None


def raw_fingerprint(config: DataConfig, data_folder: Path, *, hub: Hub = _HUB) -> str | None:
    """Return the stage's fingerprint if its files were once checked, also when they have been deleted since."""
    if _is_sample(config):
        return _sample_fingerprint(config)
    known = _known(config, data_folder, hub)
    return None if known is None else _files_fingerprint(known[1])


def raw_files(config: DataConfig, raw: StageResult, *, hub: Hub = _HUB) -> list[Path]:
    """Return the paths of the stage's files, in order.

    Raises:
        DataError: a file is no longer there.
    """
    if raw.manifest.files:
        return [raw.folder / name for name in raw.manifest.files]
    known = _known(config, raw.folder.parent, hub)
    paths = [] if known is None else [known[0].find(name) for name, _ in raw.manifest.config["files"]]
    found = [path for path in paths if path is not None]
    if not found or len(found) < len(paths):
        raise DataError(f"files of {_origin(config)} are missing or have changed; materialize {STAGE} again")
    return found


def _is_sample(config: DataConfig) -> bool:
    return config.local_dataset_path is None and config.source == SAMPLE


def _origin(config: DataConfig) -> str:
    return config.local_dataset_path or config.source


def _record_folder(config: DataConfig, data_folder: Path) -> Path:
    origin = config.source if config.local_dataset_path is None else str(local_path(config.local_dataset_path))
    kind = "hub" if config.local_dataset_path is None else "folder"
    digest = hashlib.sha256(origin.encode("utf-8", "surrogateescape")).hexdigest()[:SHORT]
    return data_folder / _SOURCES / f"{kind}-{slug(origin)[-40:]}-{digest}"


def _open_source(config: DataConfig, record: SourceRecord, hub: Hub, say: Say) -> Source:
    if config.local_dataset_path is not None:
        return open_folder(local_path(config.local_dataset_path))
    return open_dataset(hub, config.source, config.revision, record, say=say)


def _choose(source: Source, num_samples: int, record: SourceRecord, say: Say) -> dict[str, FileFacts]:
    """Return the first files that hold `num_samples` documents together, by name in order."""
    chosen: dict[str, FileFacts] = {}
    documents = 0
    for name in source.names:
        if source.find(name) is None:
            say(f"downloading {name} of {source.description}")
        chosen[name] = _checked(source, name, record)
        documents += chosen[name].documents
        say(f"{name}: {chosen[name].documents:,} documents; {documents:,} of {num_samples:,} needed")
        if documents >= num_samples:
            return chosen
    raise _too_few(num_samples, documents, source.description)


def _checked(source: Source, name: str, record: SourceRecord) -> FileFacts:
    key, sha256 = source.record_key(name), source.sha256(name)
    try:
        return record.facts_of(key, source.fetch(name), sha256=sha256)
    except DamagedFileError as error:
        _logger.warning("%s; downloading it again", error)
        return record.facts_of(key, source.fetch(name, again=True), sha256=sha256)


def _too_few(num_samples: int, documents: int, where: str) -> ConfigError:
    return ConfigError(
        "data.num_samples",
        found=num_samples,
        need=f"at most {documents}, the English documents in {where}",
        remedy=f"set it to {documents} or fewer, or add files",
    )


def _known(config: DataConfig, data_folder: Path, hub: Hub) -> tuple[Source, dict[str, FileFacts]] | None:
    """Return the source and its first files that hold `num_samples` documents, if the record knows them all."""
    record = read_record(_record_folder(config, data_folder))
    source = _known_source(config, record, hub)
    if source is None:
        return None
    chosen: dict[str, FileFacts] = {}
    for name in source.names:
        facts = _known_facts(source, name, record)
        if facts is None:
            return None
        chosen[name] = facts
        if sum(known.documents for known in chosen.values()) >= config.num_samples:
            return source, chosen
    return None


def _known_source(config: DataConfig, record: SourceRecord, hub: Hub) -> Source | None:
    if config.local_dataset_path is None:
        return recorded_dataset(hub, config.source, config.revision, record)
    folder = local_path(config.local_dataset_path)
    # A folder that is away, such as on a disk not plugged in, cannot have changed: what was made from it stands.
    names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else record.files
    return LocalFolder(folder=folder, names=parquet_names(names))


def _known_facts(source: Source, name: str, record: SourceRecord) -> FileFacts | None:
    facts = record.files.get(source.record_key(name))
    path = source.find(name)
    if facts is None or facts.rule != RULE_VERSION or (path is not None and not facts.is_of(path)):
        return None
    return facts


def _prepare_pointer(
    source: Source, chosen: Mapping[str, FileFacts], data_folder: Path, *, force: bool, say: Say
) -> StageResult:
    """Return the stage of files that lie elsewhere: a manifest and nothing else."""
    wanted = _files_fingerprint(chosen)
    manifest = Manifest(
        stage=STAGE,
        fingerprint=wanted,
        config=_files_config(chosen),
        facts={"source": source.description, "revision": source.revision, **_facts(chosen)},
        created_at=utc_now(),
    )
    folder = stage_folder(data_folder, STAGE, wanted)
    return prepare_stage(folder, wanted, force=force, say=say, make=lambda: manifest)


def _files_config(chosen: Mapping[str, FileFacts]) -> dict[str, Any]:
    return {"files": [[name, facts.sha256] for name, facts in chosen.items()]}


def _files_fingerprint(chosen: Mapping[str, FileFacts]) -> str:
    return fingerprint(STAGE, config=_files_config(chosen), code_version=CODE_VERSION)


def _facts(chosen: Mapping[str, FileFacts]) -> dict[str, Any]:
    return {
        "rows": sum(facts.rows for facts in chosen.values()),
        "documents": sum(facts.documents for facts in chosen.values()),
        "bytes": sum(facts.size for facts in chosen.values()),
        "files": [
            {"name": name, "size": facts.size, "rows": facts.rows, "documents": facts.documents}
            for name, facts in chosen.items()
        ],
    }


def _sample_config(config: DataConfig) -> dict[str, Any]:
    from gpt_pipeline.data.source.sample import SAMPLE_VERSION

    return {"sample": SAMPLE_VERSION, "num_samples": config.num_samples}


def _sample_fingerprint(config: DataConfig) -> str:
    return fingerprint(STAGE, config=_sample_config(config), code_version=CODE_VERSION)


def _prepare_sample(config: DataConfig, data_folder: Path, *, force: bool, say: Say) -> StageResult:
    wanted = _sample_fingerprint(config)
    folder = stage_folder(data_folder, STAGE, wanted)
    return prepare_stage(folder, wanted, force=force, say=say, make=lambda: _make_sample(config, folder, wanted))


def _make_sample(config: DataConfig, folder: Path, wanted: str) -> Manifest:
    from gpt_pipeline.data.source.sample import write_sample

    paths = write_sample(folder, num_english=config.num_samples)
    files = {path.name: record_file(path) for path in paths}
    counts = {path.name: count_documents(path) for path in paths}
    facts = {
        "source": "the sample that the project writes itself",
        "revision": None,
        "rows": sum(rows for rows, _ in counts.values()),
        "documents": sum(documents for _, documents in counts.values()),
        "bytes": sum(record.size for record in files.values()),
        "files": [
            {"name": name, "size": files[name].size, "rows": rows, "documents": documents}
            for name, (rows, documents) in counts.items()
        ],
    }
    return Manifest(
        stage=STAGE, fingerprint=wanted, config=_sample_config(config), files=files, facts=facts, created_at=utc_now()
    )
