"""The fused forward pass against the paper's equations in float64, and the rules that must hold bit by bit.

"Bitwise" below is np.testing.assert_array_equal on the outputs of one compiled program.
"""

import ast
import dataclasses
import itertools
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tiny import (
    PAIR_LAYOUT,
    PAIR_LENGTHS,
    SPEECH,
    TEXT,
    TRIO_LAYOUT,
    ZIP,
    is_gate,
    map_paths,
    pair,
    paths,
    random_params,
    random_rows,
    random_span,
    trio,
    with_gates,
)  # fmt: skip

import zipper_jax
from zipper_jax.models.config import ModalityConfig, ProjectionConfig, ZipConfig, ZipperConfig
from zipper_jax.models.zipper import (
    abstract_params,
    cross_attention_weights,
    forward,
    init_params,
    param_axes,
    unimodal,
)  # fmt: skip
from zipper_jax.ops.losses import cross_entropy
from zipper_jax.sequences import Span, rows_to_towers

TOLERANCE = 3e-5  # float32 logits of order 1 against float64
TRIO_LENGTHS = {**PAIR_LENGTHS, "image": 16}
UNTIED = {"tied_head": False, "embedding_scale": 3.0}
RESIDUAL = ProjectionConfig(form="residual", activation="gelu", depth=2)

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
                ZIP, num_heads=6, num_kv_heads=2, head_size=10, norm="rms", normalise_source=True,
                projection=ProjectionConfig(depth=2, hidden_width=20, activation="gelu", final_activation="none"),
            ),
        ),
        scan=False,
    ),
    "narrow": pair(  # equal widths, no cross-tower projection, pairs that need no order of their own
        speech=dataclasses.replace(SPEECH, width=48),
        zips=(
            ZipConfig(
                ("speech", "text"), pairs=((5, 1), (2, 3)), into=("text",), projection=ProjectionConfig(form="none"),
                feed_forward="where_visible",
            ),
        ),
        projections={},
    ),
    "trio": trio(),
    "trio unrolled": trio(scan=False),
}  # fmt: skip


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
    return sum(cross_entropy(logits[t], towers[t].targets, towers[t].weights)[0].sum() for t in towers)


@cache
def gradient_program(name):
    return jax.jit(jax.value_and_grad(partial(losses, OPTIONS[name])))


def numpy_tree(tree):
    return jax.tree.map(np.asarray, tree)


# ---- the paper's equations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_forward_is_the_papers_equations(name):
    """Packed rows in float32 against one example at a time in float64, all logits of all towers."""
    config = OPTIONS[name]
    params = random_params(config)
    rows, towers = batch_of(config)
    found, worst = numpy_tree(program(name)(params, towers)), 0.0
    for b, row in enumerate(rows):
        for segment, example in enumerate(row, start=1):
            wanted = reference.logits(config, params, example, layout_of(config))
            for tower, batch in towers.items():
                slots = batch.segment_ids[b] == segment
                np.testing.assert_allclose(found[tower][b, slots], wanted[tower], atol=TOLERANCE)
                worst = max(worst, np.abs(found[tower][b, slots] - wanted[tower]).max(initial=0))
    print(f"largest difference of logits: {worst:.1e}")
    assert all(np.isfinite(x).all() and x.dtype == np.float32 for x in found.values())


def test_loss_is_the_negative_log_likelihood_of_the_next_token():
    """Targets and weights as well: every token predicts the next of its own span, the end token nothing."""
    config = OPTIONS["paper"]
    params = random_params(config)
    rows, towers = batch_of(config)
    wanted = 0.0
    for example in (e for row in rows for e in row):
        logits, used = reference.logits(config, params, example, PAIR_LAYOUT), {"text": 0, "speech": 0}
        for span in example:
            place, start = PAIR_LAYOUT[span.modality], used[span.modality]
            target = np.array([*span.tokens, place.end], int)
            own = logits[place.tower][start : start + len(target)]
            wanted += span.weight * reference.cross_entropy(own, target).sum()
            used[span.modality] += len(target) + 1
    found = float(gradient_program("paper")(params, towers)[0])
    assert found == pytest.approx(wanted, rel=1e-5)


