"""The model as a Flax user meets it: made, printed, called, called with a cache, differentiated, jitted whole."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import options
import pytest
from flax import nnx
from options import FUSIONS, OPTIONS, TRIOS, batch_of, lengths_of
from tiny import PAIR_LAYOUT, PAIR_LENGTHS, TEXT, pair, paths, random_params

from zipper_jax.models import zipper
from zipper_jax.models.cache import init_cache
from zipper_jax.models.fusion import GatedCrossAttention
from zipper_jax.models.layers import GatedMLP, Linear, Norm
from zipper_jax.models.module import pure
from zipper_jax.models.tower import Attention, Block, Places, Tower
from zipper_jax.models.zipper import Zipper, bind_params, init_params
from zipper_jax.sequences import Span, TowerBatch, rows_to_towers

TOLERANCE = 2e-5  # float32 logits of order 1, two programs


@pytest.fixture(scope="module")
def model():
    return Zipper(pair(), rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def towers():
    return batch_of(OPTIONS["paper"])[1]


def test_a_model_starts_as_a_run_with_its_seed(model):
    """Bitwise, made outside of jit, inside of jit, and for its shapes alone."""
    wanted = dict(paths(init_params(pair(), 3)))
    for made in (model, jax.jit(lambda: Zipper(pair(), rngs=nnx.Rngs(3)))()):
        found = dict(paths(pure(made)))
        assert found.keys() == wanted.keys()
        for path, leaf in found.items():
            np.testing.assert_array_equal(leaf, wanted[path], err_msg=str(path))
    shapes = nnx.eval_shape(lambda: Zipper(pair(), rngs=nnx.Rngs(3)))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.shape == b.shape, pure(shapes), pure(model)))


def test_every_module_by_itself_has_real_initial_values():
    rngs = nnx.Rngs(0)
    modules = [
        Block(TEXT, rngs=rngs), Block(TEXT, rngs=rngs), Attention(TEXT, rngs=rngs), Tower(TEXT, rngs=rngs),
        GatedMLP(8, 16, "silu", rngs=rngs), Norm(8, rngs=rngs),
        Linear("BD,DE->BE", (4, 5), (None, None), fan_in=4, rngs=rngs),
        GatedCrossAttention(pair().zips[0], TEXT, TEXT, rngs=rngs),
    ]  # fmt: skip
    for made in modules:
        for path, leaf in paths(pure(made)):
            if path[-1] == "kernel" or path[-1].endswith("table"):
                assert np.std(leaf) > 0, path
            elif path[-1] == "scale":
                assert (np.asarray(leaf) == 1).all()
    first, second = (np.asarray(block.mlp.up.kernel[...]) for block in modules[:2])
    assert (first != second).any(), "two modules of the same rngs start alike"


def test_blocks_attention_and_towers_are_called_like_any_flax_module(towers):
    x, positions = jnp.ones((2, 5, TEXT.embed_dim)), jnp.tile(jnp.arange(5), (2, 1))
    causal = jnp.zeros((2, 5), jnp.int32), positions + 1
    assert Attention(TEXT, rngs=nnx.Rngs(0))(x, positions, causal).shape == x.shape
    y, cache = Block(TEXT, rngs=nnx.Rngs(0))(x, places=Places(positions, causal))
    assert y.shape == x.shape
    assert cache is None
    assert Tower(TEXT, rngs=nnx.Rngs(0))(towers["text"]).shape == (*towers["text"].tokens.shape, TEXT.vocab_size)


def test_printing_tabulating_jitting_and_differentiating(model, towers):
    assert "into_text" in str(model)
    assert "Total Parameters: 474,248" in nnx.tabulate(model, towers)
    logits = model(towers)
    jitted = jax.jit(lambda model, batches: model(batches))(model, towers)
    for tower in towers:
        np.testing.assert_allclose(jitted[tower], logits[tower], atol=TOLERANCE)
    gradients = jax.jit(nnx.grad(lambda model: sum(x.sum() for x in model(towers).values())))(model)
    assert nnx.to_pure_dict(gradients).keys() == pure(model).keys()


def test_a_module_may_be_replaced(model, towers):
    """As a user would adapt a model: one part swapped for another of the same call."""

    class Doubled(nnx.Module):
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, x):
            return 2 * self.inner(x)

    changed = nnx.clone(model)
    changed.input_projections["text"] = Doubled(changed.input_projections["text"])
    assert (np.asarray(changed(towers)["text"]) != np.asarray(model(towers)["text"])).any()


def test_hidden_and_head_are_the_logits(model, towers):
    hidden = model.hidden(towers)
    for tower, logits in model(towers).items():
        assert hidden[tower].shape == (*towers[tower].tokens.shape, model.config.towers[tower].embed_dim)
        np.testing.assert_array_equal(model.head(tower, hidden[tower]), logits)


@pytest.mark.parametrize("name", ["paper", *TRIOS, *FUSIONS])
def test_towers_without_tokens_may_be_omitted(name):
    """A tower of padding alone and no batch at all give the others the same logits."""
    config = OPTIONS[name]
    model = jax.jit(lambda params, towers: bind_params(config, params)(towers))
    row = [[(Span("text", np.array([3, 4, 0], np.int32), 1.0),)]]
    padded = rows_to_towers(row, PAIR_LAYOUT, {t: n for t, n in lengths_of(config).items() if t in ("text", "speech")})
    for tower in set(config.towers) - set(padded):
        padded[tower] = TowerBatch(*(np.zeros_like(x) for x in padded["text"]))
    params = random_params(config)
    wanted, found = model(params, padded)["text"], model(params, {"text": padded["text"]})["text"]
    np.testing.assert_allclose(found[0, :5], wanted[0, :5], atol=TOLERANCE)


# ---- one forward: with a cache it is the same code -------------------------------------------------------------------

SPANS = (("text", 5), ("speech", 6), ("text", 3), ("speech", 0), ("text", 2))
ROWS = 4
CAPACITY = {"text": 40, "speech": 40}


@pytest.fixture(scope="module")
def rows():
    """Rows of text, speech, text ..., each one example, of unequal lengths; in the shape of `batch_of`, so that the
    same programs compute both."""
    random = np.random.default_rng(0)
    examples = [
        tuple(Span(m, random.integers(3, 17, n + extra).astype(np.int32), 1.0) for m, n in SPANS[: 5 - extra])
        for extra in (0, 1, 2, 1)
    ]
    return rows_to_towers([[example] for example in examples], PAIR_LAYOUT, PAIR_LENGTHS)


@pytest.fixture(scope="module", params=["paper", "residual", *FUSIONS])
def program(request):
    """(config, params, full pass, cached pass), compiled."""
    config = OPTIONS[request.param]
    params = jax.tree.map(jnp.asarray, random_params(config, seed=5))
    cached = jax.jit(lambda params, towers, cache: bind_params(config, params)(towers, cache=cache))
    return config, params, options.program(request.param), cached


def test_one_pass_of_all_towers_with_a_cache_is_the_full_pass(program, rows):
    """Also of towers that are present: text sees speech that sees text, all written before it is read."""
    config, params, full, cached = program
    wanted = full(params, rows)
    found, cache = cached(params, rows, init_cache(config, ROWS, CAPACITY))
    for tower, batch in rows.items():
        real = batch.segment_ids > 0
        np.testing.assert_allclose(np.asarray(found[tower])[real], np.asarray(wanted[tower])[real], atol=TOLERANCE)
        np.testing.assert_array_equal(cache.lengths[tower], real.sum(axis=1))


def test_packed_rows_through_a_cache_are_the_full_pass(program):
    config, params, full, cached = program
    _, towers = batch_of(config, seed=3)
    wanted = full(params, towers)
    found, _ = cached(params, towers, init_cache(config, ROWS, CAPACITY))
    for tower, batch in towers.items():
        real = batch.segment_ids > 0
        np.testing.assert_allclose(np.asarray(found[tower])[real], np.asarray(wanted[tower])[real], atol=TOLERANCE)


def test_chunks_of_both_towers_in_any_order_that_keeps_time(program, rows):
    """Each tower in chunks, a chunk fed once all that came before it in its row has been fed."""
    config, params, full, cached = program
    wanted, cache = full(params, rows), init_cache(config, ROWS, CAPACITY)
    # Time is per row: a span of one tower is fed for all rows before the next span, masked to the rows that have it.
    ends, width = dict.fromkeys(rows, 0), 10  # of one width, so that each tower's chunks are one program
    for number, (tower, _) in enumerate(SPANS):
        batch = rows[tower]
        local = np.asarray(batch.local_positions)
        of_span = span_numbers(rows, tower) == number
        if not of_span.any():
            continue
        chunk = TowerBatch(*(np.zeros((ROWS, width), x.dtype) for x in batch))
        for b, positions in enumerate(map(np.flatnonzero, of_span)):
            for new, old in zip(chunk, batch, strict=True):
                new[b, : len(positions)] = np.asarray(old)[b, positions]
        found, cache = cached(params, {tower: chunk}, cache)
        for b, positions in enumerate(map(np.flatnonzero, of_span)):
            np.testing.assert_allclose(
                np.asarray(found[tower])[b, : len(positions)], np.asarray(wanted[tower])[b, positions], atol=TOLERANCE
            )
        ends[tower] = max(ends[tower], int(local.max()))
    assert min(ends.values()) > 0


def span_numbers(rows, tower):
    """The number of the span that each token of a tower is of, -1 for padding: spans alternate between two towers."""
    own = [i for i, (name, _) in enumerate(SPANS) if name == tower]
    batch = rows[tower]
    begins = np.asarray(batch.tokens) == PAIR_LAYOUT[tower].begin
    counted = np.cumsum(begins, axis=1) - 1
    return np.where(np.asarray(batch.segment_ids) > 0, np.array([*own, -1])[np.minimum(counted, len(own))], -1)


def test_last_logits_are_those_of_each_rows_last_token(program, rows):
    config, params, full, _ = program
    cache = init_cache(config, ROWS, CAPACITY)
    last = jax.jit(lambda params, towers, cache: bind_params(config, params).last_logits(towers, cache)[0])
    wanted, found = full(params, rows), last(params, rows, cache)
    for tower, batch in rows.items():
        counts = (batch.segment_ids > 0).sum(axis=1)
        assert len(set(counts.tolist())) > 1, "rows of equal lengths prove nothing"
        for b, count in enumerate(counts):
            np.testing.assert_allclose(found[tower][b], wanted[tower][b, count - 1], atol=TOLERANCE)


def test_a_step_computes_the_head_once_per_row(rows):
    """The head of a long prefill is computed at the last position only: no logits of all positions exist."""
    config = OPTIONS["paper"]
    cache = init_cache(config, ROWS, CAPACITY)
    jaxpr = jax.make_jaxpr(lambda params: bind_params(config, params).last_logits(rows, cache)[0])(
        init_params(config, 0)
    )
    shapes = {v.aval.shape for equation in jaxpr.jaxpr.eqns for v in equation.outvars}
    assert (ROWS, 1, 23) in shapes
    assert (ROWS, PAIR_LENGTHS["text"], 23) not in shapes


# ---- parameters ------------------------------------------------------------------------------------------------------


def test_parameters_list_the_towers_whose_tokens_they_multiply():
    known = zipper.parameters(pair())
    assert {p.owner for path, p in known.items() if path.startswith("zips/speech-text/into_text")} == {"text"}
    tokens = {path: p.tokens for path, p in known.items()}
    assert tokens["zips/speech-text/into_text/attention/key/kernel"] == {"speech": 1.0}
    assert tokens["zips/speech-text/into_text/projection/layer_0/kernel"] == {"speech": 1.0}
    assert tokens["zips/speech-text/into_text/attention/query/kernel"] == {"text": 1.0}
    gates = {path for path, p in known.items() if p.use == "gate"}
    assert gates == {
        f"zips/speech-text/into_{t}/{g}_gate" for t, g in itertools.product(pair().towers, ("attention", "mlp"))
    }
    assert {path for path, p in known.items() if p.output} == {f"towers/{t}/embedding/table" for t in pair().towers}


def test_a_leaf_is_initialised_only_when_it_is_requested(monkeypatch):
    drawn = []
    monkeypatch.setattr(zipper.module, "draw", lambda seed, path, variable: drawn.append(path))
    make = zipper.initialisers(pair(), 0)
    assert not drawn
    make["towers/text/embedding/table"]()
    assert drawn == ["towers/text/embedding/table"]


def test_configurations_are_hashable_and_never_change():
    config = pair()
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(TypeError, match="never changed"):
        config.towers["text"] = TEXT
