"""Error rates of speech to text on examples, with the controls that expose a model which ignores its input."""

from collections.abc import Mapping, Sequence
from typing import Any

from zipper_jax.evaluation.controls import Figure
from zipper_jax.evaluation.decoding import Decoded, Decoding, decode_set, transcribe_with_controls
from zipper_jax.inference.model import Model
from zipper_jax.metrics.error_rates import wer
from zipper_jax.metrics.normalisers import Policy
from zipper_jax.tasks import SPEECH, TEXT

Examples = Sequence[Mapping[str, Any]]
"""Examples of a prepared folder: ``text``, ``units`` and more."""


def speech_to_text(
    model: Model, test: Examples, other: Examples, how: Decoding, what: str, policy: Policy
) -> tuple[dict[str, Figure], list[str]]:
    """Transcribe ``test`` and its controls, and ``other``: a harder split, may be empty.

    Returns:
        Error rates by name ("not possible: ..." in place of a control's rate where the texts do not allow it), and the
        hypotheses on ``test``.
    """
    vocabularies = model.vocabularies

    def read(decoded: Sequence[Decoded]) -> list[str]:
        return [vocabularies[TEXT].decode(one.tokens) for one in decoded]

    def units(examples: Examples) -> list[Any]:
        return [vocabularies[SPEECH].encode(e["units"]) for e in examples]

    texts = [e["text"] for e in test]
    found = transcribe_with_controls(model, units(test), texts, how, what, policy)
    rates: dict[str, Figure] = {}
    hypotheses: list[str] = []
    for name, decoded in found.items():
        if isinstance(decoded, str):
            rates[f"asr_wer_{name}"] = decoded
            continue
        rates[f"asr_wer_{name}"] = wer(texts, read(decoded), policy)
        hypotheses = read(decoded) if name == "test" else hypotheses
    if other:
        decoded = decode_set(model, SPEECH, units(other), TEXT, how, f"{what}, test_other")
        rates["asr_wer_test_other"] = wer([e["text"] for e in other], read(decoded), policy)
    return rates, hypotheses
