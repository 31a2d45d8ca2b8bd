"""Decoding against the training path: what is generated, replayed as an example, gives the same log probabilities.

Rows of unequal lengths, switches of modality, beams and sampling included. One Generator per model, to share programs.
"""

import dataclasses
import itertools
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from options import FUSIONS, OPTIONS
from passes import advance, forward
from tiny import PAIR_LAYOUT, TRIO_LAYOUT, pair, random_example, random_params, trio, with_gates

from zipper_jax.decoding import generate
from zipper_jax.decoding.beam import beam_span
from zipper_jax.decoding.generate import Generator, copied_bytes, decoding_config, for_decoding
from zipper_jax.decoding.sampling import SamplingConfig, choose
from zipper_jax.models.cache import init_cache
from zipper_jax.models.config import ModalityConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.sequences import Place, Span, rows_to_towers
from zipper_jax.utils.errors import UserError

TOLERANCE = 2e-5  # float32 log probabilities and logits of order 1
MODELS = {
    "pair": (pair(), PAIR_LAYOUT),
    "trio": (trio(scan=False), TRIO_LAYOUT),
    "trio fusions": (dataclasses.replace(OPTIONS["trio fusions"], scan=False), TRIO_LAYOUT),
    "positions": (
        with_gates(
            pair(), positions="learned", max_positions=4, bias=True, feed_forward="where_visible", normalise_source=True
        ),
        PAIR_LAYOUT,
    ),
    "rotary zips": (
        with_gates(pair(), positions="rotary", position_scales={"speech": 0.3}, rope_base=50.0, diagonal_init=0.5),
        PAIR_LAYOUT,
    ),
    "borrowed": (dataclasses.replace(OPTIONS["borrowed"], scan=False), PAIR_LAYOUT),
    "relative": (OPTIONS["relative"], PAIR_LAYOUT),
    **{name: (OPTIONS[name], PAIR_LAYOUT) for name in FUSIONS},
}  # fmt: skip
LIMITS = {"text": 6, "speech": 7, "image": 5, "sign": 5}
CHUNK = 8
HOT = 3.0  # one temperature for all sampling tests: it is part of the compiled program


@cache
def params_of(name):
    return jax.tree.map(jnp.asarray, random_params(MODELS[name][0], seed=5))


@cache
def generator(name):
    config, layout = MODELS[name]
    return Generator(config, params_of(name), layout, dict.fromkeys(config.towers, 64))


@cache
def forward_program(name):
    return jax.jit(partial(forward, MODELS[name][0]))


@cache
def advance_program(name):
    return jax.jit(partial(advance, MODELS[name][0]), static_argnums=2)


def content(*tokens):
    return np.array(tokens, np.int32)


def as_example(given_spans, generated):
    spans = [Span(m, t, 0.0) for m, t in given_spans]
    return (*spans, *(Span(g.modality, g.tokens, 1.0) for g in generated))


def replayed(name, examples, program=None):
    """Per example, per span: log probabilities of content and end tokens by the training path, one row each."""
    config, layout = MODELS[name]
    program = program or forward_program(name)
    rows = [[e] for e in examples]
    lengths = dict.fromkeys(config.towers, 64)
    towers = rows_to_towers([*rows, *[[]] * (4 - len(rows))], layout, lengths)
    log_probs = {
        t: np.asarray(jax.nn.log_softmax(x)) for t, x in forward_program(name)(params_of(name), towers).items()
    }
    results = []
    for b, example in enumerate(examples):
        used, spans = dict.fromkeys(config.towers, 0), []
        for span in example:
            place = layout[span.modality]
            n, start = len(span.tokens) + 1, used[place.tower]
            slots = np.arange(start, start + n)
            spans.append(log_probs[place.tower][b, slots, towers[place.tower].targets[b, slots]])
            used[place.tower] += n + 1
        results.append(spans)
    return results


def check_replay(name, given_rows, results, program=None, tolerance=TOLERANCE):
    worst = 0.0
    wanted = replayed(name, [as_example(g, r) for g, r in zip(given_rows, results, strict=True)], program)
    for spans, result in zip(wanted, results, strict=True):
        for span, generated in zip(spans[-len(result) :], result, strict=True):
            assert generated.log_probs.shape == (len(generated.tokens) + 1,)
            np.testing.assert_allclose(generated.log_probs, span, atol=tolerance)
            worst = max(worst, float(np.abs(generated.log_probs - span).max()))
    print("largest difference of log probabilities:", worst)


