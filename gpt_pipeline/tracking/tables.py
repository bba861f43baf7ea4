"""Questions, answers and metrics as tables for people and for MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gpt_pipeline.evaluation.shares import Share
from gpt_pipeline.sheet import markdown_table
from gpt_pipeline.shown import in_markdown

_COLUMNS = (
    "exercise",
    "question",
    "expected",
    "reasoning",
    "answer",
    "well_formed",
    "correct",
    "choice_match",
    "token_f1",
)


def answers_as_table(answers: Sequence[Mapping[str, Any]]) -> str:
    """Return the answers as MLflow's `log_table` writes them; its pages show the file as a table."""
    rows = [[answer[column] for column in _COLUMNS] for answer in answers]
    return json.dumps({"columns": list(_COLUMNS), "data": rows}, ensure_ascii=False)


def answers_as_markdown(answers: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """Return the answers as markdown; the model's text cannot break out of its block."""
    if not answers:
        return f"# {title}\n\nNo questions were asked.\n"
    return "\n".join([f"# {title}\n", *(_answer(number, answer) for number, answer in enumerate(answers, start=1))])


def exercises_as_markdown(metrics: Mapping[str, float], right: Mapping[str, Share]) -> str | None:
    """Return the metrics by kind of exercise (`val_loss/editing`) as a markdown table; None if there are none.

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
    return markdown_table(["exercise", *(name.replace("_", " ") for name in names)], rows)


def _answer(number: int, answer: Mapping[str, Any]) -> str:
    verdict = "correct" if answer["correct"] else "not correct"
    form = "well-formed" if answer["well_formed"] else "not well-formed"
    return "\n".join(
        [
            f"## {number}. {in_markdown(answer['exercise'])}: {verdict}, {form}\n",
            f"**Question**\n\n{_block(answer['question'])}\n",
            f"**Expected**\n\n{_block(answer['expected'])}\n",
            f"**Written by the model**\n\n{_block(answer['generated'])}\n",
        ]
    )


def _block(text: str) -> str:
    """Return `text` as an indented code block."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])
