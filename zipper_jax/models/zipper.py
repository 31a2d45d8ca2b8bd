"""The zipper: towers, input projections and the zips between the towers, as an ordinary Flax NNX model.

    model = Zipper(config, rngs=nnx.Rngs(0))
    logits = model({"a": batch_a, "b": batch_b})         # the fused path; tower -> [B, T, V]
    logits, cache = model(batches, cache=cache)          # the same code: prefill of any towers, and single steps
    hidden = model.hidden(batches)                       # final states, before the head
    logits = model.head("a", hidden["a"])
    losses = model.losses(batches)                       # of the batches' targets
    logits = model.towers["a"](batch_a)                  # the unimodal path: the tower as it was before fusion

Outside ``models/`` parameters are nested dicts; `bind_params` puts them into a model inside a traced function. Their
paths are those of the modules: ``towers/<name>/{embedding,blocks,final_norm,head}``, ``added_embeddings/<name>``,
``input_projections/<name>``, ``next_modality/<name>``, ``zips/<a>-<b>/into_<name>``; blocks are stacked over layers
[L, ...], zips over their members [Z, ...].

Axis letters: B rows, T positions, D embed_dim, V vocabulary, L layers, Z zips, C choices of the next modality.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from zipper_jax.models import module
from zipper_jax.models.cache import Cache
from zipper_jax.models.choice import ChoiceHead, choice_of
from zipper_jax.models.config import ProjectionConfig, ZipperConfig
from zipper_jax.models.dropout import Dropout
from zipper_jax.models.forward import Batches, Pass, State, Weights
from zipper_jax.models.fusion import Fusion, fusion_class
from zipper_jax.models.layers import Projection
from zipper_jax.models.module import Execution, Module, Params, Placer, stack, unsharded
from zipper_jax.models.schedule import read_alone, soft_tokens, zip_pairs
from zipper_jax.models.tower import AddedEmbedding, Tower
from zipper_jax.ops.losses import Losses
from zipper_jax.utils.trees import unflatten


class Zipper(Module):
    """Towers and the zips between them.

    Args:
        config: The model.
        rngs: ``nnx.Rngs(s)`` gives the initial parameters of a run with seed s, bit for bit.
        placer: Shards parameters and activations where they are used.
    """

    def __init__(self, config: ZipperConfig, *, rngs: nnx.Rngs, placer: Placer = unsharded):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        how = (dtype, config.scan, config.remat, placer)
        runs = {name: Execution(*how, tower=name, attention=config.attention) for name in config.towers}
        self.towers = nnx.data({n: Tower(t, rngs=rngs, execution=runs[n]) for n, t in sorted(config.towers.items())})
        self.added_embeddings = nnx.data(
            {n: AddedEmbedding(config.towers[n], count, rngs=rngs) for n, count in sorted(config.added_tokens.items())}
        )
        self.input_projections = nnx.data(
            {n: self._projection(n, p, rngs) for n, p in sorted(config.input_projections.items()) if p.form != "none"}
        )
        choosing = sorted(config.towers.items()) if config.next_modality else []
        self.next_modality = nnx.data(
            {n: ChoiceHead(t, len(config.choices), rngs=rngs, dtype=dtype) for n, t in choosing}
        )
        self.zips = nnx.data({z.name: self._directions(z, rngs) for z in sorted(config.zips, key=lambda z: z.name)})

    def _projection(self, tower: str, projection: ProjectionConfig, rngs: nnx.Rngs) -> Projection:
        width = self.config.towers[tower].embed_dim
        return Projection(projection, width, width, rngs=rngs, dtype=jnp.dtype(self.config.dtype))

    def _directions(self, z: Any, rngs: nnx.Rngs) -> dict[str, Fusion]:
        """``into_<receiver>`` -> its fusion, stacked over the zip's members."""
        towers, dtype = self.config.towers, jnp.dtype(self.config.dtype)
        count = len(zip_pairs(z, towers))

        def make(into: str) -> Fusion:
            one = replace(z, into=(into,), insulate=tuple(t for t in z.insulate if t != into))
            return fusion_class(z.fusion)(one, towers[z.other(into)], towers[into], rngs=rngs, dtype=dtype)

        return {f"into_{into}": stack(partial(make, into), count, "zips") for into in z.receivers}

    @overload
    def __call__(self, batches: Batches) -> dict[str, Float[Array, "B T V"]]: ...
    @overload
    def __call__(self, batches: Batches, cache: Cache) -> tuple[dict[str, Float[Array, "B T V"]], Cache]: ...
    def __call__(self, batches: Batches, cache: Cache | None = None) -> Any:
        """The fused path: float32 logits of every tower that has a batch.

        Args:
            batches: Tower -> its batch. Without a cache, a tower without a batch has no tokens.
            cache: Of the tokens fed before, of any tower; the batches' ``global_positions`` and ``local_positions``
                continue from there. Tokens beyond its capacity are dropped.

        Returns:
            The logits; with a cache, also the updated cache.
        """
        if cache is None:
            return {tower: self.head(tower, x) for tower, x in self.hidden(batches).items()}
        states, cache = self.hidden(batches, cache)
        return {tower: self.head(tower, x) for tower, x in states.items()}, cache

    @overload
    def hidden(self, batches: Batches) -> dict[str, State]: ...
    @overload
    def hidden(self, batches: Batches, cache: Cache) -> tuple[dict[str, State], Cache]: ...
    def hidden(self, batches: Batches, cache: Cache | None = None) -> Any:
        """The final states after the final norm, the input of `head`; otherwise like `__call__`."""
        run = Pass(self, batches, cache)
        states = {tower: self.towers[tower].norm(x) for tower, x in run().items()}
        return states if cache is None else (states, run.cache)

    def head(self, tower: str, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Float32 logits of `hidden` states; those of added tokens come after the tower's own."""
        return self.towers[tower].logits(hidden, self.added_embeddings.get(tower))

    def choose(self, tower: str, hidden: Float[Array, "B T D"]) -> Float[Array, "B T C"]:
        """Float32 logits of what comes after an end token with these `hidden` states, see `ZipperConfig.choices`."""
        return self.towers[tower].execution.in_use(self.next_modality[tower])(hidden)

    def losses(
        self, batches: Batches, z_loss: float = 0.0, dropout: Dropout | None = None, choices: bool = False
    ) -> dict[str, Losses]:
        """Losses of every batch's targets on the fused path; logits of a large vocabulary are not stored.

        Args:
            batches: Tower -> its batch.
            z_loss: See `cross_entropy`.
            dropout: Of a training pass; None: nothing is dropped.
            choices: Also the losses of the choices, named by `choice.choice_of`, where the model makes them.

        Returns:
            Tower -> the losses of its tokens.
        """
        if dropout is not None:
            towers = self.config.towers
            batches = {name: dropout.noisy(name, batch, towers[name].vocab_size) for name, batch in batches.items()}
        states = Pass(self, batches, None, dropout=dropout)()
        found = {}
        for name, tower in self.towers.items():
            if name in states:
                x = tower.norm(states[name])
                found[name] = tower.losses(x, batches[name], self.added_embeddings.get(name), z_loss)
                if choices and self.config.next_modality:
                    head = tower.execution.in_use(self.next_modality[name])
                    found[choice_of(name)] = head.losses(x, batches[name])
        return found

    def last_logits(
        self, batches: Batches, cache: Cache
    ) -> tuple[dict[str, Float[Array, "B V"]], dict[str, Float[Array, "B 1 D"]], Cache]:
        """Logits of each row's last token of this pass, the states they are from, and the cache.

        The head is computed for these tokens only. What a row without a token in a tower gets is undefined.
        """
        states, cache = self.hidden(batches, cache)
        logits = {}
        for tower, x in states.items():
            count = jnp.sum(batches[tower].segment_ids > 0, axis=1, dtype=jnp.int32)
            last = jnp.maximum(count - 1, 0)
            x = jnp.take_along_axis(x, last[:, None, None], axis=1) if x.shape[1] > 1 else x
            states[tower], logits[tower] = x, self.head(tower, x)[:, 0]
        return logits, states, cache

    def for_decoding(self) -> "Zipper":
        """This model with what is the same for all tokens done once, outside of the loop over tokens.

        Kernels and output tables are cast. Unrolled blocks and zips get arrays of their own, `unstacked`: XLA copies
        slices of stacked ones in every iteration.
        """
        dtype = jnp.dtype(self.config.dtype)

        def cast(variable: Any) -> Any:
            product = isinstance(variable, nnx.Param) and variable.get_metadata().get("use") == "product"
            return variable.replace(variable.get_raw_value().astype(dtype)) if product else variable

        model: Zipper = jax.tree.map(cast, self, is_leaf=lambda x: isinstance(x, nnx.Variable))
        for tower in model.towers.values():
            table = (tower.embedding if tower.head is None else tower.head).table
            tower.output_table = table.replace(table.get_raw_value().astype(dtype))
        return model if self.config.scan else model.unstacked()

    def unstacked(self) -> "Zipper":
        """This model with arrays of its own for each block and zip: of stacked ones each is then sliced once."""
        model: Zipper = jax.tree.map(lambda leaf: leaf, self)
        for tower in model.towers.values():
            tower.blocks = module.unstack(tower.blocks)
        zips = {z: {n: module.unstack(f) for n, f in sides.items()} for z, sides in model.zips.items()}
        model.zips = nnx.data(zips)
        return model

    def attention_weights(self, batches: Batches) -> Weights:
        """Attention weights of the fusions that have any, see `Fusion.weights` (dense: for short examples)."""
        run = Pass(self, batches, None, probe={})
        run()
        assert run.probe is not None
        return run.probe


# ---- models and nested dicts -----------------------------------------------------------------------------------------


class Parameter(NamedTuple):
    """Metadata of a parameter.

    Attributes:
        shape, dtype: Of the leaf, stacked.
        axes: Logical axis names.
        use: See `module.param`.
        output: Whether it is an output table: logits are products with its rows.
        owner: The tower whose sharding rules it follows: the one it is part of, or writes to.
        tokens: Tower -> fraction of the stacked members (blocks, zips) that process the tower's tokens.
        stacked: Whether its first axis is blocks or zips.
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str | None, ...]
    use: str
    output: bool
    owner: str
    tokens: Mapping[str, float]
    stacked: bool


def frozen_dtype(config: ZipperConfig, parameter: Parameter, stored: Any) -> Any:
    """The dtype in which training holds a frozen leaf of dtype ``stored``: kernels in the products' own.

    They are rounded once instead of in every step, to the same values.
    """
    return jnp.dtype(config.dtype) if parameter.use == "product" else jnp.dtype(stored)


def inference_dtype(config: ZipperConfig, parameter: Parameter, stored: Any) -> Any:
    """The dtype in which inference holds a leaf of dtype ``stored``: kernels and output tables in the products' own.

    With bfloat16 products a tied table is rounded before its rows are scaled, not after.
    """
    return jnp.dtype(config.dtype) if parameter.use == "product" or parameter.output else jnp.dtype(stored)


@lru_cache(maxsize=64)
def abstract_model(config: ZipperConfig, placer: Placer = unsharded) -> Zipper:
    """The model with shapes in place of parameters; nothing is allocated."""
    return nnx.eval_shape(lambda: Zipper(config, rngs=nnx.Rngs(0), placer=placer))


def bind_params(config: ZipperConfig, params: Params, placer: Placer = unsharded) -> Zipper:
    """The model with the given parameters (arrays or tracers); cheap inside a traced function."""
    return module.bind(abstract_model(config, placer), params)


def parameters(config: ZipperConfig) -> dict[str, Parameter]:
    """Path -> metadata of each parameter, sorted by path: ``zips/a-b/into_a/attention/key/kernel``."""
    classes = {z.name: (z, fusion_class(z.fusion)) for z in config.zips}
    found = {}
    for path, variable in module.parameters(abstract_model(config)).items():
        top, name, *rest = path.split("/")
        owner, tokens = name, {name: 1.0}
        if top == "zips":
            z, fusion = classes[name]
            owner = rest[0].removeprefix("into_")
            source = z.other(owner)
            reads = fusion.reads_source("/".join(rest[1:]))
            tokens = {source: 1 / fusion.stack(z, source)} if reads else {owner: 1.0}
        elif top == "towers" and rest[0] == "blocks":
            depth = config.towers[name].num_layers
            tokens[name] += read_alone(config).get(name, 0) / depth
            soft = soft_tokens(config, name)
            tokens |= {s.source: (depth + 1 - s.block) / depth / s.stack for s in soft}
        value, declared = variable.get_raw_value(), variable.get_metadata()
        axes = declared.get("axes") or (None,) * len(value.shape)
        output, stacked = declared.get("output", False), declared.get("stacked", False)
        plain = (
            "product" if len(value.shape) - stacked > 1 else "scale"
        )  # what a plain Flax layer's kernel and bias are
        use = declared.get("use", plain)
        found[path] = Parameter(value.shape, value.dtype, axes, use, output, owner, tokens, stacked)
    return found


def abstract_params(config: ZipperConfig) -> Params:
    """The tree of shapes and dtypes; nothing is computed."""
    return unflatten({path: jax.ShapeDtypeStruct(p.shape, p.dtype) for path, p in parameters(config).items()})


def param_axes(config: ZipperConfig) -> Params:
    """The tree of logical axis names: a tuple of names per leaf, as declared beside each parameter."""
    return unflatten({path: p.axes for path, p in parameters(config).items()})


def initialisers(config: ZipperConfig, seed: int) -> dict[str, Callable[[], np.ndarray]]:
    """Path -> a function that initialises the leaf on the host, float32. Each leaf depends on (seed, its path) only."""

    @lru_cache(maxsize=1)
    def drawn_together() -> dict[str, nnx.Param]:
        """Plain Flax layers of a fusion cannot be initialised leaf by leaf."""
        return module.parameters(Zipper(config, rngs=nnx.Rngs(seed)))

    def of(path: str, variable: nnx.Param) -> Callable[[], np.ndarray]:
        if module.is_declared(variable):
            return lambda: module.draw(seed, path, variable)
        return lambda: np.asarray(drawn_together()[path].get_raw_value())

    return {path: of(path, variable) for path, variable in module.parameters(abstract_model(config)).items()}


def init_params(config: ZipperConfig, seed: int) -> Params:
    """Initial float32 parameters, on the host (NumPy)."""
    return unflatten({path: make() for path, make in initialisers(config, seed).items()})
