"""Arrays as files of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpt_pipeline.storage.atomic import HashedFile, atomic_path
from gpt_pipeline.storage.manifest import FileRecord


def save_array(path: Path, array: NDArray[np.generic]) -> FileRecord:
    """Write `array` as numpy's `.npy`, atomically, and return what the file has to be."""
    with atomic_path(path) as temporary, HashedFile(temporary) as file:
        np.save(file, array)
    return FileRecord(size=file.size, sha256=file.sha256)
