"""From examples to TowerBatches: every position holds what the linear sequence holds, and nothing is cut or lost."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import PAIR_LAYOUT, TRIO_LAYOUT, random_rows

from zipper_jax.models.config import ModalityConfig
from zipper_jax.sequences import Place, Span, fill_template, make_layout, rows_to_towers, tower_lengths
from zipper_jax.tasks import TASKS
from zipper_jax.utils.errors import UserError

LENGTHS = {"text": 18, "speech": 30, "image": 16}


@dataclasses.dataclass
class FakeVocabulary:
    size: int
    begin_id: int
    end_id: int


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(1, 5))
@settings(max_examples=100)
def test_every_slot(seed, longest, most_spans):
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 2, TRIO_LAYOUT, LENGTHS, longest=longest, most_spans=most_spans)
    towers = rows_to_towers(rows, TRIO_LAYOUT, LENGTHS)
    for b, row in enumerate(rows):
        used = dict.fromkeys(LENGTHS, 0)
        for segment, example in enumerate(row, start=1):
            position, local = 0, dict.fromkeys(LENGTHS, 0)
            following = [*(1 + sorted(TRIO_LAYOUT).index(span.modality) for span in example[1:]), 1 + len(TRIO_LAYOUT)]
            for span, then in zip(example, following, strict=True):
                place = TRIO_LAYOUT[span.modality]
                batch = towers[place.tower]
                ids = [place.begin, *(int(t) for t in span.tokens), place.end]
                for number, token in enumerate(ids):
                    slot = b, used[place.tower]
                    assert batch.tokens[slot] == token + place.offset
                    assert batch.global_positions[slot] == position
                    assert batch.local_positions[slot] == local[place.tower]
                    assert batch.segment_ids[slot] == segment
                    last = number == len(ids) - 1
                    assert batch.weights[slot] == (0 if last else span.weight)
                    assert batch.next_modality[slot] == (then if last else 0)
                    if not last:
                        assert batch.targets[slot] == ids[number + 1] + place.offset
                    position += 1
                    local[place.tower] += 1
                    used[place.tower] += 1
            assert local == tower_lengths(example, TRIO_LAYOUT)
        for tower, batch in towers.items():
            for field in batch:
                assert field.shape == (2, LENGTHS[tower])
                assert (field[b, used[tower] :] == 0).all()
            starts = batch.targets[b][batch.weights[b] > 0]
            begins = {p.begin + p.offset for p in TRIO_LAYOUT.values() if p.tower == tower}
            assert not begins & set(starts.tolist()), "a begin token is a target"
    for batch in towers.values():
        assert {x.dtype for x in batch} == {np.dtype(np.int32), np.dtype(np.float32)}
        assert batch.weights.dtype == np.float32


def test_templates():
    contents = {"text": np.array([3, 4]), "speech": np.array([5])}
    asr, tts = fill_template(TASKS["asr"], contents), fill_template(TASKS["tts"], contents)
    assert [(s.modality, s.weight) for s in asr] == [("speech", 0.0), ("text", 1.0)]
    assert [(s.modality, s.weight) for s in tts] == [("text", 0.0), ("speech", 1.0)]
    assert asr[1].tokens.tolist() == [3, 4]
    assert set(TASKS) == {"asr", "tts", "text_lm", "speech_lm"}


def test_a_row_that_does_not_fit_is_an_error_and_never_truncated():
    example = (Span("text", np.arange(3, 9, dtype=np.int32), 1.0),)
    assert rows_to_towers([[example]], PAIR_LAYOUT, {"text": 8, "speech": 4})["text"].segment_ids.sum() == 8
    with pytest.raises(UserError, match="needs 8 positions in tower 'text' but TASK_FEATURE_LENGTHS gives it 7"):
        rows_to_towers([[example]], PAIR_LAYOUT, {"text": 7, "speech": 4})


@pytest.mark.parametrize("token", [-1, 19, 23])
def test_tokens_outside_their_vocabulary(token):
    example = (Span("speech", np.array([0, token, 18], np.int32), 1.0),)
    with pytest.raises(UserError, match=f"speech token {token} is outside"):
        rows_to_towers([[example]], PAIR_LAYOUT, {"text": 9, "speech": 9})


def test_layout_joins_model_and_vocabularies():
    modalities = {"a": ModalityConfig("x", 10, 3)}
    assert make_layout(modalities, {"a": FakeVocabulary(10, 8, 9)}) == {"a": Place("x", 3, 8, 9, 10)}
    with pytest.raises(UserError, match="'a' has no vocabulary"):
        make_layout(modalities, {"b": FakeVocabulary(10, 8, 9)})
    with pytest.raises(UserError, match="the model has a vocabulary of 10 tokens, the given vocabulary has 11"):
        make_layout(modalities, {"a": FakeVocabulary(11, 8, 9)})
