"""The loop that decodes a set of examples: bounded memory, a progress bar, outputs from which a killed run resumes.

In a group every process decodes its share of the batches, with the whole model, and has all outputs afterwards. Batches
and what is sampled are functions of the examples, so the outputs are those of one process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from zipper_jax import __version__
from zipper_jax.decoding.generate import BATCH_SIZE, Batch
from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.evaluation.controls import of_transcription
from zipper_jax.evaluation.outputs import Outputs, digest, require_same_input
from zipper_jax.inference.model import Model
from zipper_jax.metrics.normalisers import DEFAULT, Policy
from zipper_jax.tasks import SPEECH, TEXT
from zipper_jax.utils.configs import to_dict
from zipper_jax.utils.distributed import is_first, share


class Decoded(NamedTuple):
    """The span that one prompt was continued with: token ids, and whether max_new_tokens ended it."""

    tokens: list[int]
    truncated: bool


@dataclass(frozen=True)
class Decoding:
    """How sets are decoded.

    Attributes:
        max_new_tokens: Modality -> most content tokens.
        sampling: How tokens are chosen.
        batch_size: Most rows decoded together; memory grows with it, not with the set.
        outputs: Where finished outputs are.
        show: Whether a bar shows the progress.
    """

    max_new_tokens: Mapping[str, int]
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch_size: int = BATCH_SIZE
    outputs: Outputs = field(default_factory=Outputs)
    show: bool = True


def decode_set(
    model: Model, given: str, contents: Sequence[Any], output: str, how: Decoding, what: str
) -> list[Decoded]:
    """Continue each of ``contents``, token ids of modality ``given``, with a span of modality ``output``.

    Args:
        model: The model.
        given: Modality of the contents.
        contents: Token ids of each prompt; an empty one is a span without tokens.
        output: Modality that is decoded.
        how: Decoding.
        what: Name of the set, for the bar and the file of outputs.
    """
    prompts = [[(given, np.asarray(content, np.int32))] for content in contents]
    settings = [given, output, dict(how.max_new_tokens), to_dict(how.sampling), how.batch_size, __version__]
    require_same_input(model, (tokens for [(_, tokens)] in prompts), settings)
    kind = digest(model, settings, *(tokens for [(_, tokens)] in prompts))
    keys = [digest(kind, row) for row in range(len(prompts))]
    found = {row: Decoded(*value) for row, key in enumerate(keys) if (value := how.outputs.get(key)) is not None}
    bar = None
    if how.show and is_first():
        from zipper_jax.utils.progress import progress  # tqdm, which a sweep's machine may lack

        bar = progress(total=len(prompts), what=what, unit="sentences")
        bar.update(len(found))
    batches = model.token_batches(
        prompts, (output,), sampling=how.sampling, max_new_tokens=how.max_new_tokens, batch_size=how.batch_size,
        done=set(found),
    )  # fmt: skip
    for batch, spans in share(batches, _decode):
        new = {row: Decoded(*one) for row, one in zip(batch.rows, spans, strict=True) if row not in found}
        how.outputs.add({keys[row]: one for row, one in new.items()}, {"set": what})
        found |= new
        if bar is not None:
            bar.update(len(new))
    if bar is not None:
        bar.close()
    return [found[row] for row in range(len(prompts))]


def _decode(batch: Batch) -> list[list[Any]]:
    return [[span.tokens.tolist(), span.truncated] for [span] in batch.decode()]


def transcribe_with_controls(
    model: Model, units: Sequence[Any], texts: Sequence[str], how: Decoding, what: str, policy: Policy = DEFAULT
) -> dict[str, list[Decoded] | str]:
    """Transcribe ``units``, token ids of speech, and the controls of these transcripts.

    Returns:
        "test" and the names of the controls -> what was decoded, or why a control is not possible.
    """
    sets = {"test": (model, list(units)), **of_transcription(model, units, texts, policy)}
    return {
        name: one if isinstance(one, str) else decode_set(one[0], SPEECH, one[1], TEXT, how, f"{what}, {name}")
        for name, one in sets.items()
    }
