"""The stage tokenizer: the `tokenizer.json` that the data block names, or one trained on the training documents.

GPT-2's tokenizer needs no stage. A file, or that of a model on the hub, is copied once under the sha256 of its content,
with a note of where it came from, so that neither is needed again while the copy is whole.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_pipeline.data.config import GPT2, PLAIN, DataConfig, SharedTokenizerConfig, TokenizerConfig, is_path
from gpt_pipeline.data.formats.forms import MARKS
from gpt_pipeline.data.stage import PlacedStage, finish_stage, needs_nothing
from gpt_pipeline.data.tokens.stream import TOKENIZER_NAME
from gpt_pipeline.data.tokens.tokenizer import (
    TOKENIZER_ID,
    Tokenizer,
    gpt2,
    kept_tokenizer,
    lacking_turns,
    read_tokenizer,
    with_turns,
)
from gpt_pipeline.errors import ConfigError, DataError
from gpt_pipeline.shown import Say
from gpt_pipeline.storage.atomic import read_kept, sha256_of, write_json, write_text
from gpt_pipeline.storage.fingerprint import SHORT, fingerprint
from gpt_pipeline.storage.manifest import Manifest, StageResult, not_finished, record_file, stage_folder

if TYPE_CHECKING:
    from gpt_pipeline.data.tokens.tokenizer_training import TrainedOn

STAGE = "tokenizer"
CODE_VERSION = "1"
_KEY = "data.tokenizer"
_NOTES = "tokenizers"
_ADDED_TURNS = "added_turns"  # ids that the tokens of ChatML add
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TokenizerStage(PlacedStage):
    """The stage tokenizer of a data block."""

    config: DataConfig
    data_folder: Path
    given_documents: TrainedOn | None = None
    """The finished documents that it is trained on; null: those that the configuration names."""

    @property
    def name(self) -> str:
        return STAGE

    @property
    def is_made(self) -> bool:
        """Whether there is something to make: for any tokenizer but GPT-2's."""
        return self.config.tokenizer != GPT2

    @property
    def identity(self) -> str | None:
        """What the fingerprints of token shards say of the tokenizer; None while that is not known."""
        if not self.is_made:
            return TOKENIZER_ID
        place = self.place()
        return None if place is None else f"{STAGE}-{place[1]}"

    def place(self) -> tuple[Path, str] | None:
        """Return the stage's folder and fingerprint; None while what it is made of is not known."""
        wanted = self._fingerprint()
        return None if wanted is None else (stage_folder(self.data_folder, STAGE, wanted), wanted)

    def own_paths(self) -> Iterator[Path]:
        """Yield where the stage's folder lies, or will, and the note of where its file came from."""
        place = self.place() if self.is_made else None
        if place is not None:
            yield place[0]
        if isinstance(self.config.tokenizer, str) and self.is_made:
            yield _note_path(self.config.tokenizer, self.data_folder)

    def plan(self, *, force: bool, say: Say) -> list[list[str]]:
        """Return no files: there are none to be made by themselves; see `PartedStage`."""
        if not force:
            needs_nothing(self.find(), say=say)
        elif not isinstance(self.config.tokenizer, str):
            self._documents()  # raises if some are not finished, before anything is begun
        return []

    def make(self, names: Iterable[str], *, force: bool = False, say: Say) -> dict[str, Any]:
        """Do nothing, for `plan` names no files; see `PartedStage`."""
        return {"megabytes": 0.0}

    def finish(self, *, force: bool = False, say: Say) -> StageResult:
        """Train the tokenizer, or copy its file; see `PartedStage`.

        Raises:
            UserError: the file cannot be had, or is no tokenizer that can be used.
        """
        folder, wanted = self._settled(say)
        stage = finish_stage(folder, wanted, force=force, say=say, make=lambda: self._made(folder, wanted, say))
        if isinstance(self.config.tokenizer, str) and is_path(self.config.tokenizer):
            _note_file(self.config.tokenizer, self.data_folder, wanted)
        return stage

    def found(self) -> StageResult:
        """Return the finished stage.

        Raises:
            DataError: it is not finished.
        """
        stage = self.find()
        if stage is None:
            raise not_finished(STAGE, self.data_folder)
        return stage

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer; raises as `found`."""
        if not self.is_made:
            return gpt2()
        stage = self.found()
        return kept_tokenizer(stage.folder / TOKENIZER_NAME, stage.manifest.files[TOKENIZER_NAME].sha256)

    def _fingerprint(self) -> str | None:
        wanted = self.config.tokenizer
        if isinstance(wanted, str):
            sha256 = _known_sha256(wanted, self.data_folder)
            return None if sha256 is None else _fingerprint_of_file(sha256)
        documents = self._known_documents()
        if documents is None:
            return None
        identity = {
            "train": wanted.train,
            "validation_fraction": self.config.validation_fraction,
            "seed": self.config.seed,
        }
        upstream = [each.fingerprint for each in documents]
        return fingerprint(STAGE, config=identity, upstream=upstream, code_version=CODE_VERSION)

    def _known_documents(self) -> list[StageResult] | None:
        from gpt_pipeline.data.documents.stage import DocumentsStage

        if self.given_documents is not None:
            return [each for each, _ in self.given_documents]
        known = [DocumentsStage(config=each, data_folder=self.data_folder).known() for each in self._sources]
        return None if None in known else sorted(filter(None, known), key=lambda stage: stage.fingerprint)

    @property
    def _sources(self) -> Sequence[DataConfig]:
        """The blocks that name the documents it is trained on."""
        wanted = self.config.tokenizer
        return wanted.parts if isinstance(wanted, SharedTokenizerConfig) else [*self.config.parts.values()]

    def _settled(self, say: Say) -> tuple[Path, str]:
        """Return folder and fingerprint, fetching the file from the hub if nothing is known of it."""
        place = self.place()
        if place is None and fetch_tokenizer(self.config, self.data_folder, say):
            place = self.place()
        if place is None:
            self._documents()  # raises: some of them are not finished
            place = self.place()
            assert place is not None  # they were finished in this moment
        return place

    def _made(self, folder: Path, wanted: str, say: Say) -> Manifest:
        asked = self.config.tokenizer
        if isinstance(asked, str):
            text = _whole_copy(folder, wanted) or _content(asked, self.data_folder, say, wanted=wanted)
            facts: dict[str, Any] = {}
            tokenizer = read_tokenizer(text, source=asked)
            vocab_size = tokenizer.vocab_size
        else:
            from gpt_pipeline.data.tokens.tokenizer_training import train_tokenizer  # pyarrow

            text, facts = train_tokenizer(asked.train, self._documents(), say)
            tokenizer, vocab_size = read_tokenizer(text, source=STAGE), asked.train
        write_text(folder / TOKENIZER_NAME, text)
        return Manifest(
            stage=STAGE,
            fingerprint=wanted,
            config={"tokenizer": {"train": asked.train} if isinstance(asked, TokenizerConfig) else "a file"},
            upstream=() if isinstance(asked, str) else tuple(each.fingerprint for each, _ in self._documents()),
            files={TOKENIZER_NAME: record_file(folder / TOKENIZER_NAME)},
            facts={
                **facts,
                "tokenizer": tokenizer.identity,
                "vocab_size": vocab_size,
                "eot_token": tokenizer.eot_token,
            },
        )

    def _documents(self) -> TrainedOn:
        from gpt_pipeline.data.documents.stage import finished_documents

        if self.given_documents is not None:
            return self.given_documents
        made = [(finished_documents(each, self.data_folder), each) for each in self._sources]
        return sorted(made, key=lambda pair: pair[0].fingerprint)  # whatever the parts of a mix are called


def usable_tokenizer(config: DataConfig, data_folder: Path) -> Tokenizer | None:
    """Return the data block's tokenizer for a look at documents; None while it is not trained or fetched yet.

    A file of one's own is read where it lies.

    Raises:
        UserError: it cannot be used.
    """
    found: Tokenizer | None
    if isinstance(config.tokenizer, str) and is_path(config.tokenizer):
        name = config.tokenizer
        found = read_tokenizer(_decoded(_read(Path(name)), name), source=f"{_KEY}: {name}")
    else:
        stage = TokenizerStage(config=config, data_folder=data_folder)
        found = None if stage.is_made and stage.find() is None else stage.tokenizer()
    return with_turns(found) if found is not None and config.writes_turns else found


def known_identity(config: DataConfig, data_folder: Path) -> str | None:
    """Return what a model of the block's data will say of its tokenizer; None while that is not known.

    Raises:
        ConfigError: its file cannot be read.
    """
    if config.tokenizer == GPT2:
        return TOKENIZER_ID
    if isinstance(config.tokenizer, str):
        sha256 = _known_sha256(config.tokenizer, data_folder)
        return None if sha256 is None else f"{STAGE}-{sha256}"
    made = TokenizerStage(config=config, data_folder=data_folder).known()
    return None if made is None else str(made.manifest.facts["tokenizer"])


def vocabulary_size(tokenizer: str, data_folder: Path, template: str = PLAIN) -> int | None:
    """Return how many ids a model needs for a named tokenizer; None for one of the hub that is not fetched yet.

    Those that the template adds are counted.

    Raises:
        UserError: there is no such file, or it cannot be used.
    """
    note = _note(tokenizer, data_folder)
    if not is_path(tokenizer):
        return None if note is None else _ids_in(note, template)
    path = Path(tokenizer)
    if os.path.isfile(path):
        sha256 = _sha256_of(path, *_stat(path))
        is_known = note is not None and note["sha256"] == sha256  # and was usable
        return _ids_in(note if note is not None and is_known else _sizes_of(path, *_stat(path)), template)
    if note is None:
        need = "a tokenizer.json, the name of a model on the hub, gpt2, or {train: 16384}"
        is_folder = os.path.isdir(path)  # Path.is_dir raises, where the path is too long
        why = f"this is a folder, and {path / TOKENIZER_NAME} may be meant" if is_folder else "there is no such file"
        raise ConfigError(_KEY, found=tokenizer, need=f"{need}; {why}")
    return _ids_in(note, template)


def _ids_in(sizes: Mapping[str, Any], template: str) -> int:
    added = 0 if template == PLAIN else int(sizes.get(_ADDED_TURNS, len(MARKS)))  # earlier notes do not say it
    return int(sizes["vocab_size"]) + added


def _fingerprint_of_file(sha256: str) -> str:
    return fingerprint(STAGE, config={"sha256": sha256}, code_version=CODE_VERSION)


def _known_sha256(name: str, data_folder: Path) -> str | None:
    """Return the sha256 of a named tokenizer: of the file as it is now, or of what was copied once."""
    if is_path(name) and os.path.isfile(name):
        return _sha256_of(Path(name), *_stat(Path(name)))
    note = _note(name, data_folder)
    return None if note is None else str(note["sha256"])


def _note_path(name: str, data_folder: Path) -> Path:
    return data_folder / _NOTES / f"{hashlib.sha256(name.encode()).hexdigest()[:SHORT]}.json"


def _note(name: str, data_folder: Path) -> Mapping[str, Any] | None:
    def parse(value: dict[str, Any]) -> Mapping[str, Any] | None:
        return {**value, "sha256": str(value["sha256"]), "vocab_size": int(value["vocab_size"])}

    return read_kept(_note_path(name, data_folder), parse, otherwise="the tokenizer is read again")


def _stat(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=16)
def _sha256_of(path: Path, *_identity: int) -> str:
    return hashlib.sha256(_read(path)).hexdigest()


@functools.lru_cache(maxsize=16)
def _sizes_of(path: Path, *_identity: int) -> Mapping[str, int]:
    return _sizes(read_tokenizer(_decoded(_read(path), str(path)), source=_KEY))


def _sizes(tokenizer: Tokenizer) -> Mapping[str, int]:
    return {"vocab_size": tokenizer.vocab_size, _ADDED_TURNS: lacking_turns(tokenizer)}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        need, remedy = f"a file that can be read ({error.strerror})", "correct the path, or who may read it"
        raise ConfigError(_KEY, found=str(path), need=need, remedy=remedy) from None


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise ConfigError(_KEY, found=name, need="a tokenizer.json, which is UTF-8") from None


def _whole_copy(folder: Path, wanted: str) -> str | None:
    """Return the text of the copy in the stage's folder; None if there is none, or it is not the one that is wanted."""
    path = folder / TOKENIZER_NAME
    if not path.is_file() or _fingerprint_of_file(sha256_of(path)) != wanted:
        return None
    return path.read_bytes().decode()


