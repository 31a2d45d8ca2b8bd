"""The fused forward pass against the paper's equations in float64, and the rules that must hold bit by bit.

"Bitwise" below is np.testing.assert_array_equal on the outputs of one compiled program.
"""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
import reference
from options import (
    FUSIONS,
    GATED,
    OPTIONS,
    TRIOS,
    batch_of,
    gradient_program,
    layout_of,
    lengths_of,
    losses,
    numpy_tree,
    program,
)
from passes import attention_weights, equations, forward, unimodal
from tiny import PAIR_LAYOUT, PAIR_LENGTHS, TEXT, is_gate, map_paths, paths, random_params, random_rows

from zipper_jax.models.config import ModalityConfig, ZipperConfig
from zipper_jax.sequences import Span, rows_to_towers
from zipper_jax.sharding.mesh import MeshConfig, make_mesh
from zipper_jax.sharding.rules import Placement

TOLERANCE = 3e-5  # float32 logits of order 1 against float64


# ---- the paper's equations -------------------------------------------------------------------------------------------


def check_equations(config, params, rows, towers, found):
    """Logits ``found`` for packed rows against one example at a time in float64, all logits of all towers."""
    worst = 0.0
    for b, row in enumerate(rows):
        for segment, example in enumerate(row, start=1):
            wanted = reference.logits(config, params, example, layout_of(config))
            for tower, batch in towers.items():
                slots = batch.segment_ids[b] == segment
                np.testing.assert_allclose(found[tower][b, slots], wanted[tower], atol=TOLERANCE)
                worst = max(worst, np.abs(found[tower][b, slots] - wanted[tower]).max(initial=0))
    print(f"largest difference of logits: {worst:.1e}")


@pytest.mark.parametrize("name", OPTIONS)
def test_forward_is_the_papers_equations(name):
    """Packed rows in float32 against one example at a time in float64, all logits of all towers."""
    config = OPTIONS[name]
    params = random_params(config)
    rows, towers = batch_of(config)
    found = numpy_tree(program(name)(params, towers))
    check_equations(config, params, rows, towers, found)
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
    _, towers = batch_of(config)
    weights = jax.jit(partial(attention_weights, config))(random_params(config), towers)
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


def check_change(config, run, params, towers, before, tower, b, slot):
    """Another token in a slot changes its own logits, none before it and none of other examples, bit by bit.

    Returns (tower, other) for the other towers whose logits feel it.
    """
    batch, felt_across = towers[tower], set()
    tokens = batch.tokens.copy()
    tokens[b, slot] = (tokens[b, slot] + 7) % config.towers[tower].vocab_size
    after = numpy_tree(run(params, {**towers, tower: batch._replace(tokens=tokens)}))
    assert (after[tower][b, slot] != before[tower][b, slot]).any(), "its own logits feel it"
    for other, o in towers.items():
        may_feel = np.zeros(o.tokens.shape, bool)
        same = o.segment_ids[b] == batch.segment_ids[b, slot]
        may_feel[b] = same & (o.global_positions[b] >= batch.global_positions[b, slot])
        np.testing.assert_array_equal(after[other][~may_feel], before[other][~may_feel])
        if other != tower and (after[other] != before[other]).any():
            felt_across.add((tower, other))
    return felt_across


@pytest.mark.parametrize("name", ["paper", "positions", "heads", "borrowed", *TRIOS, *FUSIONS])
def test_a_token_changes_nothing_before_it_and_nothing_in_other_examples(name):
    config = OPTIONS[name]
    params = random_params(config)
    _, towers = batch_of(config, seed=1)
    before = numpy_tree(program(name)(params, towers))
    felt_across = set()
    for tower, batch in towers.items():
        for b, slot in np.argwhere(batch.segment_ids > 0):
            felt_across |= check_change(config, program(name), params, towers, before, tower, b, slot)
    wanted = {(z.other(into), into) for z in config.zips for into in z.receivers}
    assert felt_across >= wanted, "a test that sees no effect across towers proves nothing"


