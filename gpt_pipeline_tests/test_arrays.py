from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_pipeline.data import arrays
from gpt_pipeline.data.arrays import Spool, save_array
from gpt_pipeline.storage.atomic import sha256_of


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 9), max_size=6), row=st.sampled_from([(), (2,)]), kept=st.sampled_from([1, 1000]))
def test_spool_is_saved_as_the_same_bytes_as_the_whole_array(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], row: tuple[int, ...], kept: int
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    pieces = [np.random.default_rng(size).integers(0, 99, (size, *row)) for size in sizes]
    whole = save_array(folder / "whole.npy", np.concatenate([np.empty((0, *row), "<i8"), *pieces]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_KEPT_BYTES", kept)
        patch.setattr(arrays, "_PIECE_ROWS", 4)
        with Spool(folder, "<i8", *row) as spool:
            for piece in pieces:
                spool.append(piece)
            assert spool.save(folder / "spooled.npy") == whole
    assert sha256_of(folder / "spooled.npy") == whole.sha256
    assert {path.name for path in folder.iterdir()} == {"whole.npy", "spooled.npy"}
