"""The documents: what they link to is there, and the README leads to each of them."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]


def _links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield the file and the heading of each relative link of `page`."""
    for address in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in address:
            path, _, heading = address.partition("#")
            yield (page.parent / path).resolve() if path else page, heading


def _headings(page: Path) -> set[str]:
    """Return what GitHub calls the page's headings in links: lower case, punctuation left out, `-` for a blank."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"(?m)^#+ (.+)$", text)}


def test_documents_link_to_files_and_headings_that_are_there() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {path.name}#{heading}"
        for page in PAGES
        for path, heading in _links(page)
        if not path.exists() or (heading and heading not in _headings(path))
    ]
    assert not broken


def test_readme_leads_to_every_document() -> None:
    linked = {path for path, _ in _links(ROOT / "README.md")}
    assert not [page.name for page in ROOT.glob("docs/*.md") if page not in linked]
