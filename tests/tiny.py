"""Tiny models, layouts and random data that several test files share. Nothing here computes with jax."""

import dataclasses

import numpy as np

from zipper_jax.models.config import ModalityConfig, ProjectionConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.models.zipper import abstract_params
from zipper_jax.sequences import Example, Layout, Place, Span, tower_lengths

# Unequal in everything: num_layers, embed_dim, num_heads, head_dim, vocab_size.
TEXT = TowerConfig(
    vocab_size=23, num_layers=3, embed_dim=48, num_heads=4, num_kv_heads=2, head_dim=12, mlp_dim=56, activation="silu"
)
SPEECH = TowerConfig(
    vocab_size=19, num_layers=5, embed_dim=80, num_heads=5, num_kv_heads=1, head_dim=16, mlp_dim=72, activation="gelu",
    rope_base=500.0, norm_epsilon=1e-5,
)  # fmt: skip
IMAGE = TowerConfig(vocab_size=30, num_layers=4, embed_dim=32, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=40)

PAIR_LAYOUT: Layout = {"text": Place("text", 0, 1, 2, 23), "speech": Place("speech", 0, 17, 18, 19)}
# Two modalities share the image tower, as in a Single Decoder: rows 0..9 and 10..29.
TRIO_LAYOUT: Layout = {
    **PAIR_LAYOUT, "image": Place("image", 0, 8, 9, 10), "sign": Place("image", 10, 0, 1, 20),
}  # fmt: skip
ZIP = ZipConfig(towers=("text", "speech"), intervals={"text": 1, "speech": 2})
PAIR_LENGTHS = {"text": 20, "speech": 24}


def pair(text=TEXT, speech=SPEECH, zips=(ZIP,), projections=None, **changes) -> ZipperConfig:
    """3 blocks of embed_dim 48 and 5 of embed_dim 80, zipped at (1, 2) and (2, 4), with the paper's defaults."""
    return ZipperConfig(
        towers={"text": text, "speech": speech},
        modalities={m: ModalityConfig(p.tower, p.size, p.offset) for m, p in PAIR_LAYOUT.items()},
        zips=zips,
        input_projections={t: ProjectionConfig() for t in ("text", "speech")} if projections is None else projections,
        **changes,
    )


def trio(zips=None, **changes) -> ZipperConfig:
    """Three towers, three zips, irregular pairs, states read across stages, two modalities in one tower."""
    zips = zips or (
        ZipConfig(towers=("text", "speech"), pairs=((1, 4), (2, 4))),
        ZipConfig(towers=("image", "text"), pairs=((2, 2),), num_heads=3, num_kv_heads=1, head_dim=4),
        ZipConfig(towers=("speech", "image"), pairs=((1, 1), (5, 4)), into=("speech",), mlp_multiplier=2),
    )
    return ZipperConfig(
        towers={"text": TEXT, "speech": SPEECH, "image": IMAGE},
        modalities={m: ModalityConfig(p.tower, p.size, p.offset) for m, p in TRIO_LAYOUT.items()},
        zips=zips,
        input_projections={"speech": ProjectionConfig(depth=2, hidden_dim=24), "image": ProjectionConfig()},
        **changes,
    )


def with_gates(config: ZipperConfig, **changes) -> ZipperConfig:
    """The same model with every zip changed by ``changes``."""
    return dataclasses.replace(config, zips=tuple(dataclasses.replace(z, **changes) for z in config.zips))


def paths(tree, prefix=()):
    """(path, leaf) of a nested dict."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def map_paths(function, tree, prefix=()):
    """The tree with function(path, leaf) at each leaf."""
    return {
        key: map_paths(function, value, (*prefix, key)) if isinstance(value, dict) else function((*prefix, key), value)
        for key, value in tree.items()
    }


def is_gate(path) -> bool:
    return path[-1] == "gate" or path[-1].endswith("_gate")


def random_params(config: ZipperConfig, seed: int = 0, gate: float | None = None):
    """Parameters with nothing at its neutral value: gates near 0.6 (or all at ``gate``), norms near 1, biases."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if is_gate(path):
            value = 0.6 + 0.1 * noise if gate is None else np.full(leaf.shape, gate)
        elif path[-1] == "scale":
            value = 1 + 0.1 * noise
        elif path[-1] == "bias":
            value = 0.1 * noise
        elif path[-1] == "kernel":
            inputs = {"query": (-3,), "key": (-3,), "value": (-3,), "output": (-3, -2)}.get(path[-2], (-2,))
            inputs = (-4, -3) if path[-2].endswith("_map") else inputs
            value = noise / np.sqrt(np.prod([leaf.shape[i] for i in inputs]))
        else:
            value = noise / np.sqrt(leaf.shape[-1])
        return value.astype(np.float32)

    return map_paths(draw, abstract_params(config))


def random_span(rng, modality: str, layout: Layout, longest: int = 6, weight: float = 1.0) -> Span:
    """0 to ``longest`` content tokens; token 0 is as likely as any other."""
    place = layout[modality]
    content = [i for i in range(place.size) if i not in (place.begin, place.end)]
    return Span(modality, rng.choice(content, size=rng.integers(0, longest + 1)).astype(np.int32), weight)


def random_example(rng, layout: Layout, most_spans: int = 3, longest: int = 6) -> Example:
    """1 to ``most_spans`` spans of any modalities in any order, each a target or a condition."""
    modalities = rng.choice(sorted(layout), size=rng.integers(1, most_spans + 1))
    return tuple(random_span(rng, str(m), layout, longest, float(rng.integers(0, 2))) for m in modalities)


def random_rows(rng, rows: int, layout: Layout, lengths, tries: int = 12, **kind) -> list[list[Example]]:
    """Packed rows: examples are added while they fit."""
    packed = []
    for _ in range(rows):
        row, free = [], dict(lengths)
        for _ in range(tries):
            example = random_example(rng, layout, **kind)
            need = tower_lengths(example, layout)
            if all(need[t] <= free[t] for t in need):
                row.append(example)
                free = {t: free[t] - need.get(t, 0) for t in free}
        packed.append(row)
    return packed
