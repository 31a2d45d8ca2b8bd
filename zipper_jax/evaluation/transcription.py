"""Speech to text on examples, with the controls that expose a model which ignores its input."""

from collections.abc import Mapping, Sequence
from typing import Any

from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.evaluation import controls
from zipper_jax.evaluation.controls import Figure
from zipper_jax.inference.model import Model
from zipper_jax.metrics.error_rates import wer
from zipper_jax.tasks import SPEECH, TEXT

Examples = Sequence[Mapping[str, Any]]
"""Examples of a prepared folder: ``text``, ``units`` and more."""


def speech_to_text(
    model: Model, test: Examples, other: Examples, max_new_tokens: Mapping[str, int], beams: int = 1
) -> tuple[dict[str, Figure], list[str]]:
    """Transcribe ``test`` and its controls, and ``other``: a harder split, may be empty.

    Returns:
        Error rates by name ("not possible: ..." in place of a control's rate where the texts do not allow it), and the
        hypotheses on ``test``.
    """
    sampling = SamplingConfig(beams=beams)

    def transcribe(model: Model, units: Sequence[Any]) -> list[str]:
        rows = model.generate([[(SPEECH, u)] for u in units], (TEXT,), max_new_tokens=max_new_tokens, sampling=sampling)
        return [row[0].content for row in rows]

    units, texts = [e["units"] for e in test], [e["text"] for e in test]
    hypotheses = transcribe(model, units)
    rates: dict[str, Figure] = {"asr_wer_test": wer(texts, hypotheses)}
    for name, control in controls.of_transcription(model, units, texts).items():
        rates[f"asr_wer_{name}"] = control if isinstance(control, str) else wer(texts, transcribe(*control))
    if other:
        rates["asr_wer_test_other"] = wer([e["text"] for e in other], transcribe(model, [e["units"] for e in other]))
    return rates, hypotheses