def test_picture_weights_are_those_of_the_visible_tokens():
    config = OPTIONS["paper"]
    towers = jax.tree.map(jnp.asarray, batch_of(config)[1])
    weights = cross_attention_weights(config, jax.tree.map(jnp.asarray, random_params(config)), towers)
    assert set(weights) == {("speech-text", into, z) for into in ("text", "speech") for z in (0, 1)}
    for (_, into, _), w in weights.items():
        queries, keys = towers[into], towers["text" if into == "speech" else "speech"]
        same = queries.segment_ids[:, :, None] == keys.segment_ids[:, None]
        earlier = keys.global_positions[:, None] < queries.global_positions[:, :, None]
        visible = np.asarray(same & earlier & (queries.segment_ids > 0)[:, :, None])
        w = np.asarray(w).reshape(w.shape[0], -1, *w.shape[3:])
        np.testing.assert_array_equal(w > 0, np.broadcast_to(visible[:, None], w.shape))
        np.testing.assert_allclose(w.sum(-1), np.broadcast_to(visible.any(-1)[:, None], w.shape[:3]), atol=1e-6)


# ---- rule 1: causality (bitwise) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", "positions", "trio"])
def test_a_token_changes_nothing_before_it_and_nothing_in_other_examples(name):
    config = OPTIONS[name]
    params = random_params(config)
    _, towers = batch_of(config, seed=1)
    before = numpy_tree(program(name)(params, towers))
    felt_across = set()
    for tower, batch in towers.items():
        for b, slot in np.argwhere(batch.segment_ids > 0):
            tokens = batch.tokens.copy()
            tokens[b, slot] = (tokens[b, slot] + 7) % config.towers[tower].vocab_size
            after = numpy_tree(program(name)(params, {**towers, tower: batch._replace(tokens=tokens)}))
            assert (after[tower][b, slot] != before[tower][b, slot]).any(), "its own logits feel it"
            for other, o in towers.items():
                may_feel = np.zeros(o.tokens.shape, bool)
                same = o.segment_ids[b] == batch.segment_ids[b, slot]
                may_feel[b] = same & (o.global_positions[b] >= batch.global_positions[b, slot])
                np.testing.assert_array_equal(after[other][~may_feel], before[other][~may_feel])
                if other != tower and (after[other] != before[other]).any():
                    felt_across.add((tower, other))
    wanted = {(z.other(into), into) for z in config.zips for into in z.receivers}
    assert felt_across >= wanted, "a test that sees no effect across towers proves nothing"


# ---- rule 3: the unimodal path (bitwise) -----------------------------------------------------------------------------


@pytest.mark.parametrize("tower", ["text", "speech"])
def test_unimodal_path_is_the_tower_as_stored(tower):
    config = OPTIONS["paper"]
    lone = ZipperConfig({tower: config.towers[tower]}, {tower: ModalityConfig(tower, config.towers[tower].vocab_size)})
    params = random_params(config)
    stored = {"towers": {tower: params["towers"][tower]}}
    rows, towers = batch_of(config)
    fused_config = jax.jit(partial(unimodal, config), static_argnums=1)(params, tower, towers[tower])
    alone = jax.jit(partial(unimodal, lone), static_argnums=1)(stored, tower, towers[tower])
    joint = jax.jit(partial(forward, lone))(stored, {tower: towers[tower]})[tower]
    np.testing.assert_array_equal(fused_config, alone)
    np.testing.assert_array_equal(alone, joint)
    for b, row in enumerate(rows):
        for segment, example in enumerate(row, start=1):
            wanted = reference.logits(config, params, example, PAIR_LAYOUT, fused=False)[tower]
            slots = towers[tower].segment_ids[b] == segment
            np.testing.assert_allclose(np.asarray(alone)[b, slots], wanted, atol=TOLERANCE)


