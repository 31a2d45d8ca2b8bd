"""Which of two alternatives is likelier to a model: sWUGGY, sBLIMP, tStoryCloze, SALMon and what has their form.

A line of the file is one pair; what both alternatives have in common may stand in ``prompt``:

    {"good": "the cat sleeps", "bad": "the cat sleep"}
    {"prompt": [["text", "it rained"]], "good": [["speech", [4, 9]]], "bad": [["speech", "b.wav"]], "group": "weather"}

Spans are [modality, content]: a sentence for text, unit numbers or the path of a recording for speech; a bare string is
text. Scored are the content and end tokens of the alternatives, on the fused path.

Controls: chance (a half; equal likelihoods count as half), the alternatives with their tokens in random order (lengths
and frequent tokens alone decide then), and another pair's prompt.

Axis letters: B rows, T positions.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from jaxtyping import Float

from zipper_jax.evaluation.controls import Figure, partners
from zipper_jax.evaluation.outputs import require_same_input
from zipper_jax.inference.model import Model
from zipper_jax.metrics.normalisers import NONE
from zipper_jax.models import zipper
from zipper_jax.models.config import ZipperConfig
from zipper_jax.sequences import Example, Span, rows_to_towers
from zipper_jax.tasks import TEXT
from zipper_jax.utils import user_json
from zipper_jax.utils.distributed import is_first, share
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.files import write_json
from zipper_jax.utils.progress import progress

FILE = "pairs.json"
_FIX = 'give {"good": [[modality, content], ...], "bad": [...]}, and perhaps "prompt" and "group"'
_SHORTEST_ROW = 64  # rows are padded to a power of two, so that few programs are compiled

_Spans = str | list[tuple[user_json.Name, str | list[user_json.Natural]]]


class _Line(msgspec.Struct):
    good: _Spans
    bad: _Spans
    prompt: _Spans = msgspec.field(default_factory=list)
    group: str = ""


class Pair(NamedTuple):
    """Token ids by span of the prompt and of the two alternatives, and the group that the pair belongs to."""

    prompt: list[tuple[str, np.ndarray]]
    good: list[tuple[str, np.ndarray]]
    bad: list[tuple[str, np.ndarray]]
    group: str


class Score(NamedTuple):
    """Log-likelihood of an alternative in nats, and its number of predicted tokens."""

    total: float
    tokens: int


def read_pairs(path: Path, model: Model) -> list[Pair]:
    """Read and encode a file of pairs.

    Raises:
        UserError: A line is not as above, a modality is unknown, audio cannot be used, or there is no line.
    """
    if not path.is_file():
        raise UserError(f"--pairs = {path}: there is no such file")
    found = []
    for place, line in user_json.read_lines(path, _FIX):
        pair = user_json.convert(line, _Line, place, _FIX, known=_Line.__struct_fields__)
        try:
            prompt, good, bad = (_encode(spans, path.parent, model) for spans in (pair.prompt, pair.good, pair.bad))
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        if not good or not bad:
            raise UserError(f"{place}: an alternative has no spans; {_FIX}")
        found.append(Pair(prompt, good, bad, pair.group))
    if not found:
        raise UserError(f"--pairs = {path}: there is no pair in it; {_FIX}")
    return found


def _encode(spans: Any, folder: Path, model: Model) -> list[tuple[str, np.ndarray]]:
    found = []
    for modality, content in [(TEXT, spans)] if isinstance(spans, str) else spans:
        model.require(modality)
        kind = model.task_set.modalities.get(modality)
        if isinstance(content, str) and kind is not None and kind.vocabulary == "units":
            content = model.units(folder / content, modality=modality)
        found.append((modality, model.encode(modality, content)))
    return found


def evaluate_pairs(
    model: Model, pairs: Sequence[Pair], out: Path, batch_size: int = 32, seed: int = 0
) -> dict[str, Any]:
    """Score all pairs and their controls; write ``out/pairs.json`` and return it.

    In a group every process calls it; the work is shared, and the first process writes.

    Accuracies are by the sum of the tokens' log-probabilities, and by their mean ("per token").
    """
    if batch_size < 1:
        raise UserError(f"--batch_size = {batch_size}: give at least 1")
    contents = (tokens for pair in pairs for spans in pair[:3] for _, tokens in spans)
    require_same_input(model, contents, [batch_size, seed])
    rng = np.random.default_rng(seed)
    shuffled = [pair._replace(good=_shuffle(pair.good, rng), bad=_shuffle(pair.bad, rng)) for pair in pairs]
    scores = _scores(model, pairs, batch_size, "pairs")
    sets: dict[str, list[tuple[Score, Score]] | str] = {
        "pairs": scores,
        "tokens in random order": _scores(model, shuffled, batch_size, "tokens in random order"),
        "another pair's prompt": _exchanged_prompts(model, pairs, batch_size),
    }
    results = {
        "pairs": len(pairs),
        "chance": 0.5,
        "accuracy": {name: _accuracy(one, False) for name, one in sets.items()},
        "accuracy_per_token": {name: _accuracy(one, True) for name, one in sets.items()},
        "groups": _by_group(pairs, scores),
        "scores": [{"good": good._asdict(), "bad": bad._asdict()} for good, bad in scores],
    }
    if is_first():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / FILE, results)
    return results


def _exchanged_prompts(model: Model, pairs: Sequence[Pair], batch_size: int) -> list[tuple[Score, Score]] | str:
    """The scores with another pair's prompt; or "not possible: ..."."""
    if not any(pair.prompt for pair in pairs):
        return "not possible: no pair has a prompt"
    others = partners([_key(pair.prompt) for pair in pairs], NONE)
    if isinstance(others, str):
        return others
    exchanged = [pair._replace(prompt=pairs[i].prompt) for pair, i in zip(pairs, others, strict=True)]
    try:
        return _scores(model, exchanged, batch_size, "another pair's prompt")
    except UserError as error:  # it is longer than the model's positions
        return f"not possible: {error}"