GIVEN = {
    "pair": [
        [("speech", content(0, 3, 5, 0, 16, 2, 2, 9, 1))],
        [],
        [("text", content(0)), ("speech", content()), ("text", content(7, 8, 9, 0))],
        [("text", content(22, 21))],
    ],
    "trio": [
        [("image", content(0, 3)), ("speech", content(4))],
        [("sign", content(0, 19, 3)), ("image", content(7)), ("text", content(0, 5))],
        [],
        [("text", content()), ("sign", content(2))],
    ],
}
GIVEN |= {"trio fusions": GIVEN["trio"], **dict.fromkeys(("positions", "rotary zips", *FUSIONS), GIVEN["pair"])}


# ---- rule 2: caches equal the full pass ------------------------------------------------------------------------------


def fed_in_chunks(name, examples, cuts):
    """Logits of every token when examples go through the caches span by span, cut into chunks of ``cuts`` sizes."""
    config, layout = MODELS[name]
    state = init_cache(config, len(examples), dict.fromkeys(config.towers, 40))
    queues = []
    for example in examples:
        queue = []
        for span in example:
            place = layout[span.modality]
            ids = [place.offset + i for i in (place.begin, *map(int, span.tokens), place.end)]
            while ids:
                size = next(cuts)
                queue.append((place.tower, ids[:size]))
                ids = ids[size:]
        queues.append(queue)
    logits = [{t: [] for t in config.towers} for _ in examples]
    while any(queues):
        tower = next(q[0][0] for q in queues if q)
        # What fills unused positions must not matter.
        tokens, counts = np.full((len(examples), CHUNK), 5, np.int32), np.zeros(len(examples), np.int32)
        for b, queue in enumerate(queues):
            if queue and queue[0][0] == tower:  # the other rows do not advance
                ids = queue.pop(0)[1]
                tokens[b, : len(ids)], counts[b] = ids, len(ids)
        out, state = advance_program(name)(params_of(name), state, tower, jnp.asarray(tokens), jnp.asarray(counts))
        for b in range(len(examples)):
            logits[b][tower].extend(np.asarray(out[b, : counts[b]]))
    return logits, state


def check_chunks(name, seed):
    config, layout = MODELS[name]
    rng = np.random.default_rng(seed)
    examples = [random_example(rng, layout, most_spans=4, longest=6) for _ in range(4)]
    lengths = dict.fromkeys(config.towers, 64)
    towers = rows_to_towers([[e] for e in examples], layout, lengths)
    wanted = forward_program(name)(params_of(name), towers)
    found, state = fed_in_chunks(name, examples, itertools.cycle(int(c) for c in rng.integers(1, CHUNK + 1, 97)))
    worst = 0.0
    for b, tower in itertools.product(range(4), config.towers):
        n = int((towers[tower].segment_ids[b] > 0).sum())
        assert len(found[b][tower]) == n == int(state.lengths[tower][b])
        if n:
            difference = np.abs(np.stack(found[b][tower]) - np.asarray(wanted[tower])[b, :n]).max()
            worst = max(worst, float(difference))
    assert worst < TOLERANCE, worst
    return worst


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "relative" else n for n in MODELS])
def test_any_chunks_through_the_caches_equal_the_full_pass(name):
    print("largest difference of logits:", max(check_chunks(name, seed) for seed in range(3)))


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(MODELS)))
@settings(max_examples=100)
def test_many_chunks_through_the_caches_equal_the_full_pass(seed, name):
    check_chunks(name, seed)


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("pair", ("text", "speech", "text")),
        ("trio", ("sign", "text")),
        ("trio fusions", ("sign", "text", "speech")),
        *((name, ("text", "speech", "text")) for name in ("rotary zips", *FUSIONS)),
        pytest.param("positions", ("speech", "text"), marks=pytest.mark.slow),
        pytest.param("trio", ("sign", "text", "image", "speech"), marks=pytest.mark.slow),
    ],
)
def test_generated_output_replayed_through_training_has_the_same_log_probs(name, outputs):
    results = generator(name)(GIVEN[name], outputs, LIMITS)
    assert [[g.modality for g in row] for row in results] == [list(outputs)] * 4
    check_replay(name, GIVEN[name], results)
    for row in results:
        for g in row:
            place = MODELS[name][1][g.modality]
            assert ((g.tokens >= 0) & (g.tokens < place.size)).all()
            assert place.begin not in g.tokens
            assert place.end not in g.tokens


