"""What pages are made of: their head, tables and pictures. A page carries all of itself and asks nobody for anything.

Callers escape what comes from names of files, cases and structures, or hand it to what says that it escapes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

MAX_PICTURE_PIXELS = (840, 2400)
"""Width and height that a picture is scaled down to."""

JPEG_QUALITY = 75

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Content Security Policy: the browser itself refuses whatever the page would load or run."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2126; max-width: 1180px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { font-size: 1.25em; margin-top: 2.2em; border-bottom: 1px solid #ccd2d8; }
h3 { font-size: 1.05em; margin: 1.8em 0 .4em; } p.lead { color: #56606b; margin-top: .2em; }
h1, h3, td, li { overflow-wrap: anywhere; } .wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: .8em 0; font-size: .87em; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #e3e7eb; }
th { background: #f2f4f6; vertical-align: bottom; } td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.mean td { font-weight: 600; border-top: 2px solid #98a2ad; }
td.text, th.text { text-align: left; white-space: normal; } small { color: #56606b; font-weight: normal; }
.flag { color: #a3231b; font-weight: 600; } dt { font-weight: 600; } dd { margin: 0 0 .4em 1.2em; }
footer { margin: 3em 0 1em; color: #56606b; font-size: .85em; }
* { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
@page { size: A4; margin: 12mm; }
@media print {
  body { margin: 0; padding: 0; max-width: none; font-size: 10px; } table { font-size: 7.5px; } tr { break-inside: avoid; }
  th, td { padding: .2em .4em; } .wide { overflow: visible; } section.case { break-before: page; }
  section.case img { max-height: 20cm; }
}
"""


def page_head(title: str, lead: str, style: str = "") -> str:
    """Everything up to the first section; title and lead are escaped here.

    Args:
        title: Of the page.
        lead: A sentence below it.
        style: CSS beside :data:`STYLE`.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style></head><body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>'
    )


def table(header: Iterable[str], rows: Sequence[Sequence[str]], *, mean_last: bool = False) -> str:
    """A table whose cells are HTML already; a cell that begins with its own tag, ``<td`` or ``<th``, keeps that."""
    head = "".join(cell if cell.startswith("<th") else f"<th>{cell}</th>" for cell in header)
    lines = []
    for place, row in enumerate(rows, start=1):
        mark = ' class="mean"' if mean_last and place == len(rows) else ""
        lines.append(
            f"<tr{mark}>{''.join(cell if cell.startswith('<td') else f'<td>{cell}</td>' for cell in row)}</tr>"
        )
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def text_cell(text: str) -> str:
    """A cell of words, which are escaped here and may break into lines."""
    return f'<td class="text">{escape(text)}</td>'


def bullets(sentences: Iterable[str]) -> str:
    """A list of sentences, which are escaped here."""
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>"


def picture(path: Path, alternative: str, *, is_photo: bool) -> str:
    """A picture inside the page: photographs as JPEG, scaled down, line drawings as they are."""
    content, kind = path.read_bytes(), "png"
    if is_photo:
        from PIL import Image

        with Image.open(io.BytesIO(content)) as image:
            shown = image.convert("RGB")
        shown.thumbnail(MAX_PICTURE_PIXELS)
        packed = io.BytesIO()
        shown.save(packed, "JPEG", quality=JPEG_QUALITY)
        content, kind = packed.getvalue(), "jpeg"
    data = base64.b64encode(content).decode("ascii")
    return f'<p><img alt="{escape(alternative)}" src="data:image/{kind};base64,{data}"></p>'
