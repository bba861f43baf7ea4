"""This machine: disk, memory, open files, what its file systems can do, its ports."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import ProxyHandler, Request, build_opener

import psutil
from filelock import Timeout

from gpt_pipeline.errors import UserError
from gpt_pipeline.findings import Finding, note, ok, problem, warning
from gpt_pipeline.planning.host import HostMemory, host_memory
from gpt_pipeline.report.wording import size
from gpt_pipeline.storage.atomic import fsync_file, why_renames_are_not_durable
from gpt_pipeline.storage.lock import disk_has_locks, held_for, hold_lock
from gpt_pipeline.storage.ports import HOST, find_refusal, is_taken
from gpt_pipeline.storage.room import existing_folder, free_bytes

_LEAST_DISK, _AMPLE_DISK = 10**9, 20 * 10**9  # the second: what SYNTH's first files, data and checkpoints come to
_LEAST_MEMORY, _AMPLE_MEMORY = 10**9, 6 * 10**9  # two worker processes of the data; GPT-2 124M on a CPU
_LEAST_FILES = 1024
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "9p", "lustre", "glusterfs")
_DEEPEST = 120  # characters below a folder: a run's files, and the temporary ones beside them
_SHOWN_LETTERS = 100  # of a command
_ANSWER_SECONDS = 2.0


def check_disk(folders: Iterable[Path]) -> Iterator[Finding]:
    """Check the free space on the disks of `folders`, which need not exist yet."""
    for folder in dict.fromkeys(folders):
        free = free_bytes(folder)
        text = f"{size(free)} free for {folder}"
        if free < _LEAST_DISK:
            yield problem(
                "disk", text, "free some space, or choose another storage.base_folder (HF_HOME for downloads)"
            )
        elif free < _AMPLE_DISK:
            yield note("disk", text, "`gpt-pipeline plan` estimates what an experiment needs")
        else:
            yield ok("disk", text)


def check_memory(memory: HostMemory | None = None) -> Iterator[Finding]:
    """Check the main memory."""
    memory = memory or host_memory()
    free = memory.available
    text = f"{size(free)} of {size(memory.total)} free"
    if free < _LEAST_MEMORY:
        yield problem("memory", text, "end other programs: each process that makes data takes up to 0.6 GB")
    elif free < _AMPLE_MEMORY:
        yield note("memory", text, "enough for the data and small models; `gpt-pipeline plan` estimates others")
    else:
        yield ok("memory", text)


def check_open_files() -> Iterator[Finding]:
    """Check how many files a process may have open; Windows has no such limit that matters."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _LEAST_FILES:
        remedy = f"ulimit -n {min(4096, hard) if hard > 0 else 4096}"
        yield note("open files", f"a process may open {soft} at a time, {_LEAST_FILES} are usual", remedy)
    else:
        yield ok("open files", f"{'no limit' if soft < 0 else f'{soft:,} at a time'}")


def check_files(folders: Iterable[Path]) -> Iterator[Finding]:
    """Check whether files in `folders` can be written safely; one that does not exist yet stands for its parent."""
    for folder in dict.fromkeys(existing_folder(each) for each in folders):
        try:
            with TemporaryDirectory(prefix=".gpt-pipeline-doctor-", dir=folder) as name:
                yield from _tried(folder, Path(name))
        except OSError as error:
            text = f"{folder} is not writable: {error.strerror or error}"
            yield problem("files", text, "make it writable for this user, or choose another storage.base_folder")


def _tried(folder: Path, place: Path) -> Iterator[Finding]:
    tries: dict[str, Callable[[Path], None]] = {"replace a file at once": _replace, "keep two apart by a lock": _lock}
    kind = _kind_of(folder)
    where = f"{folder}{f' ({kind})' if kind else ''}"
    failed = [f"{what}: {reason}" for what, attempt in tries.items() if (reason := _failure(attempt, place))]
    if failed:
        remedy = "choose a storage.base_folder on a local disk; what a crash leaves there could not be trusted"
        yield problem("files", f"{where} cannot {'; '.join(failed)}", remedy)
    elif not disk_has_locks(place / "lock"):
        text = f"{where} has no file locks: signs of life stand in for them"
        yield note("files", text, "wait two minutes after a process was killed on another host")
    elif reason := why_renames_are_not_durable(place):
        yield note("files", f"{where} does not make renames durable ({reason}): a power cut may undo the newest files")
    elif _failure(_link, place):
        yield note("files", f"{where} does not support hard links: finished data takes twice the space there")
    elif reason := _failure(_go_deep, place):
        text = f"{where} cannot hold a path {_DEEPEST} characters longer ({reason})"
        remedy = "choose a shorter storage.base_folder; Windows allows 260 in all unless LongPathsEnabled is set"
        yield note("files", text, remedy)
    elif kind in _NETWORK:
        yield note("files", f"{where} is a network disk", "use one machine at a time for an experiment")
    else:
        yield ok("files", f"{where} can be written, replaced, locked and linked")