def test_greedy_takes_the_most_likely_token():
    """Each token of a greedy span is the best allowed one by the training path."""
    results = generator("pair")(GIVEN["pair"], ("text",), LIMITS)
    for row, (generated,) in zip(GIVEN["pair"], results, strict=True):
        example = as_example(row, [generated])
        towers = rows_to_towers([[example], [], [], []], PAIR_LAYOUT, {"text": 64, "speech": 64})
        logits = np.array(forward_program("pair")(params_of("pair"), towers)["text"][0])
        first = sum(len(t) + 2 for m, t in row if m == "text")
        logits[:, PAIR_LAYOUT["text"].begin] = -np.inf
        best = logits[first : first + len(generated.tokens) + 1].argmax(-1)
        np.testing.assert_array_equal(best[: len(generated.tokens)], generated.tokens)
        assert (best[-1] == PAIR_LAYOUT["text"].end) != generated.truncated


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3])
def test_bfloat16_replays_within_its_roundings(beams):
    config = dataclasses.replace(MODELS["pair"][0], dtype="bfloat16")
    run = Generator(config, params_of("pair"), PAIR_LAYOUT, dict.fromkeys(config.towers, 64))
    results = run(GIVEN["pair"], ("text", "speech"), LIMITS, SamplingConfig(beams=beams))
    check_replay("pair", GIVEN["pair"], results, jax.jit(partial(forward, config)), tolerance=0.05)  # measured: 0.017


# ---- rule 1 in decoding (bitwise) ------------------------------------------------------------------------------------


def test_a_token_fed_later_changes_no_earlier_logits():
    config = MODELS["pair"][0]
    rng = np.random.default_rng(0)
    program, params = advance_program("pair"), params_of("pair")
    spans = [("speech", rng.integers(0, 17, 8)), ("text", rng.integers(3, 23, 8)), ("speech", rng.integers(0, 17, 8))]

    def run(spans):
        state, out = init_cache(config, 4, dict.fromkeys(config.towers, 40)), []
        for tower, tokens in spans:
            rows = jnp.asarray(np.tile(tokens, (4, 1)), jnp.int32)
            logits, state = program(params, state, tower, rows, jnp.array([8, 8, 0, 5], jnp.int32))
            out.append(np.asarray(logits))
        return out

    before = run(spans)
    for changed, slot in itertools.product(range(3), (0, 3, 7)):
        other = [(t, x.copy()) for t, x in spans]
        other[changed][1][slot] = (other[changed][1][slot] + 1) % 17
        after = run(other)
        for number in range(3):
            same = slice(None) if number < changed else slice(0, slot if number == changed else 0)
            np.testing.assert_array_equal(after[number][:2, same], before[number][:2, same])
            if number >= changed:
                assert (after[number][0, -1] != before[number][0, -1]).any()
        if slot >= 5:  # row 3 was fed 5 tokens: later positions hold none
            np.testing.assert_array_equal(after[2][3, :5], before[2][3, :5])


# ---- max_new_tokens, ends, batches -----------------------------------------------------------------------------------


def test_max_new_tokens_truncates_and_flags_it_and_ends_stop_each_row_alone():
    """Sampling ends rows at different places; truncated is true exactly where max_new_tokens was reached first."""
    run = generator("pair")
    rows = [GIVEN["pair"][0]] * 4
    seen, lengths = set(), set()
    for seed in range(6):
        for (g,) in run(rows, ("text",), LIMITS, SamplingConfig(temperature=HOT, seed=seed)):
            assert len(g.tokens) <= LIMITS["text"]
            assert not g.truncated or len(g.tokens) == LIMITS["text"]
            seen.add(g.truncated)
            lengths.add(len(g.tokens))
    assert seen == {True, False}
    assert len(lengths) > 2, "rows should end at different places"


