"""Answers, continuations and metrics as tables for people and for MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_pipeline.evaluation.shares import Share
from gpt_pipeline.sheet import markdown_table
from gpt_pipeline.shown import as_code, in_markdown

_SHOWN = ("question", "expected", "reasoning", "answer", "well_formed", "correct", "choice_match", "token_f1")
_OF_ANSWERS = {"kind": "exercise"} | {name: name for name in _SHOWN}
_OF_CONTINUATIONS = {
    "kind": "kind",
    "beginning": "beginning",
    "continuation": "generated",
    "original": "original",
    "ended": "ended",
    "distinct_2": "distinct_2",
}
"""The columns, each with the name of what it shows in the records."""


def answers_as_table(answers: Sequence[Mapping[str, Any]]) -> str:
    """Return the answers as MLflow's `log_table` writes them; its pages show the file as a table."""
    return _as_table(answers, _OF_ANSWERS)


def continuations_as_table(continuations: Sequence[Mapping[str, Any]]) -> str:
    """Return the continuations in the same form."""
    return _as_table(continuations, _OF_CONTINUATIONS)


def _as_table(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    rows = [[record[name] for name in columns.values()] for record in records]
    return json.dumps({"columns": list(columns), "data": rows}, ensure_ascii=False)


def answers_as_markdown(answers: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """Return the answers as markdown; the model's text cannot break out of its block."""
    return "\n".join([f"# {title}\n", *(_answer(number, answer) for number, answer in enumerate(answers, start=1))])


def continuations_as_markdown(continuations: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """Return the continuations as markdown, each with how the document really goes on."""
    parts = [_continuation(number, each) for number, each in enumerate(continuations, start=1)]
    return "\n".join([f"# {title}\n", *parts])


def kinds_as_markdown(metrics: Mapping[str, float], right: Mapping[str, Share]) -> str | None:
    """Return the metrics by kind (`val_loss/editing`) as a markdown table; None if there are none.

    `right` are the shares of right answers by kind, which are shown with their intervals.
    """
    measured = [key.partition("/") for key in metrics if "/" in key]
    if not measured:
        return None
    names = list(dict.fromkeys(name for name, _, _ in measured))
    rows = []
    for kind in sorted({kind for _, _, kind in measured}):
        shown = {name: f"{metrics[key]:.4f}" for name in names if (key := f"{name}/{kind}") in metrics}
        shown |= {"correct": str(right[kind])} if kind in right else {}
        rows.append([kind.replace("_", " "), *(shown.get(name, "") for name in names)])
    return markdown_table(["kind", *(name.replace("_", " ") for name in names)], rows)


def _answer(number: int, answer: Mapping[str, Any]) -> str:
    kind = _kind(answer["exercise"])
    verdict = "correct" if answer["correct"] else "not correct"
    form = "well-formed" if answer["well_formed"] else "not well-formed"
    return "\n".join(
        [
            f"## {number}. {kind and f'{kind}: '}{verdict}, {form}\n",
            f"**Question**\n\n{as_code(answer['question'])}\n",
            f"**Expected**\n\n{as_code(answer['expected'])}\n",
            f"**Written by the model**\n\n{as_code(answer['generated'])}\n",
        ]
    )


def _continuation(number: int, continuation: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            f"## {number}. {_kind(continuation['kind'])}\n",
            f"**Beginning**\n\n{as_code(continuation['beginning'])}\n",
            f"**Written by the model**\n\n{as_code(continuation['generated'])}\n",
            f"**How it really goes on**\n\n{as_code(continuation['original'])}\n",
        ]
    )


def _kind(kind: str) -> str:
    return "" if kind == "unknown" else in_markdown(kind)