# ---- rule 4: gates at 0, empty visibility ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", "one way", "positions", "trio"])
def test_gates_at_zero_make_every_zip_the_identity(name):
    """Bitwise: neither other zip parameters nor other towers' tokens matter any more; no zip fires at all."""
    config = OPTIONS[name]
    closed = random_params(config, gate=0.0)
    rng = np.random.default_rng(3)

    def redraw(path, leaf):
        keep = path[0] != "zips" or is_gate(path)
        return leaf if keep else rng.normal(size=leaf.shape).astype(np.float32)

    _, towers = batch_of(config)
    before = numpy_tree(program(name)(closed, towers))
    after = numpy_tree(program(name)(map_paths(redraw, closed), towers))
    for tower in towers:
        np.testing.assert_array_equal(after[tower], before[tower])
        others = {
            t: batch._replace(tokens=np.where(batch.segment_ids > 0, (batch.tokens + 3) % 19, 0).astype(np.int32))
            for t, batch in towers.items()
            if t != tower
        }
        alone = numpy_tree(program(name)(closed, {**towers, **others}))
        np.testing.assert_array_equal(alone[tower], before[tower])


@pytest.mark.parametrize("gate", ["attention_gate", "mlp_gate"])
def test_each_gate_closes_its_own_half(gate):
    """While a gate is 0, the weights of its half do not matter; while it is open they do."""
    params = random_params(OPTIONS["paper"])
    shut = map_paths(lambda path, x: np.zeros_like(x) if path[-1] == gate else x, params)
    _, towers = batch_of(OPTIONS["paper"])
    half = "mlp" if gate == "mlp_gate" else "attention"
    louder = map_paths(lambda path, x: 2 * x if path[0] == "zips" and half in path else x, shut)
    for tower, logits in program("paper")(louder, towers).items():
        np.testing.assert_array_equal(logits, program("paper")(shut, towers)[tower])
    opened = map_paths(lambda path, x: 2 * x if path[0] == "zips" and half in path else x, params)
    for tower, logits in program("paper")(opened, towers).items():
        assert (np.asarray(logits) != np.asarray(program("paper")(params, towers)[tower])).any()


def test_fused_path_with_residual_or_no_input_projection_starts_as_the_unimodal_path():
    """At the initial gates. Two programs, so float32 tolerance; on CPU the difference was 0 or one rounding."""
    config = OPTIONS["residual"]
    params = random_params(config, gate=0.0)
    _, towers = batch_of(config)
    fused = program("residual")(params, towers)
    for tower, batch in towers.items():
        alone = jax.jit(partial(unimodal, config), static_argnums=1)(params, tower, batch)
        np.testing.assert_allclose(fused[tower], alone, atol=1e-5)
        print(f"largest difference in {tower}: {np.abs(np.asarray(fused[tower]) - np.asarray(alone)).max():.1e}")


@pytest.mark.parametrize("name", ["paper", pytest.param("positions", marks=pytest.mark.slow)])
def test_gradients_are_finite_where_nothing_is_visible(name):
    """Rows of one modality only, an empty row: finite everywhere, and exactly 0 for what was never used."""
    config = OPTIONS[name]
    params = random_params(config)
    rows = [
        [(Span("text", np.array([3, 4, 0], np.int32), 1.0),)] * 2,
        [(Span("text", np.array([5], np.int32), 1.0),)],
        [],
        [],
    ]
    towers = rows_to_towers(rows, PAIR_LAYOUT, PAIR_LENGTHS)
    loss, gradients = gradient_program(name)(params, towers)
    assert np.isfinite(loss)
    for path, g in paths(numpy_tree(gradients)):
        assert np.isfinite(g).all(), path
        unused = (
            path[:2] == ("towers", "speech") or "into_speech" in path or path[:2] == ("input_projections", "speech")
        )
        heard = path[:3] == ("zips", "speech-text", "into_text") and (
            "projection" in path or path[-2] in ("key", "value")
        )
        if unused or heard:
            assert (g == 0).all(), path


def test_where_visible_leaves_tokens_that_see_nothing_as_they_were():
    """Bitwise: the zips' weights do not reach them, though the gates are open; with "always" they do."""
    rows, towers = batch_of(OPTIONS["narrow"])
    for name, equal in (("narrow", True), ("paper", False)):
        params = random_params(OPTIONS[name])
        other = map_paths(lambda path, x: 2 * x if path[0] == "zips" else x, params)
        first, second = (np.asarray(program(name)(p, towers)["text"]) for p in (params, other))
        segments = [s for s, e in enumerate(rows[0], 1) if all(span.modality == "text" for span in e)]
        blind = np.isin(towers["text"].segment_ids[0], segments)
        assert blind.any()
        assert (first[0, blind] == second[0, blind]).all() == equal