def _content(name: str, data_folder: Path, say: Say, *, wanted: str | None = None) -> str:
    """Return the text of the named tokenizer; of the hub, that of the commit noted before, else it is noted now.

    Raises:
        UserError: it is not where it was named, or not the one whose fingerprint is `wanted`.
    """
    before, revision = _note(name, data_folder) or {}, None
    if is_path(name):
        content = _read(Path(name))
    else:
        content, revision = _downloaded(name, before.get("revision"), say)
    text = _decoded(content, name)
    sizes, sha256 = _sizes(read_tokenizer(text, source=f"{_KEY}: {name}")), hashlib.sha256(content).hexdigest()
    if wanted is not None and wanted != _fingerprint_of_file(sha256):
        raise _other_content(name, _note_path(name, data_folder), found=sha256, need=before.get("sha256"))
    if revision is not None:
        _write_note(name, data_folder, {"sha256": sha256, **sizes, "revision": revision})
    return text


def _note_file(name: str, data_folder: Path, wanted: str) -> None:
    """Note the content of the file `name`, of which the tokenizer `wanted` was made: it is not needed any more."""
    path = Path(name)
    if not path.is_file() or _fingerprint_of_file(sha256 := _sha256_of(path, *_stat(path))) != wanted:
        return
    note = _note(name, data_folder)
    if note is None or note["sha256"] != sha256:
        try:
            _write_note(name, data_folder, {"sha256": sha256, **_sizes_of(path, *_stat(path))})
        except OSError as error:  # a folder that others may only read
            _logger.warning("%s: its content cannot be noted (%s); the file is needed again", path, error)


