"""Optimizers, schedules and per-path learning rates.

The optimizer only sees the trainable leaves (a flat dict), so frozen ones have no optimizer state.

Adafactor and stacked leaves: a leaf ``[L, ...]`` holds L layers, and Adafactor's statistics (row and column means,
update clipping, parameter scale) must not mix them. Each group of equally long stacks is therefore updated under
``vmap`` over its first axis, as if each layer were a leaf of its own; within a layer optax factors the two largest
axes, that is the last two of ``[L, D, F]``, when both have at least ``factored_min_size`` entries.

Axes: L stacked layers (or zips), D embed_dim, F mlp_dim.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.utils.trees import base_path, compile_pattern, require_match

OPTIMIZERS = ("adam", "adafactor")
SCHEDULES = ("constant", "linear_warmup", "cosine", "rsqrt")
STACKS = ("layers", "zips")
"""Logical names of first axes that stack layers or zips."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and schedule. Defaults: the paper's for fusion (Adam, 0.9, 0.99, clip 1.0, 5e-4).

    Attributes:
        name: ``adam`` or ``adafactor`` (no momentum; the paper's Single Decoder).
        learning_rate: Peak learning rate.
        b1: Adam's first-moment decay.
        b2: Adam's second-moment decay.
        epsilon: Adam's denominator constant.
        weight_decay: Decoupled decay, applied to matrices only (leaves with two or more axes beside the stacked one).
        clip_norm: Maximum global gradient norm over the trainable leaves; 0 turns clipping off.
        schedule: ``constant``; ``linear_warmup`` (then constant); ``cosine`` (warm-up, then down to ``final_fraction``
            at the last step); ``rsqrt`` (warm-up, then proportional to 1/sqrt(step)).
        warmup_steps: Steps of linear rise from 0; every schedule but ``constant`` uses it.
        final_fraction: Where ``cosine`` ends, as a fraction of the peak.
        learning_rate_multipliers: Whole-path regular expression -> factor on the update, for example
            ``{".*gate": 10.0}``, since gates that start at 0 learn slowly. The first match applies.
        multiply_by_parameter_scale: Adafactor: scale the step by the parameter's RMS.
        factored_min_size: Adafactor factors axes of at least this size.
    """

    name: str = "adam"
    learning_rate: float = 5e-4
    b1: float = 0.9
    b2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    schedule: str = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.0
    learning_rate_multipliers: dict[str, float] = field(default_factory=dict)
    multiply_by_parameter_scale: bool = True
    factored_min_size: int = 128

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise UserError(
                f"OptimizerConfig.name={self.name!r}: choose one of {', '.join(OPTIMIZERS)}"
                f"{closest(self.name, OPTIMIZERS)}"
            )
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"OptimizerConfig.schedule={self.schedule!r}: choose one of {', '.join(SCHEDULES)}"
                f"{closest(self.schedule, SCHEDULES)}"
            )
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise UserError(f"OptimizerConfig.learning_rate={self.learning_rate}: give a positive number, e.g. 5e-4")
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"OptimizerConfig.{name}={getattr(self, name)}: give 0 <= {name} < 1")
        for name in ("weight_decay", "clip_norm", "warmup_steps", "final_fraction"):
            if getattr(self, name) < 0:
                raise UserError(f"OptimizerConfig.{name}={getattr(self, name)}: give 0 or more")
        if self.schedule == "constant" and self.warmup_steps:
            raise UserError(
                f"OptimizerConfig.warmup_steps={self.warmup_steps} has no effect with schedule='constant'; "
                "use 'linear_warmup', or set it to 0"
            )
        for pattern, factor in self.learning_rate_multipliers.items():
            compile_pattern(pattern, "OptimizerConfig.learning_rate_multipliers")
            if factor < 0:
                raise UserError(
                    f"OptimizerConfig.learning_rate_multipliers[{pattern!r}]={factor}: give 0 or more "
                    "(to stop training a part, freeze it)"
                )


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> Callable[[Any], Any]:
    """Build the schedule: applied updates -> learning rate of the next one (so the first is not zero). Traceable.

    Raises:
        UserError: A cosine schedule whose warm-up is as long as the run.
    """
    peak, warmup, floor = config.learning_rate, max(config.warmup_steps, 1), config.final_fraction
    if config.schedule == "cosine" and config.warmup_steps >= total_steps:
        raise UserError(
            f"OptimizerConfig.warmup_steps={config.warmup_steps}: schedule 'cosine' ends at the run's last step, "
            f"{total_steps}; give fewer warm-up steps"
        )

    rise = optax.linear_schedule(0.0, peak, warmup)
    schedules: dict[str, optax.Schedule] = {
        "constant": optax.constant_schedule(peak),
        "linear_warmup": rise,
        "rsqrt": optax.join_schedules([rise, lambda n: peak * jnp.sqrt(warmup / (n + warmup))], [warmup]),
        "cosine": optax.join_schedules(
            [rise, optax.cosine_decay_schedule(peak, max(total_steps - config.warmup_steps, 1), alpha=floor)],
            [config.warmup_steps],
        ),
    }
    # Updates are numbered from 1.
    return lambda step: jnp.asarray(schedules[config.schedule](jnp.asarray(step, jnp.float32) + 1.0), jnp.float32)


def make_optimizer(
    config: OptimizerConfig, axes: Mapping[str, tuple[str | None, ...]], total_steps: int
) -> optax.GradientTransformationExtraArgs:
    """Build the optax transformation over a flat dict of the trainable leaves.

    Its ``update`` takes ``grad_norm``, the global norm of the gradients, which clipping needs.

    Args:
        config: Optimizer and schedule.
        axes: Logical axis names by path of each trainable leaf.
        total_steps: Steps of the run, for schedules that end with it.

    Raises:
        UserError: A multiplier's pattern matches no trainable leaf.
    """
    chain: list[optax.GradientTransformation] = []
    if config.clip_norm:
        chain.append(_clip(config.clip_norm))
    if config.name == "adam":
        chain.append(optax.scale_by_adam(config.b1, config.b2, config.epsilon))
    else:
        chain.append(_per_layer(_adafactor(config), axes))
    if config.weight_decay:
        matrices = {key: len([a for a in names if a not in STACKS]) >= 2 for key, names in axes.items()}
        chain.append(optax.add_decayed_weights(config.weight_decay, matrices))
    if config.learning_rate_multipliers:
        chain.append(_scale_by_path(multipliers(config, axes)))
    chain.append(optax.scale_by_learning_rate(learning_rate_schedule(config, total_steps)))
    return optax.with_extra_args_support(optax.chain(*chain))


def multipliers(config: OptimizerConfig, keys: Mapping[str, Any]) -> dict[str, float]:
    """Learning-rate factor of each trainable leaf."""
    patterns = {
        compile_pattern(p, "OptimizerConfig.learning_rate_multipliers"): factor
        for p, factor in config.learning_rate_multipliers.items()
    }
    for pattern in patterns:
        require_match(pattern, keys, "OptimizerConfig.learning_rate_multipliers (trainable leaves)")
    return {
        key: next((factor for pattern, factor in patterns.items() if pattern.fullmatch(base_path(key))), 1.0)
        for key in keys
    }


def _clip(limit: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm` by a norm that the step has computed: gradients are not read once more for it."""

    def update(updates: Any, state: Any, params: Any = None, *, grad_norm: Float[Array, ""]) -> tuple[Any, Any]:
        factor = jnp.where(grad_norm < limit, 1.0, limit / grad_norm)
        return jax.tree.map(lambda g: g * factor, updates), state

    return optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)


