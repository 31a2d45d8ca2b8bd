"""Word and character error rates through jiwer, with a named policy of normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zipper_jax.metrics.normalisers import DEFAULT, Policy
from zipper_jax.utils.errors import UserError

NORMALISER = DEFAULT.about


def wer(references: Sequence[str], hypotheses: Sequence[str], policy: Policy = DEFAULT) -> float:
    """Corpus-level word error rate as a fraction: all edits over all reference words (may exceed 1).

    Empty hypotheses count as deletions.

    Raises:
        UserError: Different numbers of references and hypotheses, no sentence at all, or an empty reference.
    """
    pairs = _checked(references, hypotheses, policy)
    import jiwer

    return float(jiwer.wer([r for r, _ in pairs], [h for _, h in pairs]))


def cer(references: Sequence[str], hypotheses: Sequence[str], policy: Policy = DEFAULT) -> float:
    """Corpus-level character error rate as a fraction, spaces included; see `wer`."""
    pairs = _checked(references, hypotheses, policy)
    import jiwer

    return float(jiwer.cer([r for r, _ in pairs], [h for _, h in pairs]))


def percent(figure: float | str | None, decimals: int = 1) -> str:
    """``6.2 %``, ``not measured``, or what stands in place of a figure: "not possible: ..."."""
    if isinstance(figure, str):
        return figure
    return "not measured" if figure is None else f"{100 * figure:.{decimals}f} %"


def per_sentence_errors(
    references: Sequence[str], hypotheses: Sequence[str], policy: Policy = DEFAULT
) -> list[dict[str, Any]]:
    """Count word errors of each sentence.

    Returns:
        Per sentence its normalised ``reference`` and ``hypothesis``, number of reference ``words``, ``substitutions``,
        ``deletions``, ``insertions``, their sum ``errors``, and ``alignment``: in order, (``equal`` | ``substitute`` |
        ``delete`` | ``insert``, words of the reference, words of the hypothesis).

    Raises:
        UserError: See `wer`.
    """
    pairs = _checked(references, hypotheses, policy)
    import jiwer

    rows = []
    for reference, hypothesis in pairs:
        edits = jiwer.process_words(reference, hypothesis)
        rows.append(
            {
                "reference": reference,
                "hypothesis": hypothesis,
                "words": len(reference.split()),
                "substitutions": edits.substitutions,
                "deletions": edits.deletions,
                "insertions": edits.insertions,
                "errors": edits.substitutions + edits.deletions + edits.insertions,
                "alignment": [
                    (
                        chunk.type,
                        edits.references[0][chunk.ref_start_idx : chunk.ref_end_idx],
                        edits.hypotheses[0][chunk.hyp_start_idx : chunk.hyp_end_idx],
                    )
                    for chunk in edits.alignments[0]
                ],
            }
        )
    return rows


def best(references: Sequence[str], samples: Sequence[Sequence[str]], policy: Policy = DEFAULT) -> list[str]:
    """Of several hypotheses per reference, ``samples[n][i]``, the one with the fewest word errors; the first of equals.

    Raises:
        UserError: See `wer`.
    """
    errors = [[row["errors"] for row in per_sentence_errors(references, sample, policy)] for sample in samples]
    chosen = (min(range(len(samples)), key=lambda n: errors[n][i]) for i in range(len(references)))
    return [samples[n][i] for i, n in enumerate(chosen)]


def _checked(references: Sequence[str], hypotheses: Sequence[str], policy: Policy) -> list[tuple[str, str]]:
    if len(references) != len(hypotheses):
        raise UserError(f"{len(references)} references but {len(hypotheses)} hypotheses: give one of each per sentence")
    if not references:
        raise UserError("no sentences to score: give at least one reference and hypothesis")
    pairs = [(policy(r), policy(h)) for r, h in zip(references, hypotheses, strict=True)]
    empty = [number for number, (reference, _) in enumerate(pairs) if not reference]
    if empty:
        raise UserError(f"reference {empty[0]} has no words: remove such sentences")
    return pairs
