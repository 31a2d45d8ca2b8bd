"""One page, ``utterances.html``: every sentence with what was heard, word against word, worst first.

Sorting needs no script: each line carries its place in every order, and the style sheet applies the one that is chosen.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from zipper_jax.reports.page import page, player, section, table
from zipper_jax.reports.tables import ASR_ROWS, Row, percent
from zipper_jax.utils.files import write_bytes

ORDERS = {
    "errors": ("most errors", lambda row: (-row["errors"], -_rate(row))),
    "rate": ("highest error rate", lambda row: (-_rate(row), -row["errors"])),
    "words": ("longest sentence", lambda row: -row["words"]),
    "seconds": ("longest audio", lambda row: -(row.get("seconds") or 0.0)),
    "name": ("name", lambda row: row["id"]),
}
"""Order -> what the page calls it, and a sentence's key in it. The first is chosen when the page opens."""

_STYLE = """
.sorts { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0; font-size: .875rem; }
.utterances { list-style: none; padding: 0; margin: 0; display: flex; flex-direction: column; gap: 10px; }
.utterances li {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; order: var(--errors);
}
.utterances p { margin: 4px 0; max-width: none; }
.swap del, .swap ins { background: var(--swap); }
:root { --swap: #fdf0c4; }
@media (prefers-color-scheme: dark) { :root { --swap: #4a3f14; } }
main:has(#only_wrong:checked) .utterances li.right { display: none; }
""" + "".join(f"main:has(#by_{name}:checked) .utterances li {{ order: var(--{name}); }}\n" for name in ORDERS)


def write_utterances(folder: Path, results: Mapping[str, Any]) -> Path:
    """Writes ``folder/utterances.html`` from what `utterances.evaluate_split` returned; sound and all lie inside."""
    rows = results["utterances"]
    title = f"Errors of {results['run']} on {results['split']}"
    body = [_header(title, results), _controls(results["rates"], results["split"]), _utterances(folder, results, rows)]
    path = folder / "utterances.html"
    write_bytes(path, page(title, "\n".join(body), _STYLE).encode())
    return path


def _header(title: str, results: Mapping[str, Any]) -> str:
    rows = results["utterances"]
    total = {name: sum(row[name] for row in rows) for name in ("words", "substitutions", "deletions", "insertions")}
    right = sum(row["errors"] == 0 for row in rows)
    left = [f"{results['left_out']:,} more sentences were not asked for"] if results["left_out"] else []
    left += [f"{results['without_words']:,} without words were left out"] if results["without_words"] else []
    return f"""<header>
<h1>{escape(title)}</h1>
<p>{percent(results["rates"]["asr_wer_test"])} of {total["words"]:,} words in {len(rows):,} sentences are wrong:
{total["substitutions"]:,} replaced, {total["deletions"]:,} left out, {total["insertions"]:,} added.
{right:,} sentences are right throughout.{f" {'; '.join(left)}." if left else ""}</p>
</header>"""


def _controls(rates: Mapping[str, float], split: str) -> str:
    lines = []
    main = Row(
        "asr_wer_test",
        f"Sentences of {split}",
        "The main figure; it counts only where no training run saw these sentences.",
    )
    for row in (main, *(row for row in ASR_ROWS if row.control)):
        if row.key not in rates:
            continue
        kind = "control" if row.control else "result"
        cell = f'<td class="n{"" if row.control else " main"}">{percent(rates[row.key])}</td>'
        first = f'<th scope="row">{escape(row.label)}<span class="why">{escape(row.why)}</span></th>'
        lines.append(f'<tr class="{kind}">{first}{cell}</tr>')
    return section(
        "Does it listen?",
        "The rows below the first are controls: each takes away what the words should come from. A model whose rate "
        "stays low there guesses.",
        table(["Word error rate", ""], lines),
    )


def _utterances(folder: Path, results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    places: list[dict[str, int]] = [{} for _ in rows]
    for name, (_, key) in ORDERS.items():
        for place, index in enumerate(sorted(range(len(rows)), key=lambda i: key(rows[i]))):
            places[index][name] = place
    first = next(iter(ORDERS))
    sorts = "".join(
        f'<label><input type="radio" name="sort" id="by_{name}"{" checked" if name == first else ""}> {label}</label>'
        for name, (label, _) in ORDERS.items()
    )
    lines = [_utterance(folder, row, place) for row, place in zip(rows, places, strict=True)]
    return section(
        "Every sentence",
        "<del>Crossed out</del>: a word that was left out; <ins>with a plus</ins>: one that was added; "
        '<span class="swap"><del>one</del><ins>another</ins></span>: one that was replaced. Both sides are normalised: '
        f"{escape(results['normaliser'])}." + (f" You hear {escape(results['heard'])}." if results["heard"] else ""),
        f'<div class="sorts">{sorts}'
        '<label><input type="checkbox" id="only_wrong"> only sentences with errors</label></div>',
        f'<ol class="utterances">{"".join(lines)}</ol>',
    )


def _utterance(folder: Path, row: Mapping[str, Any], places: Mapping[str, int]) -> str:
    style = ";".join(f"--{name}:{place}" for name, place in places.items())
    seconds = f", {row['seconds']:.1f} s" if row.get("seconds") else ""
    counts = ", ".join(
        f"{row[name]} {what}"
        for name, what in (("substitutions", "replaced"), ("deletions", "left out"), ("insertions", "added"))
        if row[name]
    )
    sound = player(folder, row["audio"]) if "audio" in row else ""
    return (
        f'<li class="{"wrong" if row["errors"] else "right"}" style="{style}">'
        f"<p>{_aligned(row['alignment'])}</p>{sound}"
        f'<p class="soft why">{escape(str(row["id"]))}: {percent(_rate(row))} of {row["words"]} words'
        f"{f' ({counts})' if counts else ''}{seconds}</p></li>\n"
    )


def _aligned(alignment: Sequence[Sequence[Any]]) -> str:
    """The reference and what was heard, in one line."""
    parts = []
    for kind, true, heard in alignment:
        lost, gained = escape(" ".join(true)), escape(" ".join(heard))
        if kind == "equal":
            parts.append(gained)
        else:
            marks = f"<del>{lost}</del>" * bool(lost) + f"<ins>{gained}</ins>" * bool(gained)
            parts.append(f'<span class="swap">{marks}</span>' if kind == "substitute" else marks)
    return " ".join(parts)


def _rate(row: Mapping[str, Any]) -> float:
    return float(row["errors"] / row["words"])
