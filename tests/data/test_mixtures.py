import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipper_jax.data import mixtures
from zipper_jax.data.mixtures import BLOCK, RowMixture, batches, permutation
from zipper_jax.data.packed_rows import Counts
from zipper_jax.sequences import Place, fill_template
from zipper_jax.tasks import PAPER_RATES, TASKS
from zipper_jax.utils.errors import UserError

LAYOUT = {"text": Place("text", 0, 30, 31, 32), "speech": Place("speech", 0, 30, 31, 32)}
GOLDEN_PERMUTATION = [0, 5, 4, 7, 9, 3, 6, 8, 1, 2]
GOLDEN_ROWS = [(0, 5), (0, 2), (1, 8), (0, 1), (1, 1), (1, 6)]
LENGTHS = {"text": 8, "speech": 8}


class FakeRows:
    """``size`` rows; row i holds one example whose text says i."""

    def __init__(self, size, task="asr"):
        task = TASKS.get(task, TASKS["asr"])
        content = {"text": np.arange(2), "speech": np.arange(3)}
        self.rows = [[fill_template(task, {**content, "text": np.array([i % 30])})] for i in range(size)]
        counts = Counts()
        for row in self.rows:
            counts.add(row)
        self.meta = counts.describe()

    def __len__(self):
        return len(self.rows)

    def fetch(self, indices):
        pass

    def row(self, index):
        return self.rows[index]


def mixture(sizes=(7, 11), seed=3, rates=PAPER_RATES):
    return RowMixture({task: FakeRows(size, task) for task, size in zip(rates, sizes)}, rates, seed)


def test_paper_rates_are_exact_in_every_block():
    mix = mixture()
    assert mix.counts == {"asr": 453, "tts": 571}
    for block in (0, 1, 1000):
        drawn = Counter(mix.row(n)[0] for n in range(block * BLOCK, (block + 1) * BLOCK))
        assert drawn == {0: 453, 1: 571}


@given(st.dictionaries(st.text("abcdef", min_size=1), st.floats(1, 100), min_size=1, max_size=5))
def test_shares_add_up_and_are_nearest(rates):
    scale = sum(rates.values())
    mix = mixture([3] * len(rates), rates=rates)
    assert sum(mix.counts.values()) == BLOCK
    for task, count in mix.counts.items():
        assert abs(count - rates[task] / scale * BLOCK) < 1


