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
