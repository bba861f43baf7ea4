"""A histogram as a picture that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 760, 260, 8, 46, 30
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#444}rect{fill:#3b6fb6}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}rect{fill:#7aa7e0}}"
)


def histogram_svg(counts: Sequence[int], edges: Sequence[int], *, title: str) -> str:
    """Return the counts as bars of equal width, without the empty bins at both ends; "" if there is nothing to show.

    `edges` are the bins' limits: len(counts) + 1 of them, or as many as counts where the last bin is open.
    """
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return ""
    first, last = filled[0], filled[-1]
    shown = counts[first : last + 1]
    step = (_WIDTH - 2 * _LEFT) / len(shown)
    scale = (_HEIGHT - _TOP - _BOTTOM) / max(shown)
    parts = [f'<text x="{_LEFT}" y="18">{escape(title)}</text>']
    every = -(-len(shown) // 12)  # labels that do not run into each other
    for place, count in enumerate(shown):
        left, height = _LEFT + place * step, count * scale
        label = f"{edges[first + place]:,} and more: {count:,}"
        parts.append(
            f'<rect x="{left + 1:.1f}" y="{_HEIGHT - _BOTTOM - height:.1f}" width="{step - 2:.1f}" '
            f'height="{height:.1f}"><title>{label}</title></rect>'
        )
        if place % every == 0:
            parts.append(f'<text x="{left:.1f}" y="{_HEIGHT - _BOTTOM + 18}">{edges[first + place]:,}</text>')
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    body = f"<style>{_STYLE}</style>{''.join(parts)}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">{body}</svg>'
