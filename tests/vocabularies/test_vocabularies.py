import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import (
    ByteVocabulary,
    SentencePieceVocabulary,
    SymbolVocabulary,
    UnitVocabulary,
    Vocabulary,
    load_vocabulary,
    train_sentencepiece,
)

WORDS = ["set", "turn", "the", "lamp", "heater", "to", "on", "off", "zero", "one", "two", "three", "nine", "please"]
SENTENCES = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS[:4]]
TEXT = train_sentencepiece(SENTENCES, 64)


@given(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join))
def test_sentencepiece_round_trip(sentence):
    ids = TEXT.encode(sentence)
    assert ids.dtype == np.int32
    assert not np.isin(ids, [TEXT.begin_id, TEXT.end_id]).any()
    assert (ids >= 0).all()
    assert (ids < TEXT.size).all()
    assert TEXT.decode([TEXT.begin_id, *ids, TEXT.end_id]) == sentence


@given(st.text("ab \0\n\u00e9\u6f22\U0001f642"))
def test_bytes_round_trip(text):
    vocabulary = ByteVocabulary()
    ids = vocabulary.encode(text)
    assert vocabulary.decode([vocabulary.begin_id, *ids, vocabulary.end_id]) == text


@given(st.lists(st.integers(0, 63)))
def test_units_round_trip(units):
    vocabulary = UnitVocabulary(64, 25)
    ids = vocabulary.encode(units)
    assert ids.tolist() == units
    assert vocabulary.decode([vocabulary.begin_id, *ids, vocabulary.end_id]).tolist() == units


def test_units_are_the_papers():
    vocabulary = UnitVocabulary(1024, 25)
    assert (vocabulary.begin_id, vocabulary.end_id, vocabulary.size) == (1024, 1025, 1026)


@pytest.mark.parametrize(
    "vocabulary", [TEXT, ByteVocabulary(), UnitVocabulary(64, 12.5, "codebook")], ids=lambda v: v.kind
)
def test_save_and_load(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "v")
    loaded = load_vocabulary(tmp_path / "v")
    assert isinstance(loaded, Vocabulary)
    assert isinstance(loaded, type(vocabulary))
    for name in ("kind", "size", "begin_id", "end_id", "digest"):
        assert getattr(loaded, name) == getattr(vocabulary, name)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("size", [24, 64, 300])
def test_trained_size_is_exact_and_training_deterministic(size):
    first, second = (train_sentencepiece(SENTENCES, size) for _ in range(2))
    assert first.size == size
    assert first.digest == second.digest
    assert first.decode(first.encode("turn the lamp")) == "turn the lamp"
    assert first.encode("<unused_0>").max() < size


def test_long_sentences_are_fitted_on():
    vocabulary = train_sentencepiece([*["abc abc"] * 50, *["ü" * 10 + "é" * 4200] * 3], 24)
    assert vocabulary.decode(vocabulary.encode("éa")) == "éa"
    assert vocabulary.decode(vocabulary.encode("ü")) == "ü"


def test_digests_differ():
    units = (UnitVocabulary(64, 25), UnitVocabulary(64, 50), UnitVocabulary(64, 25, "a"), UnitVocabulary(64, 25, "b"))
    digests = {v.digest for v in (TEXT, ByteVocabulary(), *units)}
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UnitVocabulary(4, 25).encode([4]), "unit 4 is outside 0 to 3"),
        (lambda: UnitVocabulary(4, 25).encode([-1]), "unit -1"),
        (lambda: UnitVocabulary(0, 25), "num_units = 0"),
        (lambda: UnitVocabulary(4, 0), "rate_hz = 0"),
        (lambda: ByteVocabulary().decode([300]), "token 300 is outside"),
        (lambda: TEXT.decode([64]), "token 64 is outside"),
        (lambda: SentencePieceVocabulary(b"junk"), "not a sentencepiece model"),
        (lambda: train_sentencepiece([], 64), "no sentence"),
        (lambda: train_sentencepiece(["abc def"], 4), "text_vocabulary_size = 4"),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_load_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_vocabulary(tmp_path)
    path = tmp_path / "vocabulary.json"
    path.write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_vocabulary(tmp_path)
    path.write_text(json.dumps({"kind": "klingon", "size": 3, "begin_id": 1, "end_id": 2, "digest": ""}))
    with pytest.raises(UserError, match="klingon"):
        load_vocabulary(tmp_path)
    UnitVocabulary(64, 25).save(tmp_path)
    path.write_text(path.read_text().replace('"num_units": 64', '"num_units": 65'))
    with pytest.raises(UserError, match="has changed since"):
        load_vocabulary(tmp_path)


def test_symbols_are_listed_and_what_is_none_of_them_is_unknown(tmp_path):
    vocabulary = SymbolVocabulary.list_from(["HH AH L OW", "W ER L D"])
    assert vocabulary.symbols == ("AH", "D", "ER", "HH", "L", "OW", "W")
    assert (vocabulary.begin_id, vocabulary.end_id, vocabulary.size) == (8, 9, 10)
    assert vocabulary.encode("L  ZH AH").tolist() == [4, 7, 0]
    assert vocabulary.decode([8, 4, 7, 0, 9]) == "L <unk> AH"
    vocabulary.save(tmp_path / "v")
    loaded = load_vocabulary(tmp_path / "v")
    assert (loaded.symbols, loaded.digest) == (vocabulary.symbols, vocabulary.digest)
    for wrong in ([], ["a", "a"], ["a b"], ["<unk>"]):
        with pytest.raises(UserError):
            SymbolVocabulary(wrong)
    with pytest.raises(UserError, match="token 10 is outside 0 to 9"):
        vocabulary.decode([10])
