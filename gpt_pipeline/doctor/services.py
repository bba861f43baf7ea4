"""The Hugging Face hub and its token; Dagster's history, `DAGSTER_HOME`, and MLflow's store."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gpt_pipeline.data.config import SYNTH
from gpt_pipeline.errors import UserError
from gpt_pipeline.findings import Finding, note, ok, problem
from gpt_pipeline.mirror.check import check_mirror
from gpt_pipeline.notify.addresses import find_addresses
from gpt_pipeline.project import DAGSTER_CONFIG, NOTIFY_CONFIG, Project
from gpt_pipeline.shown import counted
from gpt_pipeline.tracking.store import sqlite_file

_SECONDS = 5.0  # for a connection, and for an answer
_ALL_SECONDS = 12.0  # for everything, the DNS lookup included, which has no time limit of its own
_MIRROR_SECONDS = 90.0  # its library repeats what fails
_REFUSED = (401, 403)
_ELSEWHERE = "or name a folder with SYNTH's files: data.local_dataset_path"

_Value = TypeVar("_Value")
_HOME = "DAGSTER_HOME"
_HISTORY = "Dagster history"
# MLflow takes anything else for a folder; one letter before a colon is a drive of Windows.
_OTHER_STORE = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+:|(databricks|databricks-uc|uc)$", re.IGNORECASE)

CountRuns = Callable[[Project], int]
"""Returns the number of runs in Dagster's history of a project, which only the orchestration can read."""


