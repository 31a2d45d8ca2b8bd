"""Maps another system's tensors to our leaves and back: one `Rule` per tensor, used in both directions.

Leaves are named as under ``towers/NAME/``. Those under ``blocks/`` are stacked over layers [L, ...]; a rule describes
one layer, and its tensor's name contains ``{layer}``.

Axes: L layers, D embed_dim, N heads, H head_dim.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """One tensor and the leaves that it contains.

    Attributes:
        name: Name of the tensor, with ``{layer}``.
        leaves: One leaf, or several that are joined in one tensor.
        layout: "same": that of the leaf; "flat": a vector (biases); "linear": torch's [outputs, inputs]; "conv1d":
            GPT-2's [inputs, outputs].
        joined: How several leaves are joined: "behind": concatenated along the outputs; "by head": GPT-NeoX's
            [N, leaves, H].
        inputs: Number of leading input axes of the leaf (2 for the attention output [N, H, D]).
    """

    name: str
    leaves: tuple[str, ...]
    layout: Literal["same", "flat", "linear", "conv1d"] = "same"
    joined: Literal["behind", "by head"] = "behind"
    inputs: int = 1

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.name

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """The tensor's shape, given those of its leaves (of one layer)."""
        if self.layout == "same":
            return shapes[0]
        matrices = [self._matrix(shape) for shape in shapes]
        inputs, outputs = matrices[0][:-1], sum(matrix[-1] for matrix in matrices)
        return (outputs, *inputs) if self.layout == "linear" else (*inputs, outputs)

    def split(self, tensor: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """The leaves of one layer, from their tensor."""
        if self.layout == "same":
            return [tensor]
        matrix = tensor.T if self.layout == "linear" else tensor  # outputs are the last axis
        if self.joined == "by head":
            heads, size = shapes[0][-2:]
            by_head = matrix.reshape(*matrix.shape[:-1], heads, len(shapes), size)
            return [by_head[..., i, :].reshape(shape) for i, shape in enumerate(shapes)]
        ends = np.cumsum([self._matrix(shape)[-1] for shape in shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(matrix, ends, axis=-1), shapes, strict=True)]

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor, from the leaves of one layer: the exact inverse of `split`."""
        if self.layout == "same":
            return leaves[0]
        if self.joined == "by head":
            by_head = np.stack(leaves, axis=-2)
            matrix = by_head.reshape(*by_head.shape[:-3], -1)
        else:
            matrix = np.concatenate([leaf.reshape(self._matrix(leaf.shape)) for leaf in leaves], axis=-1)
        return np.ascontiguousarray(matrix.T) if self.layout == "linear" else matrix

    def _matrix(self, shape: Shape) -> Shape:
        """A leaf's shape as (inputs, outputs), or (outputs,) for a vector."""
        if self.layout == "flat":
            return (math.prod(shape),)
        return math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])


def of_one_layer(shape: Shape, rule: Rule) -> Shape:
    """A leaf's shape without the layer axis."""
    return shape[1:] if rule.per_layer else shape


def leaf_dtype(found: Iterable[np.dtype]) -> np.dtype:
    """The dtype of a leaf's tensors; float32 where they differ or are float64."""
    kinds = set(found)
    return kinds.pop() if len(kinds) == 1 and np.dtype(np.float64) not in kinds else np.dtype(np.float32)


def rules_for(rules: Iterable[Rule], leaves: Mapping[str, object]) -> list[Rule]:
    """Select the rules whose leaves this tower has; biases, some norms and the head are optional."""
    chosen = [rule for rule in rules if all(leaf in leaves for leaf in rule.leaves)]
    covered = {leaf for rule in chosen for leaf in rule.leaves}
    assert covered == set(leaves), sorted(set(leaves) ^ covered)
    return chosen
