"""Every family against transformers itself: logits, greedy decoding with our caches, and the way back, bit by bit."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_hf
from passes import advance
from safetensors.numpy import load_file

from zipper_jax.checkpoint.model_folder import Loaded
from zipper_jax.checkpoint.safetensors_files import FILE, Reader
from zipper_jax.conversion import from_hf, to_hf, verify
from zipper_jax.conversion.to_tower import load_tower, write_tower
from zipper_jax.models.cache import init_cache
from zipper_jax.vocabularies import UnitVocabulary

# Float32 on both sides and the same order of layers: what differs is the order of sums. The largest seen is 1.6e-6
# (benchmarks/conversion_parity.py).
TOLERANCE = 1e-5
LENGTH = 64  # beyond every window and every original length of a scaled RoPE
PROMPT, NEW = 9, 64


def _cases(slow: bool):
    """Every configuration; ``slow``: those that are not ``fast`` in the slow tier."""
    return [
        pytest.param(name, marks=[pytest.mark.slow] * (slow and not case.fast), id=name.replace(" ", "-"))
        for name, case in tiny_hf.CASES.items()
    ]


def vocabulary(rows):
    return UnitVocabulary(rows - 2, 25.0)


@pytest.fixture
def converted(tiny):
    """``converted(name)`` -> (transformers' model, our model, plan)."""

    def convert(name):
        folder, theirs = tiny(name)
        plan = from_hf.plan(folder)
        return theirs, load_tower(plan, "text", vocabulary(plan.tower.vocab_size)), plan

    return convert


@pytest.mark.parametrize("name", _cases(slow=False))
def test_logits_are_those_of_transformers(converted, name):
    import torch

    theirs, ours, _ = converted(name)
    tokens = tiny_hf.random_tokens(3, LENGTH)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    found = verify.our_logits(ours, "text")(tokens)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())


@pytest.mark.parametrize("name", _cases(slow=True))
def test_greedy_decoding_with_our_caches_is_that_of_transformers(converted, name):
    import torch

    theirs, ours, _ = converted(name)
    prompt = tiny_hf.random_tokens(3, PROMPT)
    generated = theirs.generate(
        torch.from_numpy(prompt.astype(np.int64)),
        attention_mask=torch.ones(prompt.shape, dtype=torch.int64),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    ).numpy()[:, PROMPT:]
    np.testing.assert_array_equal(greedy(ours, prompt), generated)


def greedy(model, prompt):
    """The most likely next token, step by step, through our caches."""
    rows = len(prompt)

    @jax.jit
    def run(params, prompt):
        cache = init_cache(model.config, rows, {"text": PROMPT + NEW})
        logits, cache = advance(model.config, params, cache, "text", prompt, jnp.full((rows,), PROMPT))
        first = jnp.argmax(logits[:, -1], axis=-1).astype(jnp.int32)

        def step(state, _):
            cache, token = state
            logits, cache = advance(model.config, params, cache, "text", token[:, None], jnp.ones((rows,), jnp.int32))
            return (cache, jnp.argmax(logits[:, 0], axis=-1).astype(jnp.int32)), token

        return jax.lax.scan(step, (cache, first), length=NEW)[1].T

    return np.asarray(run(model.params, prompt))


@pytest.mark.parametrize("name", _cases(slow=False))
def test_the_way_back_gives_the_same_tensors_and_configuration(tiny, tmp_path, name):
    folder, _ = tiny(name)
    plan = from_hf.plan(folder)
    write_tower(plan, tmp_path / "tower", "text", vocabulary(plan.tower.vocab_size), "test")
    back = to_hf.plan(Reader(tmp_path / "tower"), "text", plan.tower)
    to_hf.write(back, tmp_path / "back")
    before, after = load_file(folder / FILE), load_file(tmp_path / "back" / FILE)
    assert after.keys() == before.keys() - plan.left_out.keys()
    for key, tensor in after.items():
        assert tensor.dtype == before[key].dtype
        assert tensor.tobytes() == before[key].tobytes(), key
    again = from_hf.plan(tmp_path / "back")
    assert again.tower == plan.tower
    assert json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == plan.config["model_type"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "pythia", "gemma2"])
def test_bfloat16_stays_bfloat16_bit_by_bit(tiny, tmp_path, name):
    folder, _ = tiny(name, "bfloat16")
    plan = from_hf.plan(folder)
    write_tower(plan, tmp_path / "tower", "text", vocabulary(plan.tower.vocab_size), "test")
    reader = Reader(tmp_path / "tower")
    assert {str(reader.dtype(leaf)) for leaf in reader.names} == {"bfloat16"}
    to_hf.write(to_hf.plan(reader, "text", plan.tower), tmp_path / "back")
    before, after = load_file(folder / FILE), load_file(tmp_path / "back" / FILE)
    for key, tensor in after.items():
        assert str(tensor.dtype) == "bfloat16"
        assert tensor.tobytes() == before[key].tobytes(), key


@pytest.mark.parametrize("name", ["llama 3.1, biases", "gemma2", "gemma3", "qwen3", "pythia", "opt"])
def test_transformers_computes_the_same_from_what_we_write(converted, tmp_path, name):
    import torch
    import transformers

    theirs, ours, plan = converted(name)
    to_hf.write(to_hf.plan(Loaded(ours.params), "text", plan.tower), tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager")
    tokens = torch.from_numpy(tiny_hf.random_tokens(2, LENGTH).astype(np.int64))
    with torch.no_grad():
        wanted, found = theirs(tokens).logits, again(tokens).logits
    # The same code on the same weights; scalings come back from their float64 values, so a last bit may differ.
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_a_pass_over_a_cache_in_pieces_is_the_full_pass(converted):
    """Windows, two RoPE bases and soft caps in caches of rows of unequal lengths."""
    _, ours, _ = converted("gemma3")
    tokens = tiny_hf.random_tokens(2, 24)
    wanted = verify.our_logits(ours, "text")(tokens)
    step = jax.jit(partial(advance, ours.config), static_argnames=("tower",))
    cache = init_cache(ours.config, 2, {"text": 32})
    done = np.zeros(2, int)
    for counts in ([5, 1], [0, 9], [8, 3], [11, 11]):
        piece = np.zeros((2, 11), np.int32)
        for row, count in enumerate(counts):
            piece[row, :count] = tokens[row, done[row] : done[row] + count]
        logits, cache = step(ours.params, cache, "text", piece, np.array(counts, np.int32))
        for row, count in enumerate(counts):
            here = wanted[row, done[row] : done[row] + count]
            np.testing.assert_allclose(logits[row, :count], here, atol=1e-4, rtol=1e-4)
        done += counts
    assert done.tolist() == [24, 24]
