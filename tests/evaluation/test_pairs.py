"""Likelihoods of pairs: the float64 definition, known preferences, controls, and files."""

import dataclasses
import json

import numpy as np
import pytest
import reference
from tiny_run import tone, write_run

from zipper_jax.cli.main import main
from zipper_jax.evaluation.pairs import Pair, _example, _scores, evaluate_pairs, read_pairs
from zipper_jax.inference.model import Model
from zipper_jax.models.config import ModalityConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.models.zipper import init_params
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import ByteVocabulary, UnitVocabulary

SIZES = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 16}


@pytest.fixture(scope="module")
def model():
    text, units = ByteVocabulary(), UnitVocabulary(12, 25.0)
    config = ZipperConfig(
        towers={n: TowerConfig(v.size, 1, 16, **SIZES) for n, v in (("text", text), ("speech", units))},
        modalities={n: ModalityConfig(n, v.size) for n, v in (("text", text), ("speech", units))},
        zips=(ZipConfig(("speech", "text"), pairs=((1, 1),), gate_init=1.0),),
    )
    vocabularies = {"text": text, "speech": units}
    return Model(config, init_params(config, 0), vocabularies, {"text": 16, "speech": 16})


def random_spans(rng, most=2):
    modalities = rng.choice(["text", "speech"], rng.integers(1, most + 1))
    return [(str(m), rng.integers(0, 12, rng.integers(0, 70)).astype(np.int32)) for m in modalities]


def log_likelihood(model, prompt, own):
    """Of the content and end tokens of the spans ``own``, in float64."""
    example = _example(prompt, own)
    logits = reference.logits(model.config, model.params, example, model.layout)
    used, total, tokens = dict.fromkeys(logits, 0), 0.0, 0
    for number_of_span, span in enumerate(example):
        place = model.layout[span.modality]
        ids = [place.begin, *span.tokens, place.end]
        first = used[place.tower]
        for number, token in enumerate(ids[1:]):
            row = logits[place.tower][first + number]
            if number_of_span >= len(prompt):  # not of the prompt
                total += row[place.offset + token] - np.log(np.exp(row - row.max()).sum()) - row.max()
                tokens += 1
        used[place.tower] += len(ids)
    return total, tokens


def test_scores_are_those_of_the_definition(model):
    rng = np.random.default_rng(0)
    pairs = [Pair(random_spans(rng) if n % 2 else [], random_spans(rng), random_spans(rng), "") for n in range(6)]
    for pair, scores in zip(pairs, _scores(model, pairs, 4, "pairs"), strict=True):
        for own, score in zip((pair.good, pair.bad), scores, strict=True):
            total, tokens = log_likelihood(model, pair.prompt, own)
            assert score.tokens == tokens
            assert score.total == pytest.approx(total, abs=2e-5 * tokens + 1e-4)  # float32 sums


def test_the_batch_does_not_matter(model):
    rng = np.random.default_rng(1)
    pairs = [Pair([], random_spans(rng), random_spans(rng), "") for _ in range(5)]
    for one, other in zip(_scores(model, pairs, 1, "pairs"), _scores(model, pairs, 16, "pairs"), strict=True):
        np.testing.assert_allclose([s.total for s in one], [s.total for s in other], rtol=1e-5)


def test_accuracies_and_their_controls(model, tmp_path):
    """Units that the model itself prefers, after prompts of other pairs too: the answers are known."""
    rng = np.random.default_rng(2)
    pairs = []
    for number in range(12):
        one, other = random_spans(rng, 1), random_spans(rng, 1)
        (a, _), (b, _) = log_likelihood(model, [], one), log_likelihood(model, [], other)
        pairs.append(Pair([], *((one, other) if a > b else (other, one)), f"group {number % 2}"))
        pairs.append(Pair([], one, one, "equal"))
    found = evaluate_pairs(model, pairs, tmp_path)
    assert found == json.loads((tmp_path / "pairs.json").read_text())
    assert found["accuracy"]["pairs"] == pytest.approx(0.75)  # half of them right, half of them equal
    assert found["groups"]["equal"] == {"pairs": 12, "accuracy": 0.5, "accuracy_per_token": 0.5}
    assert found["groups"]["group 0"]["accuracy"] == found["groups"]["group 1"]["accuracy"] == 1.0
    assert found["accuracy"]["another pair's prompt"] == "not possible: no pair has a prompt"
    reversed_pairs = [pair._replace(good=pair.bad, bad=pair.good) for pair in pairs]
    assert evaluate_pairs(model, reversed_pairs, tmp_path)["accuracy"]["pairs"] == pytest.approx(0.25)
    prompted = [pair._replace(prompt=random_spans(rng)) for pair in pairs]
    assert 0 <= evaluate_pairs(model, prompted, tmp_path)["accuracy"]["another pair's prompt"] <= 1


