"""llama.cpp's own server: `python -m gpt_pipeline_tests.llama_server FILE` serves a GGUF file until its input ends.

It is built into the package `xllamacpp`. A process of its own: its threads and torch's stay apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class LlamaServer:
    """A running one."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the answer to `body` at `path`."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address + path, data=json.dumps(body).encode(), headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


@contextmanager
def llama_server(file: Path) -> Iterator[LlamaServer]:
    """Serve `file` during the block."""
    command = [sys.executable, "-m", __name__, str(file)]
    with (
        (file.parent / "llama_server.log").open("w+") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        # The server writes to stdout, too.
        lines = (line for line in process.stdout if line.startswith("http"))
        address = next(lines, None)
        if address is None:
            log.seek(0)
            pytest.fail(f"llama.cpp's server has ended:\n{log.read()}")
        try:
            yield LlamaServer(address.strip())
        finally:
            process.stdin.close()


def main(file: str) -> None:
    """Serve `file` as `llama-server -m FILE` does, in float32 throughout, until standard input ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it computes in float16
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    os.dup2(2, 1)  # nobody reads what llama.cpp prints from here on
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