# ---- rule 5: packed equals unpacked ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", pytest.param("trio", marks=pytest.mark.slow)])
def test_packed_equals_unpacked_in_loss_and_gradients_of_each_example(name):
    config = OPTIONS[name]
    params, layout, lengths = random_params(config), layout_of(config), lengths_of(config)
    rows, towers = batch_of(config, seed=2)
    run = gradient_program(name)
    worst = 0.0
    for b, segment in [(b, s) for b, row in enumerate(rows) for s in range(1, len(row) + 1)][:7]:
        only = {}
        for tower, batch in towers.items():
            mask = np.zeros_like(batch.weights)
            mask[b] = batch.segment_ids[b] == segment
            only[tower] = batch._replace(weights=np.where(mask, 1 + batch.weights, 0).astype(np.float32))
        packed = run(params, only)
        alone = rows_to_towers([[rows[b][segment - 1]], [], [], []], layout, lengths)
        alone = {t: x._replace(weights=(x.segment_ids > 0) * (1 + x.weights)) for t, x in alone.items()}
        unpacked = run(params, alone)
        assert float(packed[0]) == pytest.approx(float(unpacked[0]), rel=1e-6)
        for (path, p), (_, u) in zip(paths(numpy_tree(packed[1])), paths(numpy_tree(unpacked[1])), strict=True):
            difference = np.abs(p - u).max() / (1e-2 + np.abs(u).max())
            worst = max(worst, difference)
            assert difference < 2e-5, (path, difference)
    print(f"largest gradient difference, relative to its leaf: {worst:.1e}")


# ---- scan, remat, dtype ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"remat": "full"},
        {"remat": "dots", "scan": False},
        pytest.param({"remat": "dots"}, marks=pytest.mark.slow),
        pytest.param({"scan": False}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_remat_and_unrolling_give_the_same_gradients(changes):
    config = dataclasses.replace(OPTIONS["paper"], **changes)
    params = random_params(config)
    _, towers = batch_of(config)
    loss, gradients = jax.jit(jax.value_and_grad(partial(losses, config)))(params, towers)
    wanted_loss, wanted = gradient_program("paper")(params, towers)
    assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-6)
    for (path, g), (_, w) in zip(paths(numpy_tree(gradients)), paths(numpy_tree(wanted)), strict=True):
        np.testing.assert_allclose(g, w, atol=2e-5 * (1 + np.abs(w).max()), err_msg=str(path))


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


@pytest.mark.parametrize("name", ["paper", "residual", "positions"])
def test_bfloat16_multiplies_in_bfloat16_and_returns_float32(name):
    config = dataclasses.replace(OPTIONS[name], dtype="bfloat16")
    _, towers = batch_of(config)
    jaxpr, shapes = jax.make_jaxpr(partial(forward, config), return_shape=True)(abstract_params(config), towers)
    products = [e for e in _equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    assert products
    assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype(jnp.bfloat16)}
    exponentials = [e for e in _equations(jaxpr.jaxpr) if e.primitive.name in ("exp", "rsqrt", "sin")]
    assert {v.aval.dtype for e in exponentials for v in e.invars} == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in shapes.values()} == {jnp.dtype(jnp.float32)}


def test_bfloat16_stays_near_float32():
    config = dataclasses.replace(OPTIONS["paper"], dtype="bfloat16")
    params = random_params(config)
    _, towers = batch_of(config)
    half = jax.jit(partial(forward, config))(params, towers)
    for tower, logits in program("paper")(params, towers).items():
        real = towers[tower].segment_ids > 0
        error = np.abs(np.asarray(half[tower]) - np.asarray(logits))[real]
        assert error.max() < 0.1 * np.std(np.asarray(logits)[real]) + 0.05
        assert error.max() > 0


# ---- parameters ------------------------------------------------------------------------------------------------------


# A small generator: the default one makes programs that take a minute to compile here.
KEY = jax.random.key(0, impl="unsafe_rbg")


