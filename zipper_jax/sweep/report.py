"""Report page of a sweep: tables with spread over seeds, verdicts on claims, figures, and the commands used."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zipper_jax.sweep.plan import MEASURES, Places, Sweep, Table, rows
from zipper_jax.sweep.plots import draw, scale_of
from zipper_jax.sweep.scores import read_judge, read_results
from zipper_jax.sweep.statistics import LEVEL, compare, rate, spread
from zipper_jax.utils.errors import UserError

PAGE = "README.md"
_NONE = "–"


def command_of(file: str | Path, size: str) -> str:
    """The command line, with ``{}`` for the action."""
    return f"zipper sweep {{}} {file} --size {size} --out OUT"


def write_report(sweep: Sweep, places: Places, out: Path, command: str) -> Path:
    """Write ``out/README.md``, its figures, and copies of ``results.jsonl`` and ``judge.json``.

    Args:
        sweep: The sweep.
        places: Its folders.
        out: Output folder.
        command: The command line shown on the page, with ``{}`` for prepare, run, score or report.

    Returns:
        The page's path.

    Raises:
        UserError: Nothing has been scored.
    """
    results = read_results(places.results)
    if not results:
        raise UserError(f"{str(places.results)!r} has no line: run `zipper sweep score` first")
    lines: dict[str, list[dict[str, Any]]] = {}
    for line in results:
        lines.setdefault(line["arm"], []).append(line)
    out.mkdir(parents=True, exist_ok=True)
    parts = [f"# {sweep.name}", sweep.about, _made_by(sweep, lines, command), _claims(sweep, lines), _judge(places)]
    parts += [_table(table, lines) for table in sweep.tables]
    parts += [_perplexities(sweep, lines), _costs(sweep, lines), "## Pictures"]
    for figure in sweep.figures:
        if draw(figure, lines, out / f"{figure.name}.png"):
            parts.append(f"![{figure.title}]({figure.name}.png)")
    parts.append(_arms(sweep))
    if not out.samefile(places.root):  # a page within the sweep's folder has them already
        for name in ("results.jsonl", "judge.json"):
            shutil.copy(places.root / name, out / name)
    page = out / PAGE
    page.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return page


def _made_by(sweep: Sweep, lines: Mapping[str, Sequence[Any]], command: str) -> str:
    wanted = [row for row in rows(sweep) if row.arm.scored != "no"]
    done = sum(len(found) for found in lines.values())
    actions = "\n".join(command.format(action) for action in ("prepare", "run", "score"))
    seeds = ", ".join(map(str, sweep.seeds))
    return (
        f"{done} of {len(wanted)} rows are scored (seeds {seeds}; learning rates: seed 0). Made by\n\n"
        f"```bash\n{actions}\n{command.format('report')} --to THIS_FOLDER\n"
        f"{command.format('run')} --only zipper --seeds 1   # any single row\n```\n\n"
        "`results.jsonl` has every error of every sentence. Means over seeds ± their standard deviation. Test "
        "sentences are in no fit and in no pretraining."
    )


def _claims(sweep: Sweep, lines: Mapping[str, Sequence[Any]]) -> str:
    if not sweep.claims:
        return ""
    text = [
        "## Claims",
        "",
        "| claim | source | measure | a | b | a | b | n | p | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for claim in sweep.claims:
        found = compare(claim, lines.get(claim.a, ()), lines.get(claim.b, ()))
        scale = scale_of(claim.measure)
        digits = 1 if scale == 100 else 3
        low, high = (f"{x * scale:+.{digits}f}" for x in found.interval)
        relation = f"|a − b| ≤ {claim.margin * scale:g}" if claim.relation == "similar" else "a < b"
        outcome = [_NONE, _NONE, "0", _NONE, "not run"]
        if found.verdict != "not run":
            rates = (f"{x * scale:.{digits}f}" for x in (found.a, found.b))
            n = f"{found.sentences} × {found.seeds}"
            outcome = [*rates, n, _p(found.p), f"**{found.verdict}** ({low} to {high})"]
        measure = f"{MEASURES[claim.measure]}: {relation.replace('|', '&#124;')}"
        text.append(f"| {' | '.join([claim.text, claim.source, measure, claim.a, claim.b, *outcome])} |")
    text += [
        "",
        "n: sentences × seeds. p: Wilcoxon signed-rank, two-sided, on errors per sentence averaged over seeds; a "
        f"claim of an order is decided when it is below {LEVEL} and the 95 % interval of a − b (in brackets; Student's "
        "over seeds and the normal one over sentences, added in squares) excludes 0 the same way; one of likeness "
        "holds when the interval lies within the margin. One seed decides nothing.",
    ]
    return "\n".join(text)


def _judge(places: Places) -> str:
    found = read_judge(places)
    heads = {"raw_audio": "raw audio", "gold_units": "gold units", "reversed": "reversed audio", "noise": "noise"}
    rates = " | ".join(f"{100 * rate(found.errors[name]):.1f}" for name in heads)
    return (
        f"## The judge\n\nWER in percent of {found.judge} on {found.sentences} test sentences.\n\n"
        f"| {' | '.join(heads.values())} |\n|{'---|' * len(heads)}\n| {rates} |"
    )


def _table(table: Table, lines: Mapping[str, Sequence[Any]]) -> str:
    shown = [line for arm in table.arms for line in lines.get(arm, ())]
    known = [
        m for m in table.measures if any(m in {**line["measures"], **line.get("not_possible", {})} for line in shown)
    ]
    reasons: dict[str, None] = {}
    text = [
        f"## {table.title}",
        "",
        *([table.note, ""] if table.note else []),
        f"| arm | {' | '.join(MEASURES[m] for m in known)} | seeds |",
        f"|---|{'---|' * len(known)}---|",
    ]
    for arm in table.arms:
        cells = []
        for m in known:
            why_not = [line["not_possible"][m] for line in lines.get(arm, ()) if m in line.get("not_possible", {})]
            reasons |= dict.fromkeys(f"{MEASURES[m]}: {why}" for why in why_not)
            cells.append("not possible" if why_not else _cell(*spread(lines.get(arm, ()), m)[:2], scale_of(m)))
        text.append(f"| {arm} | {' | '.join(cells)} | {len(lines.get(arm, ()))} |")
    return "\n".join([*text, *(["", "; ".join(reasons) + "."] if reasons else [])])


def _cell(mean: float, deviation: float, scale: float) -> str:
    if math.isnan(mean):
        return _NONE
    digits = 1 if scale == 100 else 3
    more = "" if math.isnan(deviation) else f" ± {deviation * scale:.{digits}f}"
    return f"{mean * scale:.{digits}f}{more}"


def _perplexities(sweep: Sweep, lines: Mapping[str, Sequence[Any]]) -> str:
    """Perplexity before and after fusion, per modality and path."""
    arms = [arm.name for arm in sweep.arms if any("perplexity" in line for line in lines.get(arm.name, ()))]
    if not arms:
        return ""
    text = [
        "## What each tower knew (perplexity of one modality alone)",
        "",
        "| arm | modality, path | before | after | change |",
        "|---|---|---|---|---|",
    ]
    for arm in arms:
        found = [line["perplexity"] for line in lines[arm] if "perplexity" in line]
        for name in sorted({key.rsplit("_", 1)[0] for p in found for key in p}):
            measured = [p for p in found if f"{name}_after" in p]
            before, after = ([p[f"{name}_{when}"] for p in measured] for when in ("before", "after"))
            change = [b / a - 1 for a, b in zip(before, after, strict=True)]
            text.append(
                f"| {arm} | {name.replace('_', ', ')} | {_mean(before)} | {_mean(after)} "
                f"| {100 * sum(change) / len(change):+.1f} % |"
            )
    return "\n".join(text)


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}"


def _costs(sweep: Sweep, lines: Mapping[str, Sequence[Any]]) -> str:
    text = [
        "## Cost of training",
        "",
        "| arm | steps | rows a step | TFLOP | TFLOP before it | trained, thousands | frozen, thousands |"
        + " seconds of steps |" * sweep.times,
        "|---|---|---|---|---|---|---|" + "---|" * sweep.times,
    ]
    for arm in sweep.arms:
        rows = list(lines.get(arm.name, ()))
        for line in rows[:1]:
            text.append(
                f"| {arm.name} | {line['steps']:,} | {line['rows_per_step']} | {line['flops'] / 1e12:.2f} "
                f"| {line['flops_before'] / 1e12:.2f} | {line['trained'] / 1e3:,.0f} | {line['frozen'] / 1e3:,.0f} |"
            )
            if sweep.times:
                seconds = [row["goodput"]["seconds"]["steps"] for row in rows]
                text[-1] += f" {sum(seconds) / len(seconds):,.0f} |"
    return "\n".join(text)


def _arms(sweep: Sweep) -> str:
    return "\n".join(["## Arms", "", *(f"- `{arm.name}`: {arm.about}" for arm in sweep.arms)])


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}"
