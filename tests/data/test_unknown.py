"""Text that a vocabulary lacks: counted by split, refused past a share, shown as what is trained on."""

import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from logged import logged
from making_sources import SENTENCES, write

from zipper_jax.cli import main as cli
from zipper_jax.data.inspect import inspect
from zipper_jax.data.prepare_examples import write_examples
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.unknown import count_unknown
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import ByteVocabulary, HuggingFaceVocabulary, SymbolVocabulary, train_sentencepiece


@pytest.fixture(scope="module")
def lower_case(tmp_path_factory):
    """A folder with a vocabulary of lower-case prose."""
    home = tmp_path_factory.mktemp("v")
    train_sentencepiece(SENTENCES, 64).save(home / "vocabularies" / "text")
    return home


def corpus(folder, train, test=("open the door",)):
    rows = [{"id": f"{split}{n}", "split": split, "text": text} for split, texts in (("train", train), ("test", test))
            for n, text in enumerate(texts)]  # fmt: skip
    write(folder / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_capitals_are_refused_by_a_lower_case_vocabulary(tmp_path, capsys, lower_case):
    """As LibriSpeech has them."""
    source = corpus(tmp_path / "c", [sentence.upper() for sentence in SENTENCES])
    out = tmp_path / "p"
    arguments = ["data", "prepare", "--corpus", str(source), "--out", str(out), "--text_vocabulary", str(lower_case)]
    assert cli.main(arguments) == 2
    count, first = "36 of 72 text tokens of split train are unknown to the vocabulary", "first: row 'train0', 'OPEN'"
    printed = capsys.readouterr().err
    assert f"error: max_unknown = 0.01: {count} (50.0%; {first}); fit a vocabulary on this text (omit" in printed
    assert not out.exists()  # other settings need no --overwrite

    settings = PrepareSettings(text_vocabulary=str(lower_case), max_unknown=0.6)
    with logged() as lines:
        write_examples(source, out, settings, False, 1)
    assert f"{count} (50.0%; {first})" in lines
    assert not any("split test are unknown" in line for line in lines)
    shown = list(inspect(out, 1))
    assert f"{count} (50.0%; {first})" in shown
    place = shown.index("example train0:  \u2047   \u2047   \u2047 ")
    assert shown[place + 1] == "  its text, which the vocabulary cannot represent: OPEN THE DOOR"


def test_a_held_out_split_is_checked_against_a_vocabulary_fitted_on_training(tmp_path):
    source = corpus(tmp_path / "c", SENTENCES, ["open the door", *10 * ["öffne the door"]])
    settings = PrepareSettings(text_vocabulary_size=64)
    with pytest.raises(UserError, match=r"10 of \d+ text tokens of split test are unknown.*first: row 'test1', 'öff'"):
        write_examples(source, tmp_path / "p", settings, False, 1)
    write_examples(source, tmp_path / "p", PrepareSettings(text_vocabulary_size=64, max_unknown=0.5), False, 1)
    few = corpus(tmp_path / "few", SENTENCES, ["öffne the door"])
    with logged() as lines:
        write_examples(few, tmp_path / "q", settings, False, 1)
    assert any(line.startswith("1 of ") and "split test are unknown" in line for line in lines)
    with pytest.raises(UserError, match=r"max_unknown = 1\.5: give a share from 0 to 1"):
        PrepareSettings(max_unknown=1.5)


def word_level(**options):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"open": 0, "the": 1, "[UNK]": 2}, **options))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return HuggingFaceVocabulary({"tokenizer.json": made.to_str().encode()}, 5, 3, 4)


def character_bpe():
    """Without an unknown token: what it lacks is dropped."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE({"o": 0, "p": 1, "e": 2, "n": 3}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return HuggingFaceVocabulary({"tokenizer.json": made.to_str().encode()}, 6, 4, 5)


@pytest.mark.parametrize(
    "vocabulary, text, unknown",
    [
        (ByteVocabulary(), "Öffne 你好", []),
        (SymbolVocabulary(["HH", "AH"]), "HH AX AH ZZ", ["AX", "ZZ"]),
        (word_level(unk_token="[UNK]"), "open the door", ["door"]),
        (character_bpe(), "open Xe", ["Xe"]),
        (train_sentencepiece(SENTENCES, 64), "Open the door!", ["O", "!"]),
    ],
)
def test_every_kind_of_vocabulary_names_what_it_lacks(vocabulary, text, unknown):
    assert vocabulary.unknown(text) == unknown
    found = count_unknown([{"id": "a", "split": "train", "x": text}], "x", vocabulary)["train"]
    assert found.lacking == len(unknown)
    assert 0 <= found.share <= 1


VOCABULARY = train_sentencepiece(SENTENCES, 64)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_what_is_not_reported_survives(text):
    """No loss without a report, but for spaces at the ends."""
    if not VOCABULARY.unknown(text):
        assert VOCABULARY.decode(VOCABULARY.encode(text)).strip() == text.replace("\u2581", " ").strip()
