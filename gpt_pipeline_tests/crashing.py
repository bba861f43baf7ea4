"""Saves that are cut short: by a kill at one file operation, or by a power cut that loses what was not made durable."""

from __future__ import annotations

import io
import os
import pathlib
import signal
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours may have a part in it."""


World = dict[str, bytes]
"""Content of the files of a folder by name, as a machine may find it when it is started again."""


class KillAt:
    """Kills this process at its n-th file operation inside a folder: open, write (half of it done), fsync, rename."""

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = str(folder)
        self._remaining = number
        self._fsync, self._open = os.fsync, pathlib.Path.open

    def arm(self) -> None:
        """Watch from now on; there is no way back."""
        os.fsync = self._watched_fsync  # type: ignore[assignment]
        watched = self._watched_open  # as a function, to be a method of Path
        pathlib.Path.open = lambda path, *given, **options: watched(path, *given, **options)  # type: ignore  # noqa: PLW0108
        sys.addaudithook(self._audit)

    def _count(self, before_dying: Callable[[], object] = lambda: None) -> None:
        self._remaining -= 1
        if self._remaining == 0:
            before_dying()
            os.kill(os.getpid(), signal.SIGKILL)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.rename", "os.link", "os.remove", "os.mkdir") and self._is_inside(arguments):
            self._count()

    def _is_inside(self, arguments: tuple[object, ...]) -> bool:
        return any(self._folder in str(argument) for argument in arguments)

    def _watched_fsync(self, descriptor: int) -> None:
        self._count()
        self._fsync(descriptor)
        self._count()

    def _watched_open(self, path: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        file = self._open(path, mode, *arguments, **options)  # type: ignore[call-overload]
        if mode != "wb" or self._folder not in str(path):
            return file
        write = file.write

        def half_a_write(data: bytes) -> int:
            def tear() -> None:
                write(bytes(data)[: len(data) // 2])
                file.flush()

            self._count(tear)
            return int(write(data))

        return _Wrapped(file, half_a_write)


class _Wrapped:
    """A file of which only the writing is another."""

    def __init__(self, file: io.BufferedWriter, write: Callable[[bytes], int]) -> None:
        self._file = file
        self.write = write

    def __enter__(self) -> _Wrapped:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def flush(self) -> None:
        self._file.flush()


class PowerCut:
    """Follows the saves in a folder and knows what a power cut at any moment may leave of it.

    Durable is the content of a file at its last fsync, and the names of the folder at the folder's last fsync. What
    came after may be lost: renames from the last one backwards, content as a whole, in part, or as zeros.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fsync, self._replace = os.fsync, os.replace
        self._names = self._present_names()
        self._content = {inode: self._read(inode) for inode in self._names.values()}
        self._renames: list[tuple[str, str, int]] = []
        self.worlds: list[World] = []
        """All that was possible so far."""

    def __enter__(self) -> PowerCut:
        os.fsync = self._watched_fsync  # type: ignore[assignment]
        os.replace = self._watched_replace  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync, os.replace = self._fsync, self._replace

    def possible_now(self) -> Iterator[World]:
        """Yield what a power cut at this moment may leave."""
        for kept in range(len(self._renames) + 1):
            names = dict(self._names)
            for source, target, inode in self._renames[:kept]:
                names.pop(source, None)
                names[target] = inode
            for damage in (_whole, _nothing, _zeros, _half):
                yield {name: self._content.get(inode, damage(self._read(inode))) for name, inode in names.items()}

    def _watched_fsync(self, descriptor: int) -> None:
        self.worlds += self.possible_now()
        self._fsync(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names, self._renames = self._present_names(), []
        else:
            self._content[status.st_ino] = _content_of(descriptor, status.st_size)  # of a link, too
        self.worlds += self.possible_now()

    def _watched_replace(self, source: Path, target: Path) -> None:
        self.worlds += self.possible_now()
        inode = os.stat(source).st_ino
        self._replace(source, target)
        self._renames.append((Path(source).name, Path(target).name, inode))
        self.worlds += self.possible_now()

    def _present_names(self) -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in self._folder.iterdir() if path.is_file()}

    def _read(self, inode: int) -> bytes:
        for path in self._folder.iterdir():
            if path.is_file() and path.stat().st_ino == inode:
                return path.read_bytes()
        return b""  # replaced since, and of no name any more


def _content_of(descriptor: int, size: int) -> bytes:
    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, 0, os.SEEK_SET)
    content = os.read(descriptor, size)
    os.lseek(descriptor, place, os.SEEK_SET)
    return content


def _whole(content: bytes) -> bytes:
    return content


def _nothing(content: bytes) -> bytes:
    return b""


def _zeros(content: bytes) -> bytes:
    return bytes(len(content))


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def fork_and_kill(work: Callable[[], None], *, after: Callable[[], None] | None = None) -> int | None:
    """Run `work` in a copy of this process; `after`, in this one, then kills it. Return the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if after is not None:
        after()
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return None