def test_initial_parameters():
    config = with_gates(OPTIONS["paper"], gate_init=0.5)
    assert ZIP.gate_init == 0
    params = jax.jit(partial(init_params, config))(KEY)
    assert {p: x.shape for p, x in paths(params)} == {p: x.shape for p, x in paths(abstract_params(config))}
    for path, x in paths(numpy_tree(params)):
        assert x.dtype == np.float32
        if is_gate(path):
            assert (x == 0.5).all()
        elif path[-1] == "bias":
            assert (x == 0).all()
        elif path[-1] == "scale":
            assert (x == 1).all()
        else:
            assert np.std(x) > 0
            for a, b in itertools.pairwise(x):
                assert (a != b).any(), f"{path}: two members start alike"
    kernels = {p: float(np.std(x)) for p, x in paths(params) if p[-1] == "kernel"}
    assert kernels["towers", "speech", "blocks", "attention", "query", "kernel"] == pytest.approx(80**-0.5, rel=0.1)
    first = "zips", "speech-text", "into_text", "projection", "layer_0", "kernel"
    assert kernels[first] == pytest.approx(80**-0.5, rel=0.1)
    check_adding_a_part_changes_no_other(params)


def check_adding_a_part_changes_no_other(params):
    big = params
    small = jax.jit(partial(init_params, pair(zips=(), projections={})))(KEY)
    big = dict(paths(big))
    for path, x in paths(small):
        np.testing.assert_array_equal(x, big[path])


@pytest.mark.parametrize("name", OPTIONS)
def test_every_leaf_names_its_axes(name):
    config = OPTIONS[name]
    axes = dict(paths(param_axes(config)))
    shapes = dict(paths(abstract_params(config)))
    assert set(axes) == set(shapes)
    known = {
        "layers", "zips", "vocab", "embed", "heads", "kv_heads", "head_size", "mlp", "projection", "projection_out",
        None,
    }  # fmt: skip
    for path, names in axes.items():
        assert len(names) == len(shapes[path].shape), path
        assert set(names) <= known, path
        named = [n for n in names if n is not None]
        assert len(set(named)) == len(named), f"{path}: one mesh axis would be used twice"
        tower = config.towers.get(path[1] if path[0] != "zips" else path[2].removeprefix("into_"))
        sizes = dict(zip(names, shapes[path].shape, strict=True))
        if path[0] == "towers":
            wanted = {
                "layers": tower.num_layers, "vocab": tower.vocab_size, "embed": tower.width, "heads": tower.num_heads,
                "kv_heads": tower.num_kv_heads, "head_size": tower.head_size, "mlp": tower.mlp_width,
            }  # fmt: skip
            assert sizes == {k: wanted[k] for k in sizes}, path


# ---- rule 7: no tower, modality or number of towers is special -------------------------------------------------------


@pytest.mark.slow
def test_names_do_not_matter():
    """The same model with other names gives the same logits."""
    renamed = {"text": "zebra", "speech": "apple"}
    config = OPTIONS["one way"]
    z = dataclasses.replace(
        config.zips[0], towers=("zebra", "apple"), intervals={"zebra": 1, "apple": 2}, into=("apple",)
    )
    other = ZipperConfig(
        {renamed[t]: c for t, c in config.towers.items()},
        {renamed[m]: ModalityConfig(renamed[c.tower], c.size) for m, c in config.modalities.items()},
        (z,),
        {renamed[t]: p for t, p in config.input_projections.items()},
    )
    params = random_params(config)
    moved = {
        "towers": {renamed[t]: x for t, x in params["towers"].items()},
        "input_projections": {renamed[t]: x for t, x in params["input_projections"].items()},
        "zips": {"apple-zebra": {"into_apple": params["zips"]["speech-text"]["into_speech"]}},
    }
    _, towers = batch_of(config)
    found = jax.jit(partial(forward, other))(moved, {renamed[t]: x for t, x in towers.items()})
    wanted = program("one way")(params, towers)
    for tower, name in renamed.items():
        np.testing.assert_allclose(found[name], wanted[tower], atol=1e-5)


def test_no_modality_is_named_in_the_model_or_the_decoder():
    package = Path(zipper_jax.__file__).parent
    for folder in ("ops", "models", "decoding"):
        for file in (package / folder).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant):
                    assert node.value not in ("text", "speech"), f"{file.name}:{node.lineno}"
