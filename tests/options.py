"""Models that together use every field of the configuration, packed rows for them, and their shared programs."""

import dataclasses
from functools import cache, partial

import jax
import numpy as np
from passes import forward
from tiny import (
    PAIR_LAYOUT,
    PAIR_LENGTHS,
    SPEECH,
    TEXT,
    TRIO_LAYOUT,
    ZIP,
    is_gate,
    pair,
    paths,
    random_rows,
    random_span,
    trio,
)  # fmt: skip

from zipper_jax.models.config import ProjectionConfig, RopeScaling, ZipConfig
from zipper_jax.models.zipper import abstract_params
from zipper_jax.ops.losses import cross_entropy
from zipper_jax.sequences import Span, rows_to_towers

TRIO_LENGTHS = {**PAIR_LENGTHS, "image": 16}
UNTIED = {"tied_head": False, "embedding_scale": 3.0}
RESIDUAL = ProjectionConfig(form="residual", activation="gelu", depth=2)

# Three towers, a fusion for each pair of them, shared attention of two zips in one block included.
LINEAR = ProjectionConfig(depth=1, final_activation="none")
TRIO_OF_FUSIONS = trio(
    zips=(
        ZipConfig(("text", "speech"), pairs=((1, 3), (2, 4)), fusion="shared_attention"),
        ZipConfig(("image", "text"), pairs=((2, 2),), into=("text",), fusion="shared_attention"),
        ZipConfig(("speech", "image"), pairs=((5, 4),), fusion="projector", projection=LINEAR),
    )
)
# Each differs from the paper's default in several fields; together they use every field.
OPTIONS = {
    "paper": pair(),
    "residual": pair(projections={"text": RESIDUAL, "speech": ProjectionConfig(form="none")}, scan=False),
    "one way": pair(
        zips=(dataclasses.replace(ZIP, into=("speech",), feed_forward="where_visible", bias=True, norm="rms"),),
        projections={"text": ProjectionConfig(depth=1, bias=False)},
        text=dataclasses.replace(TEXT, activation="relu", **UNTIED),
    ),
    "positions": pair(
        zips=(
            dataclasses.replace(
                ZIP, positions="learned", max_positions=5, normalise_source=True, mlp_multiplier=3, bias=True,
                mlp_activation="squared_relu", after_last_block=True, intervals={"text": 1, "speech": 1},
            ),
        ),
        projections={"speech": ProjectionConfig(final_activation="none", activation="silu")},
        speech=dataclasses.replace(SPEECH, activation="squared_relu"),
    ),
    "heads": pair(
        zips=(
            dataclasses.replace(
                ZIP, num_heads=6, num_kv_heads=2, head_dim=9, norm="rms", normalise_source=True,
                positions="rotary", position_scales={"speech": 0.3}, rope_base=50.0, diagonal_init=0.5,
                projection=ProjectionConfig(depth=2, hidden_dim=20, activation="gelu", final_activation="none"),
            ),
        ),
        scan=False,
    ),
    "narrow": pair(  # equal embed_dim, no cross-tower projection, pairs that need no order of their own
        speech=dataclasses.replace(SPEECH, embed_dim=48),
        zips=(
            ZipConfig(
                ("speech", "text"), pairs=((5, 1), (2, 3)), into=("text",), projection=ProjectionConfig(form="none"),
                feed_forward="where_visible",
            ),
        ),
        projections={},
    ),
    "borrowed": pair(  # what pretrained families need: GPT-NeoX's and OPT's ways, and Gemma's; tokens added to both
        text=dataclasses.replace(
            TEXT, positions="learned", max_positions=30, position_offset=2, norm="layer", attention_bias="all",
            mlp_bias=True, gated_mlp=False, activation="gelu_exact", parallel=True, vocab_size=21, **UNTIED,
        ),
        speech=dataclasses.replace(
            SPEECH, windows=(3, 0, 2, 3, 0), window_rope_base=50.0, rope_scaling=RopeScaling("linear", 2.0),
            rope_fraction=0.75, norm_offset=1.0, norm_placement="both", query_key_norm=True, attention_bias="qkv",
            attention_scale=0.4, attention_softcap=2.0, logit_softcap=3.0, vocab_size=17,
        ),
        added_tokens={"text": 2, "speech": 2},
    ),
    "relative": pair(
        text=dataclasses.replace(TEXT, positions="relative", attention_scale=1.0, logit_scale=0.5, gated_mlp=False),
        speech=dataclasses.replace(SPEECH, positions="relative", rope_fraction=0.0), scan=False,
    ),
    # Fusions that the package knows nothing of: see outside_fusions.py.
    "ungated": pair(
        zips=(
            ZipConfig(
                ("text", "speech"), {"text": 1, "speech": 2}, into=("text",), fusion="outside_fusions:OneWay",
                options={"scale": 0.7},
            ),
        ),
    ),
    "shared": pair(
        text=dataclasses.replace(TEXT, attention_softcap=3.0, attention_scale=0.4),
        speech=dataclasses.replace(SPEECH, windows=(3, 0, 2, 3, 0), query_key_norm=True),
        zips=(
            ZipConfig(("text", "speech"), {"text": 1, "speech": 2}, fusion="outside_fusions:SharedAttention"),
        ),
    ),
    "trio": trio(),
    "trio unrolled": trio(scan=False),
    "soft": pair(
        text=dataclasses.replace(TEXT, windows=(3, 0, 2)),
        zips=(ZipConfig(("text", "speech"), pairs=((1, 3),), into=("text",), fusion="outside_fusions:SoftTokens"),),
    ),
    "soft late": pair(  # they enter in front of the second block, into a tower with learned positions
        text=dataclasses.replace(TEXT, positions="learned", max_positions=60),
        zips=(ZipConfig(("speech", "text"), pairs=((5, 2),), into=("text",), fusion="outside_fusions:SoftTokens"),),
        scan=False,
    ),
    # The package's other fusions.
    "shared attention": pair(
        text=dataclasses.replace(TEXT, attention_softcap=3.0, attention_scale=0.4),
        speech=dataclasses.replace(SPEECH, windows=(3, 0, 2, 3, 0), query_key_norm=True),
        zips=(dataclasses.replace(ZIP, fusion="shared_attention"),),
        projections={"text": RESIDUAL},
    ),
    "shared ungated": pair(  # as in the papers: heads of equal shapes, no maps, no gate
        speech=dataclasses.replace(SPEECH, num_heads=2, num_kv_heads=2, head_dim=12),
        zips=(dataclasses.replace(ZIP, fusion="shared_attention", options={"gate": False}),),
    ),
    "projector": pair(  # both ways, an MLP
        text=dataclasses.replace(TEXT, windows=(3, 0, 2)),
        zips=(
            ZipConfig(
                ("text", "speech"), pairs=((3, 5),), fusion="projector", normalise_source=True,
                projection=ProjectionConfig(depth=2, final_activation="none"),
            ),
        ),
        projections={"speech": RESIDUAL},
    ),
    "projector one way": pair(  # linear, not from the last block, with added tokens and learned positions
        text=dataclasses.replace(TEXT, positions="learned", max_positions=60),
        speech=dataclasses.replace(SPEECH, vocab_size=17),
        zips=(ZipConfig(("speech", "text"), pairs=((4, 3),), into=("text",), fusion="projector", projection=LINEAR),),
        added_tokens={"speech": 2}, scan=False,
    ),
    "trio fusions": TRIO_OF_FUSIONS,
    "projector stacked": pair(  # 3 states of one tower and 2 of the other are one soft token; learned positions
        text=dataclasses.replace(TEXT, positions="learned", max_positions=60),
        speech=dataclasses.replace(SPEECH, windows=(3, 0, 2, 3, 0)),
        zips=(
            ZipConfig(
                ("text", "speech"), pairs=((3, 5),), fusion="projector", normalise_source=True,
                projection=ProjectionConfig(depth=2, final_activation="none"),
                options={"stack": {"speech": 3, "text": 2}},
            ),
        ),
    ),
}  # fmt: skip


