"""Outputs "auto": the model's choices against the training path, rows that choose differently, bounds and growth."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from options import FUSIONS, OPTIONS
from tiny import PAIR_LAYOUT, TRIO_LAYOUT, pair, random_params, trio

from zipper_jax.decoding.generate import Generator
from zipper_jax.decoding.sampling import SamplingConfig
from zipper_jax.models.zipper import bind_params
from zipper_jax.sequences import Span, rows_to_towers
from zipper_jax.utils.errors import UserError

TOLERANCE = 2e-5  # float32 log probabilities
MODELS = {
    "pair": (pair(), PAIR_LAYOUT),
    "trio": (trio(scan=False), TRIO_LAYOUT),
    "trio fusions": (dataclasses.replace(OPTIONS["trio fusions"], scan=False), TRIO_LAYOUT),
    **{name: (OPTIONS[name], PAIR_LAYOUT) for name in FUSIONS},
}
LIMITS = {"text": 6, "speech": 7, "image": 5, "sign": 5}
SPANS = 4
FAST = ("pair", "trio")
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]


def content(*tokens):
    return np.array(tokens, np.int32)


PROMPTS = [
    [("speech", content(0, 3, 5, 0, 16, 2, 2, 9, 1))],
    [("text", content(0))],
    [("text", content(0)), ("speech", content()), ("text", content(7, 8, 9, 0))],
    [("text", content(22, 21))],
    [("speech", content(4, 4)), ("text", content(5, 6))],
    [("speech", content(11))],
]


@cache
def model(name, end=0.0):
    """(config, parameters): heads without a favourite over the prompts, then the end of the example ``end`` likelier.

    States at end tokens differ little with random parameters, so that a head drawn at random always chooses the same.
    """
    config = dataclasses.replace(MODELS[name][0], next_modality=True)
    params = random_params(config, seed=5)
    towers = rows_to_towers([[example_of(p, [])] for p in PROMPTS], MODELS[name][1], dict.fromkeys(config.towers, 32))
    states = jax.jit(lambda params, towers: bind_params(config, params).hidden(towers))(params, towers)
    for tower, head in params["next_modality"].items():
        at_ends = np.asarray(states[tower])[towers[tower].next_modality > 0]
        if len(at_ends):
            head["kernel"] = 20.0 * head["kernel"]
            head["bias"] = -(at_ends @ head["kernel"]).mean(axis=0)
        head["bias"][-1] += end
    return config, jax.tree.map(jnp.asarray, params)


@cache
def generator(name, end=0.0):
    config, params = model(name, end)
    return Generator(config, params, MODELS[name][1], dict.fromkeys(config.towers, 64))


def example_of(prompt, generated):
    return (*(Span(m, t, 0.0) for m, t in prompt), *(Span(g.modality, g.tokens, 1.0) for g in generated))


@cache
def choosing(name):
    config, _ = model(name)

    def run(params, towers):
        bound = bind_params(config, params)
        return {t: jax.nn.log_softmax(bound.choose(t, x)) for t, x in bound.hidden(towers).items()}

    return jax.jit(run)


def trained_choices(name, end, examples):
    """Per example, the log probabilities after each of its spans by the training path, packed two to a row."""
    config, params = model(name, end)
    layout = MODELS[name][1]
    rows = [examples[i : i + 2] for i in range(0, len(examples), 2)]
    towers = rows_to_towers([*rows, *[[]] * (4 - len(rows))], layout, dict.fromkeys(config.towers, 256))
    found = choosing(name)(params, towers)
    results = []
    for number, example in enumerate(examples):
        b, segment = divmod(number, 2)
        ends = {}
        for tower, batch in towers.items():
            for t in np.flatnonzero((batch.next_modality[b] > 0) & (batch.segment_ids[b] == segment + 1)):
                ends[int(batch.global_positions[b, t])] = np.asarray(found[tower])[b, t]
        assert len(ends) == len(example)
        results.append([ends[position] for position in sorted(ends)])
    return results


def check_replay(name, results, end=0.0, prompts=PROMPTS):
    """Each choice is the most likely one of the training path, with its log probabilities."""
    config, _ = model(name, end)
    wanted = trained_choices(name, end, [example_of(p, r) for p, r in zip(prompts, results, strict=True)])
    for prompt, row, choices in zip(prompts, results, wanted, strict=True):
        chosen = [config.choices[int(np.argmax(x))] for x in choices[len(prompt) - 1 :]]
        assert [g.modality for g in row] == [m for m in chosen[: len(row)] if m is not None]
        assert [g.next_modality for g in row] == chosen[1:]
        for generated, log_probs in zip(row, choices[len(prompt) :], strict=True):
            np.testing.assert_allclose(generated.choice_log_probs, log_probs, rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_chosen_is_what_the_training_path_chooses(name):
    """Rule 2, in one batch whose rows choose differently, and end after different numbers of spans."""
    results = generator(name)(PROMPTS, "auto", LIMITS, max_spans=SPANS)
    check_replay(name, results)
    orders = [tuple(g.modality for g in row) for row in results]
    assert len(set(orders)) > 2
    assert len(set(map(len, orders))) > 1


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("pair", SamplingConfig(temperature=3.0, seed=7)),
        ("pair", SamplingConfig(beams=3)),
        pytest.param("trio", SamplingConfig(beams=2), marks=pytest.mark.slow),
    ],
)
def test_beams_and_samples_choose_by_the_training_path_too(name, sampling):
    check_replay(name, generator(name)(PROMPTS, "auto", LIMITS, sampling, max_spans=SPANS))


def test_beams_that_end_early_choose_by_the_state_they_ended_in():
    """Many beams, no reward for length: a beam that ended moves among those that continue, and wins."""
    results = generator("pair")(PROMPTS, "auto", LIMITS, SamplingConfig(beams=8, length_penalty=0.0), max_spans=SPANS)
    check_replay("pair", results)
    assert any(len(g.tokens) < LIMITS[g.modality] for row in results for g in row)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_chosen_order_gives_the_spans_of_that_order_given(beams):
    """Waiting for rows of another modality changes nothing: each row is as if decoded alone, in the order it chose."""
    sampling = SamplingConfig(beams=beams)
    results = generator("pair")(PROMPTS, "auto", LIMITS, sampling, max_spans=SPANS)
    for prompt, row in zip(PROMPTS, results, strict=True):
        if row:
            (forced,) = generator("pair")([prompt], [g.modality for g in row], LIMITS, sampling)
            for own, other in zip(row, forced, strict=True):
                np.testing.assert_array_equal(own.tokens, other.tokens)
                np.testing.assert_allclose(own.log_probs, other.log_probs, rtol=1e-5, atol=TOLERANCE)
                assert (other.next_modality, other.choice_log_probs) == (None, None)


def test_a_sampled_row_depends_on_its_number_alone():
    hot = SamplingConfig(temperature=3.0, seed=1)
    together = generator("pair")(PROMPTS, "auto", LIMITS, hot, max_spans=SPANS)
    apart = [
        generator("pair")([prompt], "auto", LIMITS, hot, first_row=row, max_spans=SPANS)[0]
        for row, prompt in enumerate(PROMPTS)
    ]
    assert [[(g.modality, g.tokens.tolist()) for g in row] for row in together] == [
        [(g.modality, g.tokens.tolist()) for g in row] for row in apart
    ]


def test_max_spans_ends_a_row_and_says_so_while_the_cache_grows():
    """An end that is never chosen: spans up to the bound, in a cache that begins with room for one of each tower."""
    config, params = model("pair", end=-50.0)
    small = Generator(config, params, PAIR_LAYOUT)  # capacities of the prompts, not of training
    results = small(PROMPTS, "auto", LIMITS, max_spans=12)
    assert [len(row) for row in results] == [12] * len(PROMPTS)
    assert max(sum(len(g.tokens) + 2 for g in row) for row in results) > 64
    for row in results:
        assert row[-1].truncated
        assert row[-1].next_modality is not None
    check_replay("pair", results, end=-50.0)
    one = small(PROMPTS, "auto", LIMITS, max_spans=1)
    assert [[g.tokens.tolist() for g in row] for row in one] == [[row[0].tokens.tolist()] for row in results]
    hot = [row[0] for row in small(PROMPTS, "auto", LIMITS, SamplingConfig(temperature=3.0, seed=1), max_spans=1)]
    assert any(len(g.tokens) < LIMITS[g.modality] for g in hot), "an end token, so only the bound truncates"
    assert all(g.truncated for g in hot)


def test_a_row_may_end_at_once():
    assert generator("pair", end=50.0)(PROMPTS, "auto", LIMITS) == [[]] * len(PROMPTS)


def test_what_cannot_choose_is_an_error():
    config, params = model("pair")
    plain = dataclasses.replace(config, next_modality=False)
    without = Generator(plain, {k: v for k, v in params.items() if k != "next_modality"}, PAIR_LAYOUT)
    with pytest.raises(UserError, match=r"does not choose the next modality; .*next_modality = True"):
        without(PROMPTS, "auto", LIMITS)
    with pytest.raises(UserError, match="prompt 1 is empty"):
        generator("pair")([PROMPTS[0], []], "auto", LIMITS)
    with pytest.raises(UserError, match="max_spans = 0: give at least 1"):
        generator("pair")(PROMPTS, "auto", LIMITS, max_spans=0)
    with pytest.raises(UserError, match="no entry of 1 or more for output 'text'"):
        generator("pair")(PROMPTS, "auto", {"speech": 3})


def test_learned_positions_bound_the_worst_case_before_anything_is_decoded():
    config = dataclasses.replace(
        MODELS["pair"][0], next_modality=True,
        towers={**MODELS["pair"][0].towers, "text": dataclasses.replace(
            MODELS["pair"][0].towers["text"], positions="learned", max_positions=40)},
    )  # fmt: skip
    run = Generator(config, jax.tree.map(jnp.asarray, random_params(config)), PAIR_LAYOUT)
    with pytest.raises(UserError, match="learned positions for 40 tokens"):
        run(PROMPTS, "auto", LIMITS, max_spans=8)
    assert run(PROMPTS[:1], "auto", LIMITS, max_spans=4)[0]


@pytest.mark.parametrize("name", ["pair", pytest.param("trio fusions", marks=pytest.mark.slow)])
def test_the_heads_change_nothing_of_what_is_computed_without_them(name):
    """Logits of the fused path and tokens of a given order, bitwise."""
    config, params = model(name)
    plain = dataclasses.replace(config, next_modality=False)
    bare = {part: tree for part, tree in params.items() if part != "next_modality"}
    layout = MODELS[name][1]
    towers = rows_to_towers([[example_of(p, [])] for p in PROMPTS], layout, dict.fromkeys(config.towers, 32))
    runs = [jax.jit(partial(lambda c, p, t: bind_params(c, p)(t), c)) for c in (config, plain)]
    for own, other in zip(*(run(p, towers).values() for run, p in zip(runs, (params, bare), strict=True)), strict=True):
        np.testing.assert_array_equal(own, other)
    without = Generator(plain, bare, layout, dict.fromkeys(config.towers, 64))
    order = ("text", "speech")
    for own, other in zip(generator(name)(PROMPTS, order, LIMITS), without(PROMPTS, order, LIMITS), strict=True):
        for a, b in zip(own, other, strict=True):
            np.testing.assert_array_equal(a.tokens, b.tokens)
            np.testing.assert_array_equal(a.log_probs, b.log_probs)
