"""Training the choice of the next modality: the rules of a run hold, and a choice that words decide is learned."""

import itertools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from running import log, params, run
from tiny_models import SPEECH, TEXT, zipper_model

import zipper_jax
from zipper_jax.checkpoint.tools import export
from zipper_jax.cli.main import main
from zipper_jax.data.packed_rows import write_rows
from zipper_jax.models import zipper
from zipper_jax.models.choice import choice_of, loss_terms
from zipper_jax.sequences import Span, make_layout, rows_to_towers
from zipper_jax.sharding.mesh import MeshConfig
from zipper_jax.training.config import DataConfig, SaveCheckpointConfig
from zipper_jax.training.data_source import open_data
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.training.partition_tree import FreezeConfig
from zipper_jax.training.program import build
from zipper_jax.training.step import loss_and_gradients
from zipper_jax.utils import trees
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import UnitVocabulary


def choosing():
    return replace(zipper_model(), next_modality=True)


def test_a_run_trains_heads_freezes_stops_resumes_and_is_exported(zipper_run, tmp_path, capsys):
    """Rules 3 and 6, bitwise; the heads' losses are reported beside those of towers and tasks, not in them."""
    config = zipper_run(
        model=choosing(), freeze=FreezeConfig(towers=("text",)), save=SaveCheckpointConfig(period=2), steps=4,
        eval_period=2,
    )  # fmt: skip
    run(config)
    start = trees.flatten(zipper.init_params(config.model, config.seed))
    moved = {path for path, leaf in params(config).items() if (leaf != start[path]).any()}
    assert not {path for path in moved if path.startswith("towers/text/")}
    assert {path for path in moved if path.startswith("next_modality/")} == {
        f"next_modality/{tower}/{leaf}" for tower in ("text", "speech") for leaf in ("kernel", "bias")
    }
    parts = replace(config, model_dir=str(tmp_path / "parts"))
    run(replace(parts, steps=2, optimizer=config.optimizer))
    run(parts)
    assert log(parts) == log(config)
    for line in log(config):
        terms = [*line["towers"].values(), *line["next_modality"].values()]
        assert set(line["next_modality"]) == {"text", "speech"}
        assert line["loss"] == pytest.approx(sum(term["loss"] for term in terms), rel=1e-5)
        in_tasks, in_towers = (
            sum(part["loss"] * part["tokens"] for part in line[group].values()) for group in ("tasks", "towers")
        )
        assert in_tasks == pytest.approx(in_towers, rel=1e-5)
    export(config.model_dir, str(tmp_path / "exported"))
    prompts = [{"prompt": [[modality, [3, 3]]]} for modality in ("text", "speech")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    given = ["--outputs", "auto", "--max_spans", "2", "--input", str(tmp_path / "prompts.jsonl")]
    capsys.readouterr()
    assert main(["generate", "--model", str(tmp_path / "exported"), *given]) == 0
    rows = [json.loads(line)["generated"] for line in capsys.readouterr().out.splitlines()]
    assert any(rows)
    for row in rows:
        chosen = [span["next_modality"] for span in row]
        assert chosen[:-1] == [span["modality"] for span in row[1:]]
        assert len(row) == 2 or not row or chosen[-1] is None


def test_weights_of_tasks_do_not_scale_choices(zipper_run):
    """They balance tokens of modalities; of end tokens every example has equally many."""
    plain = zipper_run(model=choosing())
    weighted = replace(plain, data=replace(plain.data, task_weights={"asr": 3.0}))
    before, after = (loss_terms(open_data(config).batches.get(0)["towers"]) for config in (plain, weighted))
    assert before.keys() == after.keys() == {"text", "speech", choice_of("text"), choice_of("speech")}
    np.testing.assert_array_equal(after["text"], 3.0 * before["text"])  # targets of ASR
    for name in ("speech", choice_of("text"), choice_of("speech")):
        np.testing.assert_array_equal(after[name], before[name])
        assert np.sum(before[name]) > 0


@pytest.mark.slow
def test_a_run_without_heads_is_the_same_as_with_weight_0(zipper_run, tmp_path):
    """What is trained besides the heads is what is trained without them."""
    plain = zipper_run(steps=3)
    run(plain)
    config = replace(plain, model=choosing(), next_modality_weight=0.0, model_dir=str(tmp_path / "heads"))
    run(config)
    assert not any("next_modality" in line for line in log(plain))
    found = params(config)
    for path, leaf in params(plain).items():
        np.testing.assert_allclose(found[path], leaf, atol=1e-6, err_msg=path)
    start = trees.flatten(zipper.init_params(config.model, config.seed))
    assert all((found[path] == start[path]).all() for path in found if path.startswith("next_modality/"))


def test_a_weight_that_is_no_weight_is_an_error(zipper_run):
    with pytest.raises(UserError, match=r"next_modality_weight=-1.0: give 0 \(not trained\) or more"):
        zipper_run(next_modality_weight=-1.0)


def _layout():
    vocabularies = {"text": UnitVocabulary(TEXT - 2, 25.0), "speech": UnitVocabulary(SPEECH - 2, 25.0)}
    return make_layout(zipper_model().modalities, vocabularies)


def _examples():
    """Twelve examples of different orders, several spans of one modality included."""
    rng, examples = np.random.default_rng(3), []
    orders = [("text",), ("speech", "text"), ("text", "speech", "text"), ("speech", "speech"), ("text", "text")]
    for order in itertools.islice(itertools.cycle(orders), 12):
        spans = [
            Span(m, rng.integers(0, 20, rng.integers(0, 3)).astype(np.int32), float(rng.integers(2))) for m in order
        ]
        examples.append(tuple(spans))
    return examples


@pytest.mark.parametrize(("mesh", "microbatches"), [(MeshConfig(data=1), 4), (MeshConfig(data=2, fsdp=2, tensor=2), 1)])
def test_any_mesh_packing_and_accumulation_give_one_loss_and_gradient(zipper_run, mesh, microbatches):
    """Rule 5, choices included: 12 examples in 4 packed rows, or one to a row on one device at once."""
    examples, layout, lengths = _examples(), _layout(), {"text": 48, "speech": 48}
    params = zipper.init_params(choosing(), 0)

    def losses(rows, mesh, microbatches):
        rows = [*rows, *[[]] * (-len(rows) % 4)]
        batch = {"towers": rows_to_towers(rows, layout, lengths), "task": np.zeros(len(rows), np.int32)}
        data = DataConfig("unused", "asr", lengths)
        config = zipper_run(
            model=choosing(), mesh=mesh, batch_size=len(rows), microbatches=microbatches, data=data,
            next_modality_weight=0.5,
        )  # fmt: skip
        built = build(config, 1)
        state = built.start(params)
        weights = config.term_weights

        def of(trainable):
            of_batch = {"num_tasks": 1, "loss_weights": weights, "microbatches": microbatches}
            return loss_and_gradients(built.losses, trainable, {}, batch, **of_batch)

        return jax.device_get(jax.jit(of)(state.trainable))

    one, apart, wanted = losses([[e] for e in examples], MeshConfig(data=1), 1)
    packed, sums, gradients = losses([examples[i : i + 3] for i in range(0, 12, 3)], mesh, microbatches)
    np.testing.assert_allclose(packed, one, rtol=1e-5)
    assert apart.keys() == sums.keys() == {"text", "speech", "text/next_modality", "speech/next_modality"}
    for name, found in sums.items():
        np.testing.assert_allclose(found, apart[name], rtol=1e-5)
    assert float(sums["text/next_modality"].weight[0]) == sum(s.modality == "text" for e in examples for s in e)
    for path, leaf in gradients.items():
        np.testing.assert_allclose(leaf, wanted[path], atol=2e-5, err_msg=path)
    assert np.abs(gradients["next_modality/text/kernel"]).max() > 1e-3


# ---- a choice that words decide --------------------------------------------------------------------------------------

ASKED_ALOUD = ("say", "tell", "speak", "voice", "aloud")
ASKED_IN_WRITING = ("write", "note", "type", "spell", "print")
OTHER = ("please", "me", "what", "is", "the", "time", "news", "now", "you", "today")
WORDS = (*OTHER, *ASKED_ALOUD, *ASKED_IN_WRITING)


def _questions(rng, count, phrasings, shuffled=False):
    """(words of a question, the modality it asks for): a phrasing with a tag anywhere in it."""
    found = []
    for _ in range(count):
        aloud = bool(rng.integers(2))
        words = list(phrasings[rng.integers(len(phrasings))])
        words.insert(int(rng.integers(len(words) + 1)), str(rng.choice(ASKED_ALOUD if aloud else ASKED_IN_WRITING)))
        found.append((words, "speech" if (bool(rng.integers(2)) if shuffled else aloud) else "text"))
    return found


def _ids(words):
    return np.array([WORDS.index(word) for word in words], np.int32)


def _answers(folder, zipper_run, model_dir, shuffled, steps, questions, asked=200):
    """Trains on questions, each answered in the modality it asks for (or, ``shuffled``, in any); share of held-out
    questions whose first span has the modality that their tag asks for, and of all rows that then end."""
    rng = np.random.default_rng(0)
    phrasings = list({tuple(map(str, rng.choice(OTHER, rng.integers(2, 5)))) for _ in range(400)})
    known, held_out = phrasings[:200], phrasings[200:]
    assert len(held_out) > 100
    for name, size in (("text", TEXT), ("speech", SPEECH)):
        UnitVocabulary(num_units=size - 2, rate_hz=25.0).save(folder / "vocabularies" / name)
    rows = [
        [(Span("text", _ids(words), 0.0), Span(modality, rng.integers(0, 20, 2).astype(np.int32), 1.0))]
        for words, modality in _questions(rng, questions, known, shuffled)
    ]
    write_rows(folder / "rows" / "asr" / "train", rows, {"task": "asr"})
    config = zipper_run(
        model=choosing(), data=DataConfig(str(folder), "asr", {"text": 16, "speech": 8}), model_dir=str(model_dir),
        steps=steps, batch_size=32, optimizer=OptimizerConfig(learning_rate=1e-2), log_period=50,
        save=SaveCheckpointConfig(period=steps),
    )  # fmt: skip
    run(config)
    model = zipper_jax.load(config.model_dir)
    test = _questions(rng, asked, held_out)
    spans = model.generate_tokens([[("text", _ids(words))] for words, _ in test], "auto", max_spans=3, batch_size=200)
    right = [bool(row) and row[0].modality == modality for row, (_, modality) in zip(spans, test, strict=True)]
    return np.mean(right), np.mean([len(row) == 1 and row[0].next_modality is None for row in spans])


@pytest.mark.slow
def test_a_choice_that_words_decide_is_learned(tmp_path, zipper_run):
    """A question asks for speech or for text by one of its words; the phrasings of the test were held out."""
    right, ends = _answers(tmp_path / "data", zipper_run, tmp_path / "run", False, steps=150, questions=2000)
    print(f"asked for, of held-out phrasings: {right:.1%}; ended after one answer: {ends:.1%}")
    assert right >= 0.99
    assert ends >= 0.99


def test_a_choice_whose_tags_are_shuffled_is_chance(tmp_path, zipper_run):
    right, ends = _answers(
        tmp_path / "data", zipper_run, tmp_path / "run", True, steps=150, questions=2000, asked=400
    )  # fmt: skip
    print(f"asked for, of held-out phrasings: {right:.1%}; ended after one answer: {ends:.1%}")
    assert 0.4 <= right <= 0.6  # four standard deviations of 400 fair draws
    assert ends >= 0.99
