"""The page as HTML. It works without JavaScript too, and loads nothing from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from gpt_pipeline.report import wording
from gpt_pipeline.report.charts import Chart, draw
from gpt_pipeline.shown import harmless_html_templates, on_terminal
from gpt_pipeline.start_page.card import Addresses, Card

STATIC = {"start.css": "text/css", "start.js": "text/javascript"}
"""The files beside the page, and what they are."""

PAGE_HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "same-origin",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
}
"""Of a page that runs no script but its own file, and loads nothing from elsewhere."""

_STYLES = {
    "training": "busy",
    "making data": "busy",
    "evaluating": "busy",
    "finished": "good",
    "failed": "bad",
    "broken": "bad",
}


def render_page(cards: Sequence[Card], *, experiments: Path, addresses: Addresses) -> str:
    """Return the whole page; `experiments` is the folder of the experiment files."""
    template = _environment().get_template("start.html.j2")
    return template.render(
        experiments=on_terminal(str(experiments)),
        addresses=addresses,
        cards=Markup(render_cards(cards)),
        mlflow=addresses.mlflow_runs([card.mlflow_id for card in cards if card.mlflow_id is not None]),
        can_compare=sum(card.state.word != "broken" for card in cards) > 1,
    )


def render_cards(cards: Sequence[Card]) -> str:
    """Return the cards alone, each with a version that changes when anything on it does."""
    return "\n".join(_versioned(card) for card in cards)


def _versioned(card: Card) -> str:
    content = _environment().get_template("card.html.j2").render(card=card, style=_STYLES.get(card.state.word, ""))
    version = hashlib.sha256(content.encode()).hexdigest()[:16]
    return f'<article id="{card.key}" data-version="{version}" aria-labelledby="{card.key}-title">\n{content}</article>'


def read_static(name: str) -> str:
    """Return one of the files of `STATIC`."""
    return (files("gpt_pipeline.start_page") / "static" / name).read_text(encoding="utf-8")


def _draw(chart: Chart) -> Markup:
    return Markup(draw(chart))


@cache
def _environment() -> jinja2.Environment:
    environment = harmless_html_templates("gpt_pipeline.start_page")
    environment.filters["number"] = wording.number
    environment.filters["draw"] = _draw
    return environment