def test_a_forced_end_is_fed_before_the_next_span():
    """Truncated spans replay too: the log probability of the forced end is the model's own, and the switch is exact."""
    run = generator("pair")
    results = run(GIVEN["pair"], ("text", "speech", "text"), LIMITS)
    assert any(row[0].truncated for row in results), "choose another seed of parameters: nothing was cut"
    check_replay("pair", GIVEN["pair"], results)


def test_a_row_does_not_depend_on_its_batch():
    """Greedy and sampled, the others longer, shorter, of another modality: same tokens, same log probabilities."""
    run = generator("pair")
    others = [[("speech", content(*range(16)))], [("text", content(3))], []]
    for sampling in (SamplingConfig(), SamplingConfig(temperature=HOT, seed=1)):
        first = run(GIVEN["pair"], ("text", "speech", "text"), LIMITS, sampling)
        for row in (0, 2):
            batch = [others[0], others[1], others[2], others[0]]
            batch[row] = GIVEN["pair"][row]
            second = run(batch, ("text", "speech", "text"), LIMITS, sampling)
            for a, b in zip(first[row], second[row], strict=True):
                np.testing.assert_array_equal(a.tokens, b.tokens)
                np.testing.assert_allclose(a.log_probs, b.log_probs, atol=TOLERANCE)
                assert a.truncated == b.truncated


@pytest.mark.parametrize(
    "sampling", [SamplingConfig(), SamplingConfig(temperature=HOT, seed=1), SamplingConfig(beams=2)], ids=str
)
def test_the_batch_size_changes_no_row(sampling):
    """Seven rows at once, and in batches by length, the last of them padded; draws go with the row, not its place."""
    run = generator("pair")
    rows = [[("speech", content(*range(n)))] for n in (3, 0, 9, 1, 16, 3, 5)]
    whole = run(rows, ("text", "speech"), LIMITS, sampling, batch_size=14)
    for a, b in zip(whole, run(rows, ("text", "speech"), LIMITS, sampling, batch_size=4), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x.tokens, y.tokens)
            np.testing.assert_allclose(x.log_probs, y.log_probs, atol=TOLERANCE)


def test_batches_are_of_similar_length_and_skip_what_is_done():
    run = generator("pair")
    rows = [[("speech", content(*range(n)))] for n in (3, 0, 9, 1, 16, 3, 5)]
    batches = run.batches(rows, ("text",), LIMITS, batch_size=3)
    assert [batch.rows for batch in batches] == [[4, 2, 6], [0, 5, 3], [1]]
    assert [len(batch.decode()) for batch in batches] == [3, 3, 1]
    (again,) = run.batches(rows, ("text",), LIMITS, batch_size=3, done={4, 2, 6, 0, 5, 3})
    assert again.rows == [1]
    with pytest.raises(UserError, match="batch_size = 0: give at least 1"):
        run(rows, ("text",), LIMITS, batch_size=0)


def test_sampling_repeats_with_its_seed_and_differs_between_rows_spans_and_seeds():
    run, rows = generator("pair"), [GIVEN["pair"][0]] * 4
    sampling = SamplingConfig(temperature=HOT, seed=1)
    first, again = (run(rows, ("text", "speech", "text"), LIMITS, sampling) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x.tokens, y.tokens)
    assert len({tuple(r[1].tokens) for r in first}) > 1
    assert any(tuple(r[0].tokens) != tuple(r[2].tokens) for r in first)
    check_replay("pair", rows, first)


# ---- choosing tokens -------------------------------------------------------------------------------------------------