@given(st.integers(-5, 2**40), st.integers(0, 6))
def test_every_row_once_per_epoch(seed, epoch):
    mix = mixture((5, 9), seed)
    visits = {0: [], 1: []}
    for n in range(BLOCK):
        task, row = mix.row(n)
        visits[task].append(row)
    for task, size in ((0, 5), (1, 9)):
        assert sorted(visits[task][epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_continue_over_blocks():
    mix = mixture((400, 3000))
    rows = [row for task, row in map(mix.row, range(BLOCK * 11)) if task == 1]
    for epoch in range(2):
        assert sorted(rows[epoch * 3000 : (epoch + 1) * 3000]) == list(range(3000))


USED = mixture()


@given(st.lists(st.integers(0, 10**12), max_size=20))
def test_a_pure_function_of_seed_and_n(draws):
    fresh = mixture()
    assert [fresh.row(n) for n in draws] == [USED.row(n) for n in draws]


def test_orders_differ_by_seed_epoch_block_and_task():
    assert [mixture(seed=1).row(n) for n in range(50)] != [mixture(seed=2).row(n) for n in range(50)]
    one = mixture((200, 200))
    epochs = [tuple(one._epoch(task, epoch)) for task in (0, 1) for epoch in (0, 1)]
    assert len(set(epochs)) == 4
    assert not np.array_equal(one._block(0)[0], one._block(1)[0])


def test_orders_do_not_change_with_versions():
    """A stored run must resume on the same rows: these numbers must never change."""
    assert permutation(10, 7, 1, 2).tolist() == GOLDEN_PERMUTATION
    assert [mixture().row(n) for n in (0, 1, 2, 1023, 1024, 10**9)] == GOLDEN_ROWS


def test_adding_a_task_leaves_the_others_orders_alone():
    two, three = mixture(), mixture((7, 4, 11), rates={"asr": 1.0, "a": 1.0, "tts": 1.0})
    assert np.array_equal(two._epoch(1, 5), three._epoch(2, 5))


def test_memory_does_not_grow():
    mix = mixture()
    for n in range(0, 10**9, 10**6):
        mix.row(n)
    assert mix._block.cache_info().currsize <= 4
    assert mix._epoch.cache_info().currsize <= 6


def assert_same(a, b):
    assert np.array_equal(a["task"], b["task"])
    for tower in a["towers"]:
        for x, y in zip(a["towers"][tower], b["towers"][tower], strict=True):
            assert np.array_equal(x, y)


@pytest.mark.parametrize("ahead", [0, 2])
def test_resuming_anywhere_gives_the_same_batches(ahead):
    with batches(mixture(), LAYOUT, LENGTHS, 4, ahead=ahead) as run:
        whole = [run.get(step) for step in range(12)]
        for step in (5, 0, 11, 11):  # jumps and repeats
            assert_same(run.get(step), whole[step])
    for start in (0, 3, 11):
        with batches(mixture(), LAYOUT, LENGTHS, 4, ahead=ahead) as resumed:
            for step in range(start, 12):
                assert_same(resumed.get(step), whole[step])


def test_batches_hold_the_drawn_rows():
    mix = mixture()
    with batches(mix, LAYOUT, LENGTHS, 4) as run:
        batch = run.get(2)
    assert batch["task"].dtype == np.int32
    assert batch["task"].tolist() == [mix.row(n)[0] for n in range(8, 12)]
    said = batch["towers"]["text"].tokens[:, 1]
    assert said.tolist() == [mix.examples([n])[1][0][0][1 if mix.row(n)[0] == 0 else 0].tokens[0] for n in range(8, 12)]


def test_a_tasks_tokens_weigh_what_is_asked():
    mix = mixture()
    with batches(mix, LAYOUT, LENGTHS, 8) as plain, batches(mix, LAYOUT, LENGTHS, 8, {"asr": 2.5}) as heavy:
        for step in range(3):
            before, after = plain.get(step), heavy.get(step)
            factor = np.where(np.array(mix.tasks)[before["task"]] == "asr", 2.5, 1.0)[:, None]
            for tower in ("text", "speech"):
                assert np.array_equal(after["towers"][tower].weights, before["towers"][tower].weights * factor)
                assert np.array_equal(after["towers"][tower].tokens, before["towers"][tower].tokens)


@pytest.mark.parametrize("ahead", [0, 2])
def test_the_rows_of_all_processes_together_are_the_batch(ahead):
    parts = ([0, 1, 2], [3, 4, 5], [6, 7]), ([0, 2, 4, 6], [1, 3, 5, 7]), ([5],)
    with batches(mixture(), LAYOUT, LENGTHS, 8, {"asr": 2.5}, ahead=ahead) as run:
        whole = [run.get(step) for step in range(4)]
        for rows in (rows for group in parts for rows in group):
            with run.only(rows) as own:
                for step in (0, 1, 3, 2):
                    found = own.get(step)
                    assert found["task"].tolist() == whole[step]["task"][rows].tolist()
                    for tower, batch in found["towers"].items():
                        for mine, all_of_them in zip(batch, whole[step]["towers"][tower], strict=True):
                            np.testing.assert_array_equal(mine, all_of_them[rows])
                    assert_same(own.whole(step), whole[step])


def test_a_process_reads_its_own_rows_alone():
    mix, read = mixture(), []
    for name, store in mix.stores.items():
        row = store.row
        store.row = lambda index, name=name, row=row: (read.append((name, index)), row(index))[1]
    batches(mix, LAYOUT, LENGTHS, 8, ahead=0).only([2, 5]).get(3)
    assert read == [(mix.tasks[task], index) for task, index in (mix.row(26), mix.row(29))]


def test_batch_size_does_not_change_the_order_of_rows():
    with batches(mixture(), LAYOUT, LENGTHS, 6) as big, batches(mixture(), LAYOUT, LENGTHS, 2) as small:
        parts = [small.get(step)["towers"]["text"].tokens for step in range(3)]
        assert np.array_equal(big.get(0)["towers"]["text"].tokens, np.concatenate(parts))


def test_an_error_in_the_thread_reaches_the_caller_and_close_ends_it(monkeypatch):
    def fail(*args):
        raise UserError("broken row")

    run = batches(mixture(), LAYOUT, LENGTHS, 4)
    before = run.get(0)
    monkeypatch.setattr(mixtures, "rows_to_towers", fail)
    with pytest.raises(UserError, match="broken row"):
        run.get(100)
    monkeypatch.undo()
    run.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]
    assert_same(run.get(0), before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RowMixture({}, {}, 0), "at least one task"),
        (lambda: RowMixture({"asr": FakeRows(3)}, {"arr": 1.0}, 0), "did you mean 'asr'"),
        (lambda: RowMixture({"asr": FakeRows(3), "tts": FakeRows(3)}, {"asr": 1.0}, 0), "no rate"),
        (lambda: RowMixture({"asr": FakeRows(0)}, {"asr": 1.0}, 0), "has no rows"),
        (lambda: mixture(rates={"asr": 1.0, "tts": 0.0}), "positive number"),
        (lambda: mixture(rates={"asr": 1.0, "tts": float("nan")}), "positive number"),
        (lambda: mixture(rates={"asr": 5000.0, "tts": 1.0}), "less than one row in 1024"),
        (lambda: batches(mixture(), LAYOUT, LENGTHS, 0), "BATCH_SIZE = 0"),
        (lambda: batches(mixture(), LAYOUT, {"text": 8}, 2), "no length for tower 'speech'"),
        (
            lambda: batches(mixture(), LAYOUT, {"text": 8, "speech": 4}, 2),
            r"\['speech'\] = 4: .*up to 5",
        ),
        (lambda: batches(mixture(), {"text": LAYOUT["text"]}, LENGTHS, 2), "the model lacks"),
    ],
)
def test_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()
