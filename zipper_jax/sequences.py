"""The linear sequence of an example and the TowerBatches derived from it.

Training, evaluation, scoring and decoding all use these functions, so decoding matches training. NumPy only.

Rules (see docs/architecture.md):
  * a span is fed as ``begin, content..., end``; each token predicts the next token of its own span;
  * a begin token is never a target, an end token's own prediction has weight 0;
  * global positions count along the example over all its spans, local positions along the example in one tower;
  * a segment id is the example's number in the row (from 1), the same in every tower; padding is segment 0.

Axis letters: B rows of a batch, T positions of a row in one tower.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from zipper_jax.tasks import TaskConfig
from zipper_jax.utils.errors import UserError


class Span(NamedTuple):
    """A run of tokens of one modality.

    Attributes:
        modality: Its name, a key of the Layout.
        tokens: Content token ids of the modality's own vocabulary, without begin and end, int32 [n]; n may be 0.
        weight: Loss weight of each prediction inside the span: 1 for a target, 0 for a condition.
    """

    modality: str
    tokens: np.ndarray
    weight: float


Example = tuple[Span, ...]
"""The linear sequence of one example: its spans in order of time."""


class TowerBatch(NamedTuple):
    """The input and targets of one tower, NumPy or JAX arrays; all fields of padding are 0.

    Global positions increase from token to token of an example (a segment of a row): no two of them are equal.

    ``next_modality`` is the target of the choice that a model may make at an end token (`models.choice`): the number of
    the next span's modality in the sorted order of the layout, from 1; one more than there are modalities where the
    example ends; 0 at all other tokens. None: not known.
    """

    tokens: Int32[Any, "B T"]
    targets: Int32[Any, "B T"]
    weights: Float32[Any, "B T"]
    local_positions: Int32[Any, "B T"]
    global_positions: Int32[Any, "B T"]
    segment_ids: Int32[Any, "B T"]
    next_modality: Int32[Any, "B T"] | None = None


@dataclass(frozen=True)
class Place:
    """A modality's slice of a tower's vocabulary: token id i of the modality is row ``offset + i`` of the embedding.

    Attributes:
        tower: The tower's name.
        offset: First row.
        begin, end: The begin and end token, as ids of the modality.
        size: Number of tokens.
    """

    tower: str
    offset: int
    begin: int
    end: int
    size: int


Layout = Mapping[str, Place]
"""Modality -> Place. Two modalities may share a tower (the Single Decoder)."""


def make_layout(modalities: Mapping[str, Any], vocabularies: Mapping[str, Any], where: str = "") -> dict[str, Place]:
    """The Layout of a model.

    Args:
        modalities: Modality -> its ModalityConfig.
        vocabularies: Modality -> object with ``begin_id``, ``end_id`` and ``size``.
        where: The folder that they come from, for messages.

    Raises:
        UserError: A modality has no vocabulary, or one of another size than the model's.
    """
    layout, place = {}, f"{where!r}: " if where else ""
    for name, modality in modalities.items():
        if name not in vocabularies:
            raise UserError(f"{place}modality {name!r} has no vocabulary; known: {sorted(vocabularies)}")
        vocabulary = vocabularies[name]
        if vocabulary.size != modality.size:
            raise UserError(
                f"{place}modality {name!r}: the model has a vocabulary of {modality.size} tokens, the given vocabulary "
                f"has {vocabulary.size}; use the vocabulary stored with the model"
            )
        layout[name] = Place(modality.tower, modality.offset, vocabulary.begin_id, vocabulary.end_id, vocabulary.size)
    return layout


def fill_template(task: TaskConfig, contents: Mapping[str, np.ndarray]) -> Example:
    """The linear sequence of ``task``, from modality -> content token ids."""
    return tuple(Span(m, np.asarray(contents[m], np.int32), weight) for m, weight in task.spans)


def tower_lengths(example: Example, layout: Layout) -> dict[str, int]:
    """Number of tokens of ``example`` in each tower, begin and end tokens included; 0 in towers without a span."""
    lengths = {place.tower: 0 for place in layout.values()}
    for span in example:
        lengths[layout[span.modality].tower] += len(span.tokens) + 2
    return lengths


def rows_to_towers(
    rows: Sequence[Sequence[Example]], layout: Layout, lengths: Mapping[str, int]
) -> dict[str, TowerBatch]:
    """Convert rows of examples to one TowerBatch per tower, [len(rows), lengths[tower]].

    Args:
        rows: Each row is a list of examples, packed one after another in every tower.
        layout: Modality -> Place.
        lengths: Tower -> row length T; towers of the layout without tokens may be left out.

    Raises:
        UserError: A row is longer than T (examples are never truncated), or a token is outside its vocabulary.
    """
    pieces: dict[str, list[_Piece]] = {tower: [] for tower in lengths}
    for b, row in enumerate(rows):
        used = dict.fromkeys(lengths, 0)
        for segment, example in enumerate(row, start=1):
            _place_example(pieces, b, segment, example, layout, used, lengths)
    numbers = {modality: number for number, modality in enumerate(sorted(layout), start=1)}
    return {tower: _fill(pieces[tower], len(rows), length, numbers) for tower, length in lengths.items()}


def own_tokens(batch: TowerBatch, vocab_size: int) -> TowerBatch:
    """``batch`` without added tokens (ids from ``vocab_size`` on), for the unimodal path.

    The remaining tokens move up; local positions count from each example's first one; added tokens are no targets.
    """
    batch = batch._replace(next_modality=None)  # nothing is chosen on the unimodal path
    if int(np.max(batch.tokens, initial=0)) < vocab_size and int(np.max(batch.targets, initial=0)) < vocab_size:
        return batch
    kept = TowerBatch(*(np.zeros_like(field) for field in batch[:-1]))
    for b, (tokens, segments) in enumerate(zip(batch.tokens, batch.segment_ids, strict=True)):
        slots = np.flatnonzero((tokens < vocab_size) & (segments > 0))
        for field, source in zip(kept[:-1], batch[:-1], strict=True):
            field[b, : len(slots)] = source[b, slots]
        of_example = segments[slots]
        first = np.searchsorted(of_example, of_example, side="left")
        kept.local_positions[b, : len(slots)] = np.arange(len(slots)) - first
    target_added = kept.targets >= vocab_size
    kept.weights[target_added] = 0
    kept.targets[target_added] = 0
    return kept


class _Piece(NamedTuple):
    """A span in its tower: its place in the batch, what its positions count from, and the modality that follows it."""

    span: Span
    following: str | None
    place: Place
    row: int
    slot: int
    positions: int
    local: int
    position: int
    segment: int


def _place_example(
    pieces: Mapping[str, list[_Piece]], b: int, segment: int, example: Example, layout: Layout, used: dict[str, int],
    lengths: Mapping[str, int],
) -> None:  # fmt: skip
    """Append the example's spans, in row ``b`` from slot ``used[tower]`` on, and advance ``used``."""
    first = dict(used)
    position = 0
    following = [*(span.modality for span in example[1:]), None]
    for span, then in zip(example, following, strict=True):
        place = layout[span.modality]
        tower, n = place.tower, len(span.tokens) + 2
        start = used[tower]
        if start + n > lengths[tower]:
            raise UserError(
                f"row {b} needs {start + n} positions in tower {tower!r} but TASK_FEATURE_LENGTHS gives it "
                f"{lengths[tower]}; increase the length or prepare the rows again"
            )
        pieces[tower].append(_Piece(span, then, place, b, start, n, start - first[tower], position, segment))
        used[tower] += n
        position += n


