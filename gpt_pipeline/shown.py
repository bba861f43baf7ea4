"""How text is shown: harmless on a terminal and in markdown, addresses without their passwords, times in words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

Say = Callable[[str], None]
"""Takes one line of progress for a person."""

# The user part of an address ends at the last @ before its host. Databases also take a password with a bare slash; in a
# web address, such a password shows in that what follows the colon is no port.
_WEB_USER = re.compile(
    r"(?i)\b(https?|ftp)://(?:[^\s/?#\"'<>]*|[^\s:/?#\[\"'<>]*:(?!\d*(?:[\s/?#\"'<>]|$))[^\s\"'<>]*)@"
)
_OTHER_USER = re.compile(r"(?i)\b(?!https?:|ftp:)([a-z][a-z0-9+.-]*)://(?:[^\s/?#\"'<>]*|[^\s:/\"'<>]*:[^\s\"'<>]*)@")
_SECRET_OPTION = re.compile(r"(?i)([?&;](?:[a-z_-]*password|passwd|pwd|[a-z_-]*token|[a-z_-]*secret)=)[^\s&;\"'<>]*")

# What a terminal obeys (controls but for line breaks and tabs), and what turns the direction of text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*{}\[\]<>#|~!])")


def without_password(text: str) -> str:
    """Return `text` with the addresses in it stripped of user names, passwords and tokens."""
    shown = _OTHER_USER.sub(r"\1://", _WEB_USER.sub(r"\1://", text))
    return _SECRET_OPTION.sub(r"\1...", shown)


def on_terminal(text: str) -> str:
    r"""Return `text` with what a terminal would obey, rather than print, written as `\u001b`, as in JSON."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text.replace("\r\n", "\n"))


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is one: `1 file`, `2,000 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_markdown(text: str) -> str:
    """Return `text` as one line of markdown that reads as it is: no markup, HTML or picture."""
    return _MARKDOWN.sub(r"\\\1", on_terminal(" ".join(text.split())))


def as_code(text: str) -> str:
    """Return `text` as a block of code in markdown, which it cannot end, and which reads as it is."""
    return "\n".join(f"    {on_terminal(line)}" for line in text.splitlines() or [""])


def html_templates(package: str) -> jinja2.Environment:
    """Return what renders the HTML templates in the folder `templates` of a package; a name that is not given fails."""
    return _templates(package, autoescape=True)


def markdown_templates(package: str) -> jinja2.Environment:
    """Return the same for templates of markdown, in which nothing is escaped by itself; see `in_markdown`."""
    return _templates(package, autoescape=False)


def _templates(package: str, *, autoescape: bool) -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, package_path="templates"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not autoescape,  # of a file of text
        undefined=jinja2.StrictUndefined,
    )


def harmless_html_templates(package: str) -> jinja2.Environment:
    """Return the same for pages that show texts of models and files: what a terminal obeys is shown as in JSON."""
    environment = html_templates(package)
    environment.finalize = lambda value: on_terminal(value) if type(value) is str else value
    return environment


def size(count: float) -> str:
    """1234567 -> `1.23 MB`."""
    rounded = float(f"{count:.3g}")  # first: 999,999 are 1 MB, not 1000 kB
    for scale, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if rounded >= scale:
            return f"{rounded / scale:.3g} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """5025 -> `1 h 24 min`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min")]
    shown = [f"{amount} {unit}" for amount, unit in parts if amount]
    return " ".join(shown[:2])
