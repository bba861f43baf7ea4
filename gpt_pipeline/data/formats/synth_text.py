"""SYNTH's columns, and the text of a document made of them, in plain Python; `synth` does the same in bulk."""

from __future__ import annotations

SYNTH_COLUMNS = (
    "synth_id",
    "language",
    "exercise",
    "model",
    "query",
    "query_seed_url",
    "query_seed_text",
    "additional_seed_url",
    "seed_license",
    "constraints",
    "script",
    "synthetic_reasoning",
    "synthetic_answer",
    "words",
)

QUERY_MARK = "Q: "
REASONING_MARK = "\n\nReasoning:\n"
ANSWER_MARK = "\n\nA: "
ENGLISH = "en"
FAILED_CONSTRAINT = "result:Failed after maximum attempts"  # SYNTH's note on rows whose generation was given up


def is_blank(text: str | None) -> bool:
    """Whether `text` is null, empty or only whitespace."""
    return text is None or not text.strip()


def document_text(query: str, reasoning: str | None, answer: str) -> str:
    """Return the text of a row; a blank reasoning is left out together with its heading."""
    if reasoning is None or is_blank(reasoning):
        return f"{QUERY_MARK}{query}{ANSWER_MARK}{answer}"
    return f"{QUERY_MARK}{query}{REASONING_MARK}{reasoning}{ANSWER_MARK}{answer}"


def prompt_text(query: str) -> str:
    """Return the beginning of a document, up to where the model has to go on with its reasoning."""
    return f"{QUERY_MARK}{query}{REASONING_MARK}"


def answer_prompt_text(query: str) -> str:
    """Return the beginning of a document without reasoning, up to where the model has to answer."""
    return f"{QUERY_MARK}{query}{ANSWER_MARK.rstrip(' ')}"  # the blank belongs to the answer's first token


def article_key(query_seed_url: str | None, synth_id: str | None) -> str:
    """Return the name of the article a row grew from; a row without one is an article of its own."""
    if query_seed_url is not None and not is_blank(query_seed_url):
        return query_seed_url
    return synth_id or ""
