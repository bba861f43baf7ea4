"""What the HTML pages have in common: their templates, and one small script that brings charts and tables to life."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from functools import cache
from importlib.resources import files

import jinja2
from markupsafe import Markup

from gpt_pipeline.report import wording
from gpt_pipeline.shown import html_templates


def page_environment() -> jinja2.Environment:
    """Return what renders the templates of the report, and of pages in its style."""
    environment = html_templates("gpt_pipeline.report")
    for name in ("number", "count", "decimal", "percent", "duration", "size", "words", "setting"):
        environment.filters[name] = getattr(wording, name)
    environment.globals["fact_text"] = wording.fact
    environment.globals["script"] = Markup(page_script())
    environment.globals["policy"] = page_policy()
    return environment


@cache
def page_script() -> str:
    """Return the script of the pages. Without it they show the same: it adds smoothing, log axes, values, sorting."""
    return (files("gpt_pipeline.report") / "static" / "page.js").read_text(encoding="utf-8")


@cache
def page_policy() -> str:
    """Return the Content-Security-Policy of the pages: no script but that one, and nothing from elsewhere.

    The pages show what models wrote: whatever that is, a browser runs none of it.
    """
    digest = b64encode(hashlib.sha256(page_script().encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
