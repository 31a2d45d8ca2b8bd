"""Style sheet and HTML building blocks of the reports; pages are self-contained."""

import base64
from html import escape
from pathlib import Path
from typing import Any

STYLE = """
:root {
  color-scheme: light dark; --page: #fbfbf9; --card: #ffffff; --ink: #1d2329; --soft: #59636e; --line: #dfe2e5;
  --control: #f4f5f3; --met: #00664b; --unmet: #a63d00; --good: #dcefe8; --bad: #fbe3d6; --heat: none;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5588f; --c4: #b98500; --c5: #2f8fc4; --c6: #6b4fa0;
  --c7: #666666;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1b1f23; --ink: #e4e7ea; --soft: #a2abb5; --line: #343a41; --control: #20252a;
    --met: #6fd3ae; --unmet: #ffa56b; --good: #17372d; --bad: #45291a; --heat: brightness(1.9) saturate(0.7);
    --c0: #56a9e0; --c1: #f08a45; --c2: #3cc79b; --c3: #dc8fbd; --c4: #e6b23c; --c5: #8fd0f5; --c6: #ab93dc;
    --c7: #aaaaaa;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", "Liberation Sans", sans-serif;
}
main { max-width: 960px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 1.25rem; margin: 44px 0 6px; }
h3 { font-size: 1rem; margin: 20px 0 4px; }
p { margin: 0 0 12px; max-width: 44em; }
.soft, .why, caption, figcaption { color: var(--soft); }
.why, .goal { display: block; font-size: .875rem; line-height: 1.4; }
.wide {
  overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; background: var(--card); margin: 12px 0;
}
table { border-collapse: collapse; width: 100%; }
th, td {
  text-align: left; vertical-align: top; padding: 9px 14px; border-top: 1px solid var(--line); font-weight: inherit;
}
thead th { border-top: 0; color: var(--soft); font-size: .875rem; vertical-align: bottom; }
tbody th { max-width: 38em; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.main { font-weight: 600; }
.group { font-size: .875rem; color: var(--soft); padding: 6px 14px; }
tr.control { background: var(--control); }
tr.sentence th { font-weight: 600; background: var(--control); }
.none { color: var(--soft); font-size: .875rem; }
.met { color: var(--met); }
.unmet { color: var(--unmet); }
.met b, .unmet b { font-weight: 600; }
.goals { list-style: none; padding: 0; margin: 18px 0 0; display: grid; gap: 8px; }
.goals li { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 14px; }
.plots {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(380px, 100%), 1fr)); gap: 14px; margin: 12px 0;
}
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; }
figcaption { font-size: .875rem; margin-bottom: 4px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg .name, svg .token { fill: var(--ink); }
svg .last { fill: var(--soft); }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; }
.curve.thin { stroke-width: 1; opacity: .75; }
.grid { stroke: var(--line); fill: none; }
.frame { fill: none; stroke: var(--line); }
.heat { image-rendering: pixelated; filter: var(--heat); }
audio { display: block; width: 230px; height: 34px; max-width: 100%; }
ins { background: var(--good); text-decoration: none; border-radius: 3px; padding: 0 3px; }
ins::before { content: "+"; color: var(--met); }
del { background: var(--bad); border-radius: 3px; padding: 0 3px; }
.bar { display: block; height: 8px; min-width: 1px; border-radius: 2px; background: var(--c0); }
td.bars { width: 45%; vertical-align: middle; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 12px 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 600px) {
  main { padding: 18px 12px 48px; }
  th, td, .group { padding: 8px 10px; }
  audio { width: 100%; }
  .figures thead { display: none; }
  .figures tr { display: grid; grid-template-columns: 1fr 1fr; border-top: 1px solid var(--line); }
  .figures th, .figures .group { grid-column: 1 / -1; border-top: 0; }
  .figures td.n { border-top: 0; padding-top: 0; }
  .figures td.both { grid-column: 1 / -1; }
  .figures td.n::before { content: attr(data-of) " "; color: var(--soft); font-size: .875rem; font-weight: 400; }
  .figures td.both .none { display: none; }
  .samples td { display: block; border-top: 0; padding: 0 10px 6px; }
  .samples td:first-child { border-top: 1px solid var(--line); padding-top: 8px; }
  .samples td:empty { display: none; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: 6px; }
}
"""

# Forbids the browser to fetch anything: the page embeds all its content.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def page(title: str, body: str, style: str = "") -> str:
    """Build the whole page; ``body`` is HTML, ``title`` is text, ``style`` is CSS appended to `STYLE`."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def section(heading: str, explanation: str, *content: str) -> str:
    """A section: heading, explanation (HTML) and content."""
    return f"<section>\n<h2>{escape(heading)}</h2>\n<p>{explanation}</p>\n" + "\n".join(content) + "\n</section>"


def table(head: list[str], rows: list[str], kind: str = "") -> str:
    """A table that scrolls where it is too wide. head: the first column is text, the others are numbers."""
    cells = "".join(f'<th scope="col"{" class=n" if i else ""}>{escape(name)}</th>' for i, name in enumerate(head))
    top = f"<thead><tr>{cells}</tr></thead>" if head else ""
    body = "\n".join(rows)
    return f'<div class="wide"><table class="{kind}">{top}<tbody>\n{body}\n</tbody></table></div>'


def plots(pictures: list[tuple[str, str]], nothing: str) -> str:
    """A grid of plots, (caption, svg) each; shows the text ``nothing`` where none has an svg."""
    drawn = [f"<figure><figcaption>{escape(text)}</figcaption>{svg}</figure>" for text, svg in pictures if svg]
    return f'<div class="plots">{"".join(drawn)}</div>' if drawn else f'<p class="none">{escape(nothing)}</p>'


def player(folder: Path, name: Any) -> str:
    """An audio player with ``folder/name`` embedded."""
    path = folder / str(name)
    if not path.is_file():
        return f'<span class="none">{escape(str(name))} is missing</span>'
    data = base64.b64encode(path.read_bytes()).decode()
    kind = {".flac": "flac", ".ogg": "ogg", ".mp3": "mpeg"}.get(path.suffix.lower(), "wav")
    return f'<audio controls preload="metadata" src="data:audio/{kind};base64,{data}"></audio>'