def _write_note(name: str, data_folder: Path, known: Mapping[str, Any]) -> None:
    path = _note_path(name, data_folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"name": name, **known})


def _other_content(name: str, note: Path, *, found: str, need: object) -> DataError:
    if is_path(name):
        return DataError(f"{_KEY}: {name} changed while it was copied; run again when nothing writes to it any more")
    return DataError(
        f"{_KEY}: {TOKENIZER_NAME} of {name} is no longer what was fetched before: found sha256 {found}, need {need} "
        f"({note}); name the path of a file with that content, or delete the note to use the hub's, which makes other "
        "shards and other trainings"
    )


def fetch_tokenizer(config: DataConfig, data_folder: Path, say: Say) -> bool:
    """Fetch the tokenizer that the block names if nothing is known of it yet, and return whether it was.

    Raises:
        UserError: it cannot be had, or cannot be used.
    """
    name = config.tokenizer
    if not isinstance(name, str) or name == GPT2 or _known_sha256(name, data_folder) is not None:
        return False
    _content(name, data_folder, say)
    return True


def _downloaded(name: str, revision: str | None, say: Say) -> tuple[bytes, str]:
    """Return the content of a model's tokenizer.json on the hub, and its commit; the hub's own cache keeps the file.

    `revision` is the commit; None: the newest.
    """
    from huggingface_hub import hf_hub_download

    from gpt_pipeline.data.sources.hub.explain import explained_model

    what = f"{TOKENIZER_NAME} of {name}" + (f" at commit {revision}" if revision else "")
    say(f"fetching {what} from the hub")
    failure = f"data.tokenizer: {what} cannot be fetched from the hub"
    with explained_model(failure, otherwise="download the file elsewhere and name its path"):
        path = Path(hf_hub_download(name, TOKENIZER_NAME, revision=revision))
    return path.read_bytes(), path.parent.name  # in the hub's cache, folders bear the commit
