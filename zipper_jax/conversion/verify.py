"""Compares the logits of a tower with those of a reference model on the same tokens.

The logits of a Hugging Face folder are computed by transformers, so the comparison covers the arithmetic as well as the
weights.

Axes: B rows, T tokens, V vocab_size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int32

from zipper_jax.conversion import hub
from zipper_jax.inference.model import Model, load
from zipper_jax.models import zipper
from zipper_jax.sequences import TowerBatch
from zipper_jax.utils.errors import UserError

Logits = Callable[[Int32[np.ndarray, "B T"]], Float[np.ndarray, "B T V"]]


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        difference: Largest |Δ logit|.
        scale: Largest |logit| of the reference.
        agreement: Share of positions with the same most likely next token.
        perplexities: Perplexities of the tower and of the reference.
        tokens: Number of predicted tokens.
    """

    difference: float
    scale: float
    agreement: float
    perplexities: tuple[float, float]
    tokens: int

    def lines(self) -> list[str]:
        ours, theirs = self.perplexities
        return [
            f"tokens           {self.tokens:,}",
            f"max |Δ logit|    {self.difference:.3g}, {self.relative:.2g} of the largest logit {self.scale:.3g}",
            f"top-1 agreement  {self.agreement:.2%}",
            f"perplexity       {ours:.5g} against {theirs:.5g} ({ours / theirs - 1:+.2%})",
        ]

    @property
    def relative(self) -> float:
        return self.difference / self.scale


def compare(ours: Logits, theirs: Logits, rows: Int32[np.ndarray, "B T"]) -> Comparison:
    """Compare logits row by row, on the same tokens from position 0."""
    largest = scale = 0.0
    same = tokens = 0
    nats = np.zeros(2)
    for row in rows:
        a, b = (np.asarray(f(row[None])[0], np.float64) for f in (ours, theirs))
        largest, scale = max(largest, float(np.abs(a - b).max())), max(scale, float(np.abs(b).max()))
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        tokens += len(row)
        for i, logits in enumerate((a, b)):
            shifted = logits[:-1] - logits[:-1].max(-1, keepdims=True)
            chosen = np.take_along_axis(shifted, row[1:, None].astype(np.int64), -1)[:, 0]
            nats[i] += float((np.log(np.exp(shifted).sum(-1)) - chosen).sum())
    ours_nats, theirs_nats = np.exp(nats / (tokens - len(rows)))
    return Comparison(largest, scale, same / tokens, (float(ours_nats), float(theirs_nats)), tokens - len(rows))


def our_logits(model: Model, tower: str) -> Logits:
    """Logits of one tower on the unimodal path."""
    run = jax.jit(lambda params, batch: zipper.bind_params(model.config, params).towers[tower](batch))

    def logits(tokens: Int32[np.ndarray, "B T"]) -> Float[np.ndarray, "B T V"]:
        positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        ones = np.ones(tokens.shape, np.int32)
        batch = TowerBatch(tokens, tokens, ones.astype(np.float32), positions, positions, ones)
        return np.asarray(run(model.params, batch))

    return logits


def reference(path: str | Path, tower: str) -> Logits:
    """Logits of a reference: by transformers for a Hugging Face folder or hub id, by us for a run or model folder.

    Raises:
        UserError: ``path`` is none of these, or transformers or torch is not installed.
    """
    if (Path(path) / "vocabularies").is_dir():
        other = load(path)
        name = tower if tower in other.config.towers else next(iter(other.config.towers))
        return our_logits(other, name)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"--against {str(path)!r} is a Hugging Face model, which needs transformers, and {error.name} is not "
            "installed: pip install --editable '.[verify]' in the checkout; or compare with a run or model folder"
        ) from error
    folder = hub.model_folder(str(path))
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        )
    except (OSError, ValueError) as error:  # no config.json, no weights, a model_type that it does not know
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--against {str(path)!r}: transformers cannot read it ({reason}): give a Hugging Face folder or hub id, "
            "or a run or model folder"
        ) from error
    model.eval()

    def logits(tokens: Int32[np.ndarray, "B T"]) -> Float[np.ndarray, "B T V"]:
        with torch.no_grad():
            return model(torch.from_numpy(tokens.astype(np.int64))).logits.float().numpy()

    return logits


def rows_of_text(model: Model, tower: str, text: str | None, length: int, most: int) -> Int32[np.ndarray, "B T"]:
    """Rows of tokens from a text file, or random ones.

    Args:
        model: The model.
        tower: Name of the tower.
        text: A UTF-8 text file, cut into consecutive rows; None: random tokens.
        length: Tokens per row, at most the tower's number of learned positions.
        most: Maximum number of rows.

    Raises:
        UserError: The text cannot be read or is too short.
    """
    config = model.config.towers[tower]
    if config.positions == "learned":
        length = min(length, config.max_positions or length)
    if text is None:
        return np.random.default_rng(0).integers(0, config.vocab_size, (min(most, 4), length)).astype(np.int32)
    modality = next(m for m, place in model.layout.items() if place.tower == tower)
    try:
        content = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--text {text!r} cannot be read as UTF-8 text: {error}") from error
    tokens = np.asarray(model.vocabularies[modality].encode(content), np.int32)
    rows = min(most, len(tokens) // length)
    if rows == 0:
        length, rows = len(tokens), 1
    if length < 2:
        raise UserError(f"--text {text!r} has {len(tokens)} tokens: give a text of some sentences")
    return tokens[: rows * length].reshape(rows, length)
