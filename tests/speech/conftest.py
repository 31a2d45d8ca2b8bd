"""Real audio for the speech tests: one engine, one small tokenizer, made once per worker."""

import random

import pytest

from zipper_jax.speech import grammar, synthesis
from zipper_jax.speech.audio import trim_silence
from zipper_jax.speech.judge import Judge
from zipper_jax.speech.tokenizer import UnitTokenizer


@pytest.fixture(scope="session")
def engine():
    if not synthesis.available_engines():
        pytest.skip("neither flite's libraries nor the espeakng-loader wheel are installed")
    return synthesis.find_engine()


@pytest.fixture(scope="session")
def speech(engine):
    """Ten sentences and their audio, by one voice."""
    rng = random.Random(7)
    sentences = [grammar.sample(rng) for _ in range(10)]
    voice = engine.default_voices[0]
    return sentences, [trim_silence(engine.say(text, voice, engine.default_rate)) for text in sentences]


@pytest.fixture(scope="session")
def tokenizer(speech):
    return UnitTokenizer.fit(speech[1], num_units=128)


@pytest.fixture(scope="session")
def judge():
    return Judge(grammar.jsgf())