TRIOS = ["trio", "trio fusions"]
FUSIONS = [n for n, c in OPTIONS.items() if n not in TRIOS and {z.fusion for z in c.zips} - {"gated_cross_attention"}]
"""Models with another fusion than the paper's: the rules of the forward pass and of decoding run on each of them."""
VARIANTS = {"shared", "soft", "soft late", "shared ungated", "projector one way", "trio fusions"}
"""Models whose rules run in the slow tier (conftest.py): a sibling of each, of the same kind, runs in the fast one."""


def _all_zips_have_gates(config):
    found = {path[1:3] for path, _ in paths(abstract_params(config)) if path[0] == "zips" and is_gate(path)}
    return found == {(z.name, f"into_{into}") for z in config.zips for into in z.receivers}


GATED = ["paper", "one way", "positions", *(name for name in (*FUSIONS, *TRIOS) if _all_zips_have_gates(OPTIONS[name]))]
"""Models that are the identity at every zip while gates are 0."""


def layout_of(config):
    return TRIO_LAYOUT if "image" in config.towers else PAIR_LAYOUT


def lengths_of(config):
    return TRIO_LENGTHS if "image" in config.towers else PAIR_LENGTHS


@cache
def rows_of(layout_name, seed=0):
    """Three packed rows: unimodal examples between pairs, several spans of one tower, empty spans, an empty row."""
    layout, lengths = (TRIO_LAYOUT, TRIO_LENGTHS) if layout_name == "trio" else (PAIR_LAYOUT, PAIR_LENGTHS)
    rng = np.random.default_rng(seed)
    span = partial(random_span, rng, layout=layout)
    mixed = [
        (Span("text", np.array([0, 5, 0], np.int32), 0.0), Span("speech", np.array([0, 3], np.int32), 1.0)),
        (span("speech", longest=4),),
        (span("text", longest=4),),
        (span("speech", longest=3, weight=0.0), span("text", longest=2), span("speech", longest=2)),
    ]
    if layout_name == "trio":  # every direction of every zip in one example
        names = ("image", "text", "speech", "sign")
        mixed.append(tuple(span(name, longest=1) for name in names))
    rows = [mixed, *random_rows(rng, 2, layout, lengths, most_spans=4, longest=4)]
    assert all(len(row) > 1 for row in rows)
    return [*rows[:2], [], rows[2]]


def batch_of(config, seed=0):
    rows = rows_of("trio" if "image" in config.towers else "pair", seed)
    return rows, rows_to_towers(rows, layout_of(config), lengths_of(config))


@cache
def program(name):
    return jax.jit(partial(forward, OPTIONS[name]))


def losses(config, params, towers):
    """The weighted sum of every tower's token losses: what every token's weight scales."""
    logits = forward(config, params, towers)
    return sum(cross_entropy(logits[t], towers[t].targets, towers[t].weights).total for t in towers)


@cache
def gradient_program(name):
    return jax.jit(jax.value_and_grad(partial(losses, OPTIONS[name])))


def numpy_tree(tree):
    return jax.tree.map(np.asarray, tree)
