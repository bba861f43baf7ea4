from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt_pipeline.data.tokens.stream import new_shard, shard_name

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not count mapped files")

_OPEN = """
import resource, sys
from pathlib import Path
from gpt_pipeline.data.tokens.stream import TokenStream
from gpt_pipeline.errors import UserError
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))
names = tuple(sorted(path.name for path in Path(sys.argv[1]).iterdir()))
try:
    streams = [TokenStream(Path(sys.argv[1]), names) for _ in range(2)]
    print([sum(int(stream.read(place, 1)[0]) for place in range(stream.n_tokens)) for stream in streams])
except UserError as error:
    print(error)
"""


def opened(folder: Path, *, hard_limit: int) -> str:
    command = [sys.executable, "-c", _OPEN, str(folder), str(hard_limit)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for number in range(300):
        with new_shard(folder / shard_name("train", number)) as shard:
            shard.append(np.array([number], np.uint16))
    return folder


def test_stream_of_more_shards_than_files_may_be_open_is_read(folder: Path) -> None:
    assert opened(folder, hard_limit=700) == opened(folder, hard_limit=4096)
    assert opened(folder, hard_limit=4096) == str([sum(range(300))] * 2)


def test_stream_beyond_the_administrators_limit_says_what_to_raise(folder: Path) -> None:
    said = opened(folder, hard_limit=500)  # the second stream is beyond it
    assert "may have 500 files open" in said
    assert "ulimit -Hn" in said


_MAP = """
import resource, sys
from pathlib import Path
from gpt_pipeline.data.tokens.stream import map_shard
from gpt_pipeline.errors import UserError
used = 1024 * int(Path("/proc/self/status").read_text().partition("VmSize:")[2].split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), used + (8 << 20)))
try:
    map_shard(Path(sys.argv[1]))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_shard_that_the_system_does_not_map_says_what_to_raise(tmp_path: Path) -> None:
    path, tokens = tmp_path / "train_000001.bin", 32 << 20
    with new_shard(path) as shard:
        shard.append(np.zeros(0, np.uint16))
    with path.open("r+b") as file:  # says in its third number how many there are
        file.seek(8)
        file.write(np.array([tokens], "<i4").tobytes())
    with path.open("r+b") as file:
        file.truncate(1024 + 2 * tokens)
    command = [sys.executable, "-c", _MAP, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "train_000001.bin: found no room to map it" in said
    assert "vm.max_map_count" in said
