from __future__ import annotations

from collections.abc import Iterator
from threading import Event

from hypothesis import given
from hypothesis import strategies as st

from gpt_pipeline.orchestration.whole_lines import whole_lines


@given(lines=st.lists(st.text(st.characters(exclude_characters="\n"))), cuts=st.lists(st.integers(0, 40)))
def test_lines_that_are_read_in_pieces_come_whole_and_in_order(lines: list[str], cuts: list[int]) -> None:
    text, ended = "".join(f"{line}\n" for line in lines), Event()

    def pieces() -> Iterator[str]:
        left = text
        for cut in cuts:
            yield left[:cut]
            left = left[cut:]
        ended.set()
        yield left
        yield ""

    source = pieces()
    ended.wait = lambda timeout=None: True  # type: ignore[method-assign]  # without its pauses
    assert list(whole_lines(lambda: next(source), ended)) == lines