def test_only_order_tells_shuffled_tokens_apart(model, tmp_path):
    """Alternatives of the same tokens in another order: where order is taken away, nothing but chance is left."""
    rng = np.random.default_rng(3)
    pairs = []
    for _ in range(150):
        tokens = rng.permutation(12).astype(np.int32)
        orders = [[("speech", rng.permutation(tokens))] for _ in range(2)]
        pairs.append(Pair([], *sorted(orders, key=lambda own: -log_likelihood(model, [], own)[0]), ""))
    found = evaluate_pairs(model, pairs, tmp_path)["accuracy"]
    assert found["pairs"] == 1.0
    assert 0.38 < found["tokens in random order"] < 0.62  # three standard deviations of 150 throws


def test_a_control_that_does_not_fit_costs_no_result(model, tmp_path, monkeypatch):
    """Another pair's prompt may be longer than the model's positions: the control says so."""
    rng = np.random.default_rng(4)
    pairs = [Pair([("text", np.full(n, 3, np.int32))], random_spans(rng, 1), random_spans(rng, 1), "") for n in (1, 90)]
    text = dataclasses.replace(model.config.towers["text"], positions="learned", max_positions=170)
    config = dataclasses.replace(model.config, towers={**model.config.towers, "text": text})
    learned = Model(config, init_params(config, 0), model.vocabularies, {"text": 16, "speech": 16})
    pairs[0] = pairs[0]._replace(good=[("text", np.full(100, 3, np.int32))])
    found = evaluate_pairs(learned, pairs, tmp_path)["accuracy"]
    assert 0 <= found["pairs"] <= 1
    assert found["another pair's prompt"].startswith("not possible: ")
    assert "170" in found["another pair's prompt"]
    with pytest.raises(UserError, match="--batch_size = 0: give at least 1"):
        evaluate_pairs(model, pairs, tmp_path, batch_size=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("pairs"))


def test_the_command_line(run, tmp_path, capsys):
    tone(tmp_path / "a.wav", 16_000, 1)
    rows = [
        {"good": "go on", "bad": "no og", "group": "words"},
        {"prompt": [["text", "on"]], "good": [["speech", [1, 2, 3]]], "bad": [["speech", "a.wav"]]},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        main(["eval", "--run", str(run), "--pairs", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "o")]) == 0
    )
    shown = capsys.readouterr().out
    assert "2 pairs: how often the right one is likelier (chance 50.0 %)" in shown
    assert all(words in shown for words in ("tokens in random order", "another pair's prompt", "  words", "pairs.json"))
    assert len(json.loads((tmp_path / "o" / "pairs.json").read_text())["scores"]) == 2
    assert main(["eval", "--run", str(run), "--pairs", "x", "--split", "test", "--out", str(tmp_path / "o")]) == 2
    assert "--split cannot be combined with --pairs" in capsys.readouterr().err
    assert main(["eval", "--run", str(run), "--out", str(tmp_path / "o")]) == 2
    assert "--data is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, message",
    [
        ({"good": "a"}, r"line 1: bad is missing"),
        ({"good": "a", "bad": 3}, r"line 1: bad = 3: expected a string or a list"),
        ({"good": "a", "bad": []}, r"line 1: an alternative has no spans"),
        ({"good": "a", "bad": [["smell", "b"]]}, r"line 1: .*smell"),
        ({"good": "a", "bad": [["speech", "no.wav"]]}, r"line 1: audio file .*no\.wav' does not exist"),
        ({"good": "a", "bad": [["speech", [900]]]}, r"line 1: .*900"),
        ({"good": "a", "bad": "b", "promt": "c"}, r"line 1: there is no field 'promt'; did you mean 'prompt'"),
    ],
)
def test_bad_lines_are_named(run, line, message, tmp_path):
    from zipper_jax import load

    (tmp_path / "pairs.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match=message):
        read_pairs(tmp_path / "pairs.jsonl", load(run))
    (tmp_path / "pairs.jsonl").write_text("")
    with pytest.raises(UserError, match="there is no pair in it"):
        read_pairs(tmp_path / "pairs.jsonl", load(run))