def _failure(attempt: Callable[[Path], None], place: Path) -> str:
    """Return why the attempt failed; empty if it did not."""
    try:
        attempt(place)
    except UserError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _replace(place: Path) -> None:
    old, new = place / "old", place / "new"
    old.write_text("old", encoding="ascii")
    new.write_text("new", encoding="ascii")
    fsync_file(new)
    os.replace(new, old)
    why_renames_are_not_durable(place)  # fails where the disk does
    if old.read_text(encoding="ascii") != "new":
        raise OSError("the old content is still there")


def _lock(place: Path) -> None:
    with hold_lock(place / "lock"):
        try:
            with hold_lock(place / "lock"):  # another handle of the same process counts as another holder
                pass
        except Timeout:
            return
    raise OSError("a second holder was let in")


def _link(place: Path) -> None:
    (place / "one").write_text("one", encoding="ascii")
    os.link(place / "one", place / "two")


def _go_deep(place: Path) -> None:
    deep = place / ("d" * (_DEEPEST // 2)) / ("f" * (_DEEPEST // 2))
    deep.parent.mkdir()
    deep.touch()


def _kind_of(folder: Path) -> str:
    """Return the file system of the folder, as the system names it; empty where it does not."""
    kinds = {Path(each.mountpoint): str(each.fstype) for each in psutil.disk_partitions(all=True)}
    resolved = folder.resolve()
    return next((kinds[each] for each in (resolved, *resolved.parents) if each in kinds), "")


def check_port(port: int, *, page: str, pages: Path) -> Iterator[Finding]:
    """Check whether `port` of this machine is free for `page`; `pages` is the folder that open pages hold locked."""
    refusal = find_refusal(port)
    if refusal is None:
        yield ok("ports", f"{port} is free for {page}")
        return
    if f"http://{HOST}:{port}" in (held_for(pages) or "").split():
        yield ok("ports", f"{page} is open already, at http://{HOST}:{port}")
        return
    remedy = f"`gpt-pipeline ui` takes the next free one for {page}"
    if not is_taken(refusal):
        yield note("ports", f"{port} is refused by the system ({refusal.strerror})", remedy)
        return
    holder = find_holder(port) or "another program"
    if _is_open_to_websites(port):
        text = f"{port} has pages of Dagster that answer any website which the browser shows ({holder})"
        yield warning("ports", text, "stop them, and open the pages by `gpt-pipeline ui`")
        return
    yield note("ports", f"{port} is taken by {holder}", remedy)


def _is_open_to_websites(port: int) -> bool:
    """Whether Dagster's web server answers on the port under the name of another host, as `dagster dev` does."""
    request = Request(f"http://{HOST}:{port}/server_info", headers={"Host": "another-website.invalid"})
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=_ANSWER_SECONDS) as answer:
            return b"dagster_webserver_version" in answer.read(1000)
    except (HTTPException, OSError):
        return False


def find_holder(port: int) -> str | None:
    """Return the process that listens on `port`, as its number and command; None where the system does not tell."""
    try:
        sockets = psutil.net_connections(kind="tcp")
        pids = [each.pid for each in sockets if each.status == psutil.CONN_LISTEN and each.laddr.port == port]
        pid = next(filter(None, pids), None)  # without a number: another user's
        return None if pid is None else f"process {pid} ({' '.join(psutil.Process(pid).cmdline())[:_SHOWN_LETTERS]})"
    except psutil.Error:  # macOS shows its sockets to the administrator only; or the process has just ended
        return None
