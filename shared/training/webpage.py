"""One HTML file that needs nothing else: style, tables, curves, pictures and text, for a phone as for a desk.

Everything is inside the file (pictures as base64), nothing is fetched: an address in a text is shown as text, and is
spelt so that no program takes it for a link. Knows HTML; not what is reported.
"""

import base64
import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from shared.training.layout import Row
from shared.training.svg import Points, chart

PICTURE_BYTES = 640_000  # of all pictures of a page, before base64 makes four bytes of three
IMAGES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif"}

STYLE = """
:root{color-scheme:light dark;--ink:#1c1d20;--soft:#6a6d75;--edge:#dcdde1;--page:#fff;--card:#f6f6f8;
 --c0:#2563b8;--c1:#d9622b;--c2:#2a8f5b;--c3:#9a4fb5;--c4:#b58a1a;--c5:#c23b64}
@media(prefers-color-scheme:dark){:root{--ink:#e6e7ea;--soft:#9a9da6;--edge:#34363c;--page:#17181b;--card:#202226;
 --c0:#76abf2;--c1:#f19a6b;--c2:#6ccb98;--c3:#cf94e6;--c4:#e0bd5c;--c5:#f0859f}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:1.2rem;background:var(--page);color:var(--ink);
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.5rem;margin:.2rem 0 .6rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
p.lead{font-size:1.1rem;font-weight:600;margin:.2rem 0 1rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--edge);vertical-align:top}
th{color:var(--soft);font-weight:500;font-size:.85rem}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:1rem}
figure{margin:0 0 1rem}figcaption{font-size:.85rem;color:var(--soft)}
.curves figure{background:var(--card);border-radius:.5rem;padding:.6rem;margin:0}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:11px}
.grid{stroke:var(--edge);fill:none}polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}circle{stroke:none}
.line0{stroke:var(--c0);color:var(--c0)}.line1{stroke:var(--c1);color:var(--c1)}.line2{stroke:var(--c2);color:var(--c2)}
.line3{stroke:var(--c3);color:var(--c3)}.line4{stroke:var(--c4);color:var(--c4)}.line5{stroke:var(--c5);color:var(--c5)}
circle{fill:currentColor}.key{font-weight:700}
img{max-width:100%;height:auto;background:#fff;border-radius:.4rem}
pre{background:var(--card);padding:.7rem;border-radius:.5rem;overflow-x:auto;font-size:.85rem;white-space:pre-wrap;
 overflow-wrap:anywhere}code{font-size:.9em}summary{cursor:pointer;color:var(--soft)}
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole file."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>{text(title)}</title><style>{STYLE}</style></head><body>",
            *parts,
            "</body></html>\n",
        ]
    )


def text(words: object) -> str:
    """Escaped, and without an address that could be followed."""
    return html.escape(str(words)).replace("://", ":&#47;&#47;")


def heading(words: str, lead: str = "") -> str:
    return f"<h1>{text(words)}</h1>" + (f'<p class="lead">{text(lead)}</p>' if lead else "")


def section(title: str, *parts: str) -> str:
    """Empty without content."""
    content = "".join(parts)
    return f"<h2>{text(title)}</h2>\n{content}" if content else ""


def table(head: Row, rows: Iterable[Row]) -> str:
    """Cells may use `code` and **bold**. A head of empty cells is not shown."""
    lines = ["".join(f"<td>{inline(cell)}</td>" for cell in row) for row in rows]
    shown = "<tr>" + "".join(f"<th>{inline(cell)}</th>" for cell in head) + "</tr>" if any(head) else ""
    return f'<div class="wide"><table>{shown}{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def code(words: str) -> str:
    return f"<pre>{text(words)}</pre>"


def folded(title: str, content: str) -> str:
    """Shown on a click."""
    return f"<details><summary>{text(title)}</summary>{content}</details>"


def curves(panels: Mapping[str, Mapping[str, Points]], x_label: str = "update") -> str:
    """panels: title -> lines by name. Empty without a point."""
    drawn = [_panel(title, lines, x_label) for title, lines in panels.items() if any(map(len, lines.values()))]
    return f'<div class="curves">{"".join(drawn)}</div>' if drawn else ""


def _panel(title: str, lines: Mapping[str, Points], x_label: str) -> str:
    last = {name: f" {points[-1][1]:.4g}" for name, points in lines.items() if points}
    keys = [f'<span class="key line{n}">{text(name)}</span>{last.get(name, "")}' for n, name in enumerate(lines)]
    caption = text(title) + (": " + ", ".join(keys) if len(lines) > 1 else last.get(next(iter(lines)), ""))
    return f"<figure>{chart(lines, x_label)}<figcaption>{caption}</figcaption></figure>"


def pictures(files: Sequence[Path]) -> str:
    """Each picture in the file; a large one is made smaller, so that all keep within PICTURE_BYTES."""
    left, shown = PICTURE_BYTES, []
    for number, file in enumerate(files):
        kind, data = within(file, left // (len(files) - number))
        left -= len(data)
        shown.append(_figure(file.stem, f"data:image/{kind};base64,{base64.b64encode(data).decode()}"))
    return "".join(shown)


def _figure(name: str, source: str) -> str:
    return f'<figure><img alt="{text(name)}" src="{source}"><figcaption>{text(name)}</figcaption></figure>'


def within(file: Path, most: int) -> tuple[str, bytes]:
    """(format, bytes) of a picture: the file itself if it has at most `most` bytes, else a JPEG that has."""
    data = file.read_bytes()
    if len(data) <= most:
        return IMAGES[file.suffix], data
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(ground, picture).convert("RGB")
    while len(data) > most:
        packed = io.BytesIO()
        picture.save(packed, "JPEG", quality=80)
        data = packed.getvalue()
        picture = picture.resize((max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4)))
        if picture.size == (1, 1):
            break
    return "jpeg", data


def prose(markdown: str) -> str:
    """The Markdown that reports use: paragraphs, `- ` lists, pipe tables, fenced code, `code` and **bold**."""
    blocks = re.split(r"(```.*?```)", markdown, flags=re.DOTALL)
    return "".join(_fence(block) if block.startswith("```") else "".join(_blocks(block)) for block in blocks)


def _fence(block: str) -> str:
    return code(block.strip("`").partition("\n")[2])


def _blocks(markdown: str) -> Iterator[str]:
    for kind, group in groupby(markdown.splitlines(), _kind):
        lines = list(group)
        if kind == "table":
            rows = [_cells(line) for line in lines]
            yield table(rows[0], [row for row in rows[1:] if set("".join(row)) - set("-: ")])
        elif kind == "list":
            yield "<ul>" + "".join(f"<li>{inline(line.strip()[2:])}</li>" for line in lines) + "</ul>"
        elif kind == "text":
            yield f"<p>{inline(' '.join(lines))}</p>"


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _kind(line: str) -> str:
    first = line.strip()[:2]
    return "blank" if not first else "table" if first[0] == "|" else "list" if first in ("- ", "* ") else "text"


def inline(words: str) -> str:
    """`code`, **bold**; of a link the words, of a picture nothing."""
    words = text(re.sub(r"!\[[^]]*\]\([^)]*\)", "", words)).replace(" .. ", "&nbsp;..&nbsp;")
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", words)
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", re.sub(r"`([^`]*)`", r"<code>\1</code>", words))