def _by_group(pairs: Sequence[Pair], scores: list[tuple[Score, Score]]) -> dict[str, dict[str, Any]]:
    found: dict[str, list[tuple[Score, Score]]] = {}
    for pair, score in zip(pairs, scores, strict=True):
        found.setdefault(pair.group, []).append(score)
    return {
        name: {"pairs": len(own), "accuracy": _accuracy(own, False), "accuracy_per_token": _accuracy(own, True)}
        for name, own in found.items()
        if name
    }


def _accuracy(scores: Sequence[tuple[Score, Score]] | str, per_token: bool) -> Figure:
    if isinstance(scores, str):  # why there are none
        return scores
    by = [[s.total / (s.tokens if per_token else 1) for s in pair] for pair in scores]
    return float(np.mean([(good > bad) + 0.5 * (good == bad) for good, bad in by]))


def _shuffle(spans: list[tuple[str, np.ndarray]], rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    return [(modality, rng.permutation(tokens)) for modality, tokens in spans]


def _key(spans: list[tuple[str, np.ndarray]]) -> str:
    """What equal prompts share."""
    return str([(modality, tokens.tolist()) for modality, tokens in spans])


def _scores(model: Model, pairs: Sequence[Pair], batch_size: int, what: str) -> list[tuple[Score, Score]]:
    """Score both alternatives of each pair; rows of similar length are computed together."""
    examples = [_example(pair.prompt, own) for pair in pairs for own in (pair.good, pair.bad)]
    towers = sorted({model.layout[span.modality].tower for example in examples for span in example})
    lengths = [{tower: _length(model, example, tower) for tower in towers} for example in examples]
    order = sorted(range(len(examples)), key=lambda i: [lengths[i][tower] for tower in towers])
    step = jax.jit(partial(_sums, model.config))

    def score(start: int) -> list[list[Any]]:
        chosen = order[start : start + batch_size]
        rows: list[list[Example]] = [[examples[i]] for i in chosen] + [[] for _ in range(batch_size - len(chosen))]
        longest = {tower: max(lengths[i][tower] for i in chosen) for tower in towers}
        sums, counts = jax.device_get(step(model.params, rows_to_towers(rows, model.layout, longest)))
        return [[-float(s), int(n)] for _, s, n in zip(chosen, sums, counts, strict=False)]

    found: dict[int, Score] = {}
    bar = progress(total=len(examples) * is_first(), what=f"scoring {what}", unit="alternatives")
    for start, scores in share(range(0, len(order), batch_size), score):
        found |= {i: Score(*one) for i, one in zip(order[start : start + batch_size], scores, strict=True)}
        bar.update(len(scores))
    bar.close()
    return [(found[2 * i], found[2 * i + 1]) for i in range(len(pairs))]


def _example(prompt: list[tuple[str, np.ndarray]], own: list[tuple[str, np.ndarray]]) -> Example:
    return (*(Span(m, tokens, 0.0) for m, tokens in prompt), *(Span(m, tokens, 1.0) for m, tokens in own))


def _length(model: Model, example: Example, tower: str) -> int:
    """The row of a tower that holds the example, a power of two. Raises UserError beyond learned positions."""
    slots = sum(len(span.tokens) + 2 for span in example if model.layout[span.modality].tower == tower)
    model.config.towers[tower].check_length(slots, "tokens of a pair")
    return max(_SHORTEST_ROW, 1 << max(slots - 1, 0).bit_length())


def _sums(config: ZipperConfig, params: Any, towers: Any) -> tuple[Float[Any, " B"], Float[Any, " B"]]:
    losses = zipper.bind_params(config, params).losses(towers)
    nll = sum(jnp.sum(losses[tower].nll, axis=1) for tower in towers)
    return nll, sum(jnp.sum(batch.weights, axis=1) for batch in towers.values())