choose_program = jax.jit(choose, static_argnums=(2, 3, 4))
DRAWS = 512


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (1.0, 3, 1.0),
        (1.0, 0, 0.6),
        (2.0, 4, 0.7),
        (1.0, 99, 1.0),
        (1.0, 1, 1.0),
        (1.0, 0, 1e-6),
    ],
)
def test_sampling_follows_its_definition(temperature, top_k, top_p):
    """Never a token outside the definition's set; every likely one of it in about its share of the draws."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=9).astype(np.float32) * 1.5
        logits[[2, 5]] = -np.inf
        kept = {i for i in range(9) if np.isfinite(logits[i])}
        order = sorted(kept, key=lambda i: -logits[i])
        scaled = np.exp((logits - logits.max()) / temperature, dtype=np.float64)
        order = order[: top_k or None]
        share = scaled[order] / scaled[order].sum()
        before = np.cumsum(share) - share
        order = [i for i, b in zip(order, before, strict=True) if b < top_p]
        wanted = np.zeros(9)
        wanted[order] = scaled[order] / scaled[order].sum()
        keys = jax.random.split(jax.random.key(seed), DRAWS)
        drawn = np.asarray(choose_program(jnp.tile(logits, (DRAWS, 1)), keys, temperature, top_k, top_p))
        share = np.bincount(drawn, minlength=9) / DRAWS
        assert set(np.flatnonzero(share)) <= set(order)
        np.testing.assert_allclose(share, wanted, atol=5 * 0.5 / DRAWS**0.5)


def test_temperature_0_is_the_largest():
    logits = jnp.array([[0.0, 3.0, -jnp.inf], [5.0, -1.0, 4.0]])
    assert choose(logits, jax.random.split(jax.random.key(0), 2), 0.0, 2, 0.5).tolist() == [1, 0]


# ---- beam search -----------------------------------------------------------------------------------------------------

# Four content tokens only, so that all sequences can be scored.
SMALL = TowerConfig(vocab_size=8, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
MODELS["small"] = (
    ZipperConfig(
        {"text": SMALL, "speech": SMALL},
        {"text": ModalityConfig("text", 6, 1), "speech": ModalityConfig("speech", 8)},
        (ZipConfig(("text", "speech"), pairs=((1, 1),)),),
    ),
    {"text": Place("text", 1, 4, 5, 6), "speech": Place("speech", 0, 6, 7, 8)},
)
SMALL_GIVEN = [
    [("speech", content(0, 3))],
    [("speech", content(5))],
    [],
    [("text", content(0, 0)), ("speech", content(1))],
]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_wide_beams_find_the_best_of_all_sequences(length_penalty):
    limit = 2
    results = generator("small")(
        SMALL_GIVEN, ("text",), {"text": limit}, SamplingConfig(beams=32, length_penalty=length_penalty)
    )
    check_replay("small", SMALL_GIVEN, results)
    every = [c for n in range(limit + 1) for c in itertools.product(range(4), repeat=n)]
    for row, (generated,) in zip(SMALL_GIVEN, results, strict=True):
        scores = {}
        for group in batches(every, 4):
            examples = [(*(Span(m, t, 0.0) for m, t in row), Span("text", content(*c), 1.0)) for c in group]
            for c, spans in zip(group, replayed("small", examples), strict=True):
                scores[c] = float(spans[-1].sum()) / (len(c) + 1) ** length_penalty
        found = float(generated.log_probs.sum()) / (len(generated.tokens) + 1) ** length_penalty
        assert found == pytest.approx(max(scores.values()), abs=1e-4)
        assert scores[tuple(generated.tokens.tolist())] == pytest.approx(found, abs=1e-4)


def batches(items, size):
    return [items[i : i + size] for i in range(0, len(items), size)]


def test_one_beam_is_greedy():
    config, layout = MODELS["small"]
    run = generator("small")
    greedy = run(SMALL_GIVEN, ("text",), {"text": 5})
    state = init_cache(config, 4, dict.fromkeys(config.towers, 64))
    state = run._feed(params_of("small"), state, run.towers(SMALL_GIVEN))
    span = partial(beam_span, place=layout["text"], limit=5, beams=1, length_penalty=1.0)
    _, (out, scores, cut_off) = jax.jit(span)(for_decoding(config, params_of("small")), state)
    for b, (g,) in enumerate(greedy):
        n = len(g.tokens)
        np.testing.assert_array_equal(out[b, :n] - 1, g.tokens)
        assert int(out[b, n]) - 1 == layout["text"].end
        np.testing.assert_allclose(scores[b, : n + 1], g.log_probs, atol=TOLERANCE)
        assert bool(cut_off[b]) == g.truncated


def test_beams_then_another_span_replay_exactly():
    """The kept beam's caches are its own: what follows the beam span still equals the training path."""
    setting = {"text": SamplingConfig(beams=3), "speech": SamplingConfig()}
    results = generator("pair")(GIVEN["pair"], ("text", "speech"), LIMITS, setting)
    check_replay("pair", GIVEN["pair"], results)
    greedy = generator("pair")(GIVEN["pair"], ("text",), LIMITS)
    changed = False
    for (beam, _), (one,) in zip(results, greedy, strict=True):
        changed |= tuple(beam.tokens) != tuple(one.tokens)
        assert beam.log_probs.mean() >= one.log_probs.mean() - 1e-5  # holds for these parameters, not for all
    assert changed, "beams that never differ from greedy prove nothing"


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "outputs", "max_new_tokens", "message"),
    [
        ([[]], (), {}, "outputs is empty"),
        ([[]], ("txt",), {"txt": 3}, "unknown modality 'txt'; this model has: speech, text"),
        ([[("txt", content())]], ("text",), {"text": 3}, "unknown modality 'txt'"),
        ([[]], ("text",), {}, "max_new_tokens has no entry of 1 or more for output 'text'"),
        ([[]], ("text",), {"text": 0}, "max_new_tokens has no entry of 1 or more for output 'text'"),
        ([[("text", content(0, 23))]], ("text",), {"text": 3}, r"text tokens must be in 0..22, got 0..23"),
        ([[("text", content(-1))]], ("text",), {"text": 3}, "must be in"),
    ],
)
def test_bad_requests(rows, outputs, max_new_tokens, message):
    with pytest.raises(UserError, match=message):
        generator("pair")(rows, outputs, max_new_tokens)