def check_hub(*, endpoint: str | None = None, token: str | None = None) -> Iterator[Finding]:
    """Check whether the hub answers; `endpoint` and `token` are huggingface_hub's own settings where null.

    Raises:
        UserError: the proxy, the certificates or the token of the environment cannot be used.
    """
    from huggingface_hub import constants, get_token

    from gpt_pipeline.data.sources.hub.explain import require_usable_settings
    from gpt_pipeline.data.sources.hub.patience import TransportError

    address = endpoint or str(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        yield note("hub", "HF_HUB_OFFLINE is set: nothing is downloaded", f"unset it for downloads, {_ELSEWHERE}")
        return
    require_usable_settings()
    token = token or get_token()
    try:
        status = within(_ALL_SECONDS, lambda: _ask(f"{address}/api/datasets/{SYNTH}", token))
    except (OSError, TransportError) as error:
        text = f"{address} does not answer ({_reason(error)}); what is downloaded already can be used"
        yield note("hub", text, f"check the network and the proxy (HTTPS_PROXY), {_ELSEWHERE}")
        return
    if status in _REFUSED and token is not None:
        text = f"{address} refuses the token that is set"
        yield problem("hub", text, "run `hf auth login`, or unset HF_TOKEN: SYNTH needs none")
    elif status != 200:
        yield note("hub", f"{address} answers {status} for {SYNTH}", f"try again later, {_ELSEWHERE}")
    else:
        yield ok("hub", f"{address} answers; {'the token is valid' if token else 'no token, and SYNTH needs none'}")


def check_notifications(project: Project) -> Iterator[Finding]:
    """Check that the addresses of notifications, if there are any, can be used; nothing is sent."""
    found = find_addresses(project)
    if found is None:
        return
    yield ok("notifications", f"{found.in_words}; `gpt-pipeline notify --test` tries them")
    file = project.root / NOTIFY_CONFIG
    if os.name != "nt" and file.is_file() and file.stat().st_mode & 0o077:
        yield note(
            "notifications", f"other users of this machine can read {file}, which holds secrets", f"chmod 600 {file}"
        )


def check_mirrors(urls: Iterable[str]) -> Iterator[Finding]:
    """Check that each mirror can be reached, written and read, with a small object that is removed again."""
    for url in dict.fromkeys(urls):
        try:
            within(_MIRROR_SECONDS, lambda url=url: check_mirror(url))  # type: ignore[misc]
        except (UserError, TimeoutError) as error:
            remedy = "check the network, the credentials in the environment, and that the bucket exists"
            yield problem("mirror", f"{url}: {error}", remedy)
        else:
            yield ok("mirror", f"{url} can be written and read, and lets one machine at a time write a training")


def within(seconds: float, ask: Callable[[], _Value]) -> _Value:
    """Return what `ask` returns.

    Raises:
        TimeoutError: it takes longer; what it does then ends with this process.
        Exception: whatever `ask` raises.
    """
    answers: list[_Value] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # carried over to the caller
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    return answers[0]


def _ask(url: str, token: str | None) -> int:
    from huggingface_hub.utils import build_hf_headers, get_session

    answer: Any = get_session().get(url, headers=build_hf_headers(token=token or False), timeout=_SECONDS)
    return int(answer.status_code)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_dagster_home(project: Project, environment: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Check where Dagster keeps its history, and whether it can."""
    home = environment.get(_HOME)
    if not home:
        yield ok(_HOME, f"not set: the history is in the project's own folder ({project.root / '.dagster'})")
        return
    unset = f"unset it to use the project's own folder, {project.root / '.dagster'}"
    folder = Path(home)
    if not folder.is_absolute():
        yield problem(
            _HOME, f"found {home!r}, need an absolute path: Dagster refuses others", f"correct it, or {unset}"
        )
    elif not folder.is_dir():
        yield problem(_HOME, f"found {home}, which is not a folder", f"make it, or {unset}")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield problem(_HOME, f"found {home}, which is not writable", f"make it writable, or {unset}")
    elif not (folder / DAGSTER_CONFIG).is_file():
        text = f"{home} has no {DAGSTER_CONFIG}: without its limits two trainings may run at once, and runs of killed "
        yield note(_HOME, f"{text}processes stay", f"copy {project.root / DAGSTER_CONFIG} into it, or {unset}")
    else:
        yield ok(_HOME, home)


def check_history(
    project: Project, count_runs: CountRuns, environment: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """Check whether Dagster can read its history, by having its runs counted; makes none where there is none.

    Nothing is said where `check_dagster_home` has found a problem: there is no history that could be looked at.
    """
    if any(not found.passed for found in check_dagster_home(project, environment)):
        return
    home = Path(environment.get(_HOME) or project.root)
    place = _history_folder(home, project)
    if place is not None and not (place / "history").is_dir():
        yield ok(_HISTORY, "none yet; the first run creates it")
        return
    try:
        count = count_runs(project)
    except Exception as error:
        # Storages raise what they like: databases, configurations, plugins that are not installed.
        text = f"the one of {place or home} cannot be read: {type(error).__name__}: {_reason(error)}"
        remedy = f"see what {home / DAGSTER_CONFIG} says of its storage, and whether that runs"
        if place is not None:
            remedy = (
                f"move the folders history and schedules of {place} aside and run again: finished work is known by its "
                "files on the disk, the history of runs starts anew"
            )
        if place is not None and not os.access(place / "history", os.W_OK):
            remedy = "have its owner make it writable for you, or work in a copy of the project"
        yield problem(_HISTORY, text, remedy)
    else:
        yield ok(_HISTORY, f"{counted(count, 'run')} in {place or f'the storage that {home / DAGSTER_CONFIG} names'}")


def _history_folder(home: Path, project: Project) -> Path | None:
    """Return the folder of the history's SQLite files, as Dagster takes it from the `dagster.yaml` in `home`.

    None where that names another storage, or cannot be read, which Dagster says then.
    """
    try:
        value = YAML(typ="safe", pure=True).load((home / DAGSTER_CONFIG).read_text(encoding="utf-8")) or {}
        storage = value.get("storage", value.get("run_storage", {"sqlite": {"base_dir": str(home)}}))
        return project.root / Path(storage["sqlite"]["base_dir"])  # commands work in the project's folder
    except FileNotFoundError:
        return home
    except (OSError, ValueError, YAMLError, AttributeError, LookupError, TypeError):
        return None


def check_mlflow(tracking_uri: str) -> Iterator[Finding]:
    """Check whether MLflow's store can be reached and written."""
    database = sqlite_file(tracking_uri)
    if database is not None:
        yield _check_database(database)
    elif tracking_uri.startswith(("http://", "https://")):
        yield _check_server(tracking_uri)
    elif _OTHER_STORE.match(tracking_uri) is None:
        remedy = "use sqlite:////absolute/path/mlflow.db, or unset MLFLOW_TRACKING_URI for the project's own"
        yield problem("MLflow", f"{tracking_uri} is a folder of files, which MLflow 3 does not take any more", remedy)
    else:
        yield note("MLflow", f"{tracking_uri.partition(':')[0]} store: not checked")


def _check_database(database: Path) -> Finding:
    unset = "or set MLFLOW_TRACKING_URI to a place that is"
    if not database.exists():
        folder = next(each for each in database.parents if each.exists())
        if os.access(folder, os.W_OK):
            return ok("MLflow", f"{database}: none yet; the first run creates it")
        return problem("MLflow", f"{database}: its folder {folder} is not writable", f"make it writable, {unset}")
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=_SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # takes the right to write, and changes nothing
            count = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
            connection.rollback()
    except sqlite3.Error as error:
        return _finding_of(error, database)
    return ok("MLflow", f"{counted(count, 'run')} in {database}")


def _finding_of(error: sqlite3.Error, database: Path) -> Finding:
    if "locked" in str(error):
        return note("MLflow", f"{database} is being written by another program; results are sent when it is done")
    if "no such table" in str(error):
        return ok("MLflow", f"{database}: new, without runs")
    remedy = (
        f"if it is damaged, move {database.name} aside: results are kept in the experiments' folders and sent again; "
        "if it is read-only, make it writable"
    )
    return problem("MLflow", f"{database}: {error}", remedy)


def _opener(address: str) -> OpenerDirector:
    """Return what asks a server: one of this machine without the proxy, which leads to other machines."""
    host = urlsplit(address).hostname or ""
    is_here = host in ("localhost", "::1") or host.startswith("127.")
    return build_opener(ProxyHandler({})) if is_here else build_opener()


def _health_request(address: str) -> Request:
    """Return the question for a server's health; user and password go from the address into a header, as in MLflow."""
    parts = urlsplit(address)
    user, _, host = parts.netloc.rpartition("@")
    request = Request(f"{parts._replace(netloc=host).geturl().rstrip('/')}/health")
    if ":" in user:
        coded = b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {coded}")
    return request


def _check_server(address: str) -> Finding:
    try:
        with _opener(address).open(_health_request(address), timeout=_SECONDS) as answer:
            status = answer.status
    except HTTPError as error:
        status = error.code
    except (HTTPException, OSError, ValueError) as error:
        # Not the whole text of each: that of an address which cannot be read quotes it, a password and all.
        reason = error.reason if isinstance(error, URLError) else type(error).__name__
        text = f"{address} does not answer ({reason})"
        return problem("MLflow", text, "start its server, or correct MLFLOW_TRACKING_URI; results wait on the disk")
    if status == 200:
        return ok("MLflow", f"{address} answers")
    return note("MLflow", f"{address} answers {status} when asked for its health", "check whether it needs a login")
