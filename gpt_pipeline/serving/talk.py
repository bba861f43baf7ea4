"""The page on which checkpoints answer a question side by side, with held-out questions whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from gpt_pipeline.data.formats.forms import MARKS, START
from gpt_pipeline.evaluation.result import read_evaluations
from gpt_pipeline.evaluation.score import score_answer
from gpt_pipeline.experiment.load import Experiment
from gpt_pipeline.serving.errors import ApiError
from gpt_pipeline.serving.models import Served
from gpt_pipeline.shown import harmless_html_templates
from gpt_pipeline.start_page.page import PAGE_HEADERS
from gpt_pipeline.start_page.page import read_static as read_start_static

STATIC = {"talk.css": "text/css", "talk.js": "text/javascript"}
_START_CSS = "start.css"  # the page looks like the start page
_LONGEST_ANSWER = 100_000  # characters


@dataclass(frozen=True, kw_only=True)
class KnownQuestion:
    """A question of an evaluation, which no training has seen, with its answer."""

    experiment: str
    question: str
    expected: str
    reasons: bool
    """Whether the document reasons before it answers."""


class Mark(BaseModel):
    """An answer to one of the known questions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    question: Annotated[int, Field(ge=0)]
    """Its place among those of `/talk/questions`."""

    answer: Annotated[str, Field(max_length=_LONGEST_ANSWER)]


def talk_routes(models: Sequence[Served]) -> tuple[APIRouter, APIRouter]:
    """Return the routes of the page, open to all who reach the server, and those of its data."""
    questions = known_questions([each.experiment for each in models if each.chat is not None])
    page, data = APIRouter(), APIRouter(prefix="/talk")

    @page.get("/")
    async def talk() -> Response:
        return Response(render_talk(models), media_type="text/html", headers=PAGE_HEADERS)

    @page.get("/favicon.ico")
    async def icon() -> Response:
        return Response(status_code=204)

    for name, kind in {**STATIC, _START_CSS: "text/css"}.items():
        page.add_api_route(f"/{name}", _file(name, kind))

    @data.get("/questions")
    async def list_questions() -> list[dict[str, Any]]:
        return [
            {"experiment": each.experiment, "question": each.question, "reasons": each.reasons} for each in questions
        ]

    @data.post("/mark")
    async def mark(given: Mark) -> dict[str, Any]:
        if given.question >= len(questions):
            raise ApiError(f"question: found {given.question}, need one of the {len(questions)} of /talk/questions")
        known = questions[given.question]
        return {"is_right": is_right(given.answer, known), "expected": known.expected}

    return page, data


def known_questions(experiments: Sequence[Experiment]) -> list[KnownQuestion]:
    """Return the questions of each experiment's newest evaluation, once each, without those in several ChatML turns."""
    found: dict[tuple[str, str], KnownQuestion] = {}
    for experiment in experiments:
        newest = max(read_evaluations(experiment.folder.evaluations), key=lambda each: each.created_at, default=None)
        for answer in newest.answers if newest is not None else ():
            known = KnownQuestion(
                experiment=experiment.display_name,
                question=str(answer["question"]),
                expected=str(answer["expected"]),
                reasons=bool(answer.get("reference_reasoning")),
            )
            if MARKS[START] not in known.question:  # one message cannot say what several turns did
                found.setdefault((known.question, known.expected), known)
    return list(found.values())


def is_right(answer: str, known: KnownQuestion) -> bool:
    """Return whether an answer, without its reasoning, is right, as an evaluation decides it."""
    return score_answer(answer, query=known.question, expected=known.expected, ended=True, with_reasoning=False).correct


def render_talk(models: Sequence[Served]) -> str:
    """Return the page as HTML."""
    return _environment().get_template("talk.html.j2").render(models=models)


def _file(name: str, kind: str) -> Any:
    async def file() -> Response:
        text = read_start_static(name) if name == _START_CSS else _read_static(name)
        return Response(text, media_type=kind, headers={"cache-control": "no-store"})

    return file


def _read_static(name: str) -> str:
    return (files("gpt_pipeline.serving") / "static" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = harmless_html_templates("gpt_pipeline.serving")
    environment.filters["thousands"] = "{:,}".format
    return environment