def test_sampling_must_name_every_output():
    with pytest.raises(UserError, match="no sampling setting for output 'speech'"):
        generator("pair")([[]], ("text", "speech"), LIMITS, {"text": SamplingConfig()})


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"beams": 0},
        {"beams": 2, "temperature": 1.0},
    ],
)
def test_bad_sampling(bad):
    with pytest.raises(UserError, match="sampling: "):
        SamplingConfig(**bad)


def test_no_rows():
    assert generator("pair")([], ("text",), LIMITS) == []


def test_one_tower_alone_generates():
    """Nothing assumes a second tower."""
    config = ZipperConfig({"x": SMALL}, {"x": ModalityConfig("x", 8)})
    params = {"towers": {"x": params_of("small")["towers"]["speech"]}}
    (row,) = Generator(config, params, {"x": Place("x", 0, 6, 7, 8)})([[("x", content(1, 2))]], ("x",), {"x": 4})
    assert len(row) == 1


def test_soft_tokens_take_learned_positions():
    config, layout = MODELS["projector one way"]
    most = config.towers["text"].max_positions
    with pytest.raises(UserError, match=rf"positions of tower 'text'.* for {most} tokens"):
        Generator(config, {}, layout)([[("speech", content(*[1] * most))]], ("text",), {"text": 1})


def test_how_blocks_run_is_decided_by_the_parameters_that_are_decoded_with(monkeypatch):
    config, layout = MODELS["pair"]
    seen = []
    monkeypatch.setattr(generate, "decoding_config", lambda config, params, *_: seen.append(params) or config)
    empty = Generator(config, {}, layout, dict.fromkeys(config.towers, 64))
    assert not seen
    empty.with_params(params_of("pair"))([[]], ("text",), {"text": 1})
    assert seen == [params_of("pair")]


def test_blocks_are_unrolled_on_tpus_with_memory_for_their_copies():
    config, params = MODELS["pair"][0], params_of("pair")
    blocks = [params["zips"], *(tower["blocks"] for tower in params["towers"].values())]
    copied = sum(x.nbytes for x in jax.tree.leaves(blocks))
    assert config.scan
    assert copied_bytes(params) == copied
    assert not decoding_config(config, params, "tpu", 2.0 * copied).scan
    assert not decoding_config(config, params, "tpu", None).scan
    assert decoding_config(config, params, "tpu", 2.0 * copied - 1).scan
    assert decoding_config(config, params, "cpu", None).scan