def _scale_by_path(factors: Mapping[str, float]) -> optax.GradientTransformation:
    def update(updates: dict[str, Any], params: Any = None) -> dict[str, Any]:
        return {key: u if factors[key] == 1.0 else u * factors[key] for key, u in updates.items()}

    return optax.stateless(update)


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adafactor's scaling, without the learning rate."""
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=config.factored_min_size),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms() if config.multiply_by_parameter_scale else optax.identity(),
    )


def _per_layer(
    inner: optax.GradientTransformation, axes: Mapping[str, tuple[str | None, ...]]
) -> optax.GradientTransformation:
    """``inner`` under ``vmap`` over the first axis of stacked leaves, one group per stack length."""

    def grouped(tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        groups: dict[str, dict[str, Any]] = {}
        for key, leaf in tree.items():
            stacked = bool(axes[key]) and axes[key][0] in STACKS
            groups.setdefault(f"stack_{leaf.shape[0]}" if stacked else "single", {})[key] = leaf
        return groups

    def init(params: Any) -> Any:
        return {
            name: inner.init(group) if name == "single" else jax.vmap(inner.init)(group)
            for name, group in grouped(params).items()
        }

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        new_updates: dict[str, Any] = {}
        new_state: dict[str, Any] = {}
        values = grouped(params)
        for name, group in grouped(updates).items():
            apply = inner.update if name == "single" else jax.vmap(inner.update)
            changed, new_state[name] = apply(group, state[name], values[name])
            new_updates.update(changed)
        return {key: new_updates[key] for key in updates}, new_state

    return optax.GradientTransformation(init, update)