MANY = {"text": 160, "speech": 260}


@pytest.mark.parametrize("name", ["paper", "heads", "shared attention"])
def test_programs_of_many_tokens_on_one_cpu(name):
    """They join products and halve causal attention; the paper's equations and causality hold in them as well."""
    config = OPTIONS[name]
    params = random_params(config)
    kind = {"tries": 30, "longest": 60, "most_spans": 4}
    rows = random_rows(np.random.default_rng(0), 4, PAIR_LAYOUT, MANY, **kind)
    towers = rows_to_towers(rows, PAIR_LAYOUT, MANY)
    mesh = MeshConfig(data=1)
    run = partial(forward, config, placer=Placement(make_mesh(mesh, jax.devices()[:1]), mesh))
    traced = [*equations(jax.make_jaxpr(run)(params, towers).jaxpr)]
    halves = {e.outvars[0].aval.shape[-2:] for e in traced if e.primitive.name == "exp"}
    assert {(128, 128), (32, 160), (192, 192), (68, 260)} <= halves
    assert "concatenate" in {e.primitive.name for e in traced if e.outvars[0].aval.shape[:1] == (TEXT.embed_dim,)}

    compiled = jax.jit(run)
    before = numpy_tree(compiled(params, towers))
    check_equations(config, params, rows, towers, before)
    for tower, batch in towers.items():
        for b, slot in np.argwhere(batch.segment_ids > 0)[:: MANY[tower] // 8]:
            check_change(config, compiled, params, towers, before, tower, b, slot)


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


# ---- rule 4: gates at 0, empty attention ranges ----------------------------------------------------------------------


@pytest.mark.parametrize("name", GATED)
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


@pytest.mark.parametrize(
    "name",
    [
        "paper",
        *FUSIONS,
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("positions", "borrowed", "relative")),
    ],
)
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
        read = path[:3] == ("zips", "speech-text", "into_text") and (
            path[3] in ("projection", "key_map", "value_map") or path[-2] in ("key", "value")
        )
        if unused or read:
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


# ---- knowledge insulation (bitwise) ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", *FUSIONS])
def test_an_insulated_tower_learns_from_its_own_loss_alone(name):
    """Its gradients are those of the other tower's loss at weight 0; the forward pass is that without insulation."""
    config = OPTIONS[name]
    params = random_params(config)
    _, towers = batch_of(config)
    (z,) = config.zips
    source, reader = (z.other("text"), "text") if "text" in z.receivers else (z.other("speech"), "speech")
    insulated = dataclasses.replace(config, zips=(dataclasses.replace(z, insulate=(source,)),))
    plain, run = gradient_program(name), jax.jit(jax.value_and_grad(partial(losses, insulated)))
    without = {**towers, reader: towers[reader]._replace(weights=np.zeros_like(towers[reader].weights))}

    def of_source(gradients):
        return {path: g for path, g in paths(numpy_tree(gradients)) if path[1] == source}

    loss, gradients = run(params, towers)
    assert float(loss) == float(plain(params, towers)[0])
    own = of_source(run(params, without)[1])
    assert own.keys() == of_source(gradients).keys()
    for path, g in of_source(gradients).items():
        np.testing.assert_array_equal(g, own[path], err_msg=str(path))
    assert any((g != own[path]).any() for path, g in of_source(plain(params, towers)[1]).items()), "insulation alone"
    fused = [g for path, g in paths(numpy_tree(gradients)) if path[0] == "zips" and f"into_{reader}" in path]
    assert not z.options.get("gate", True) or any((g != 0).any() for g in fused), "what is added learns"


# ---- rule 5: packed equals unpacked ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "paper",
        *FUSIONS,
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("positions", "borrowed", "relative", *TRIOS)),
    ],
)
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
            assert difference < 4e-5, (path, difference)  # float32 sums in another order: up to 2.7e-5 seen
    print(f"largest gradient difference, relative to its leaf: {worst:.1e}")
