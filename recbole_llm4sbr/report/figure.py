"""A figure of the report as a piece of its page, and the library that draws it there."""

import base64
import gzip
from dataclasses import dataclass
from functools import cache
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

_OPEN = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0}  # of a legend: a row at the bottom


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        section: of the page, which tables may share.
        title, how: headline, and how it was made.
        figure: plotly's; its colours of text, axes and ground are the page's.
        height: in pixels.
    """

    section: str
    title: str
    how: str
    figure: go.Figure
    height: int = 420

    def html(self) -> str:
        """The figure as JSON that the page's script draws once it comes into view."""
        self.figure.update_layout(
            template="none", height=self.height, margin={"l": 48, "r": 12, "t": 24, "b": 8}, legend=_OPEN, autosize=True
        )
        drawn = self.figure.to_json().replace("<", "\\u003c")
        return (
            f'<div class=plot style="min-height:{self.height}px" role=img aria-label="{escape(self.title, quote=True)}">'
            f"<script type=application/json>{drawn}</script></div>"
        )


@cache
def library() -> str:
    """Plotly's own script, packed, so that the page needs no network and a third of the bytes; the page's script unpacks it."""
    packed = gzip.compress(get_plotlyjs().encode(), 9, mtime=0)
    return f"<script type=text/plain id=plotly>{base64.b64encode(packed).decode()}</script>"
