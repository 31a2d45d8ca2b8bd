"""Writes ``utterances.html``: every sentence aligned with its hypothesis, worst first.

Sorting needs no script: each item has its rank in every order, and the style sheet applies the chosen one.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from zipper_jax.metrics.error_rates import percent
from zipper_jax.reports.page import page, player, section, table
from zipper_jax.reports.tables import ASR_ROWS, Row
from zipper_jax.utils.files import write_bytes

ORDERS = {
    "errors": ("most errors", lambda row: (-row["errors"], -_rate(row))),
    "rate": ("highest error rate", lambda row: (-_rate(row), -row["errors"])),
    "words": ("longest sentence", lambda row: -row["words"]),
    "seconds": ("longest audio", lambda row: -(row.get("seconds") or 0.0)),
    "name": ("name", lambda row: row["id"]),
}
"""Order -> its label and sort key. The first is the page's default."""

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
    """Write ``folder/utterances.html`` from the result of `evaluate_split`, with the audio embedded."""
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
    left = [f"{results['left_out']:,} more sentences were not requested"] if results["left_out"] else []
    left += [f"{results['without_words']:,} without words were skipped"] if results["without_words"] else []
    return f"""<header>
<h1>{escape(title)}</h1>
<p>{percent(results["rates"]["asr_wer_test"])} of {total["words"]:,} words in {len(rows):,} sentences are wrong:
{total["substitutions"]:,} substituted, {total["deletions"]:,} deleted, {total["insertions"]:,} inserted.
{right:,} sentences have no error.{f" {'; '.join(left)}." if left else ""}</p>
</header>"""


def _controls(rates: Mapping[str, float | str], split: str) -> str:
    lines = []
    main = Row(
        "asr_wer_test",
        f"Sentences of {split}",
        "The main figure; valid only where these sentences are outside all training data.",
    )
    for row in (main, *(row for row in ASR_ROWS if row.control)):
        if row.key not in rates:
            continue
        kind = "control" if row.control else "result"
        cell = f'<td class="n{"" if row.control else " main"}">{escape(percent(rates[row.key]))}</td>'
        first = f'<th scope="row">{escape(row.label)}<span class="why">{escape(row.why)}</span></th>'
        lines.append(f'<tr class="{kind}">{first}{cell}</tr>')
    return section(
        "Error rate and controls",
        "The rows below the first are controls: each removes the audio that the words should come from. A low rate "
        "there means that the model guesses.",
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
        "<del>Crossed out</del>: a deleted word; <ins>with a plus</ins>: an inserted one; "
        '<span class="swap"><del>one</del><ins>another</ins></span>: a substituted one. Both sides are normalised: '
        f"{escape(results['normaliser'])}." + (f" Audio: {escape(results['heard'])}." if results["heard"] else ""),
        f'<div class="sorts">{sorts}'
        '<label><input type="checkbox" id="only_wrong"> only sentences with errors</label></div>',
        f'<ol class="utterances">{"".join(lines)}</ol>',
    )


def _utterance(folder: Path, row: Mapping[str, Any], places: Mapping[str, int]) -> str:
    style = ";".join(f"--{name}:{place}" for name, place in places.items())
    seconds = f", {row['seconds']:.1f} s" if row.get("seconds") else ""
    counts = ", ".join(
        f"{row[name]} {what}"
        for name, what in (("substitutions", "substituted"), ("deletions", "deleted"), ("insertions", "inserted"))
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
    """Reference and hypothesis in one line, with the errors marked."""
    parts = []
    for kind, true, found in alignment:
        deleted, inserted = escape(" ".join(true)), escape(" ".join(found))
        if kind == "equal":
            parts.append(inserted)
        else:
            marks = f"<del>{deleted}</del>" * bool(deleted) + f"<ins>{inserted}</ins>" * bool(inserted)
            parts.append(f'<span class="swap">{marks}</span>' if kind == "substitute" else marks)
    return " ".join(parts)


def _rate(row: Mapping[str, Any]) -> float:
    return float(row["errors"] / row["words"])