def _fill(pieces: Sequence[_Piece], rows: int, length: int, numbers: Mapping[str, int]) -> TowerBatch:
    """The batch of one tower, [rows, length]: all spans at once, since rows have many short ones."""
    ints, weights = np.zeros((6, rows, length), np.int32), np.zeros((rows, length), np.float32)
    batch = TowerBatch(ints[0], ints[1], weights, *ints[2:])
    assert batch.next_modality is not None
    if not pieces:
        return batch
    sizes = np.array([piece.positions for piece in pieces])

    def of_each(values: Iterable[Any], dtype: Any = np.int64) -> np.ndarray:
        return np.repeat(np.fromiter(values, dtype, len(pieces)), sizes)

    marks = {place: (np.array([place.begin]), np.array([place.end])) for place in {piece.place for piece in pieces}}
    contents: list[np.ndarray] = []
    for piece in pieces:
        begin, end = marks[piece.place]
        contents += begin, np.asarray(piece.span.tokens, np.int64), end
    tokens = np.concatenate(contents)
    within = np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    outside = np.flatnonzero((tokens < 0) | (tokens >= of_each(piece.place.size for piece in pieces)))
    if len(outside):
        piece = pieces[int(np.searchsorted(np.cumsum(sizes), outside[0], side="right"))]
        raise UserError(
            f"{piece.span.modality} token {int(tokens[outside[0]])} is outside its vocabulary of {piece.place.size} "
            "tokens; was the data prepared with another vocabulary?"
        )
    tokens += of_each(piece.place.offset for piece in pieces)
    slots = of_each(piece.row * length + piece.slot for piece in pieces) + within
    batch.tokens.flat[slots] = tokens
    batch.local_positions.flat[slots] = of_each(piece.local for piece in pieces) + within
    batch.global_positions.flat[slots] = of_each(piece.position for piece in pieces) + within
    batch.segment_ids.flat[slots] = of_each(piece.segment for piece in pieces)
    # A span's end token has no target among the tokens; what follows it is the choice's.
    ends = slots[np.cumsum(sizes) - 1]
    after = len(numbers) + 1
    batch.next_modality.flat[ends] = [numbers[p.following] if p.following else after for p in pieces]
    followed = np.flatnonzero(within + 1 < np.repeat(sizes, sizes))
    batch.targets.flat[slots[followed]] = tokens[followed + 1]
    batch.weights.flat[slots[followed]] = of_each((piece.span.weight for piece in pieces), np.float32)[followed]
    return batch
