"""Interleaved tasks: alignments in, spans cut between words, nothing lost or doubled, packed like all else."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making_sources import write

from zipper_jax.cli import main as cli
from zipper_jax.data import alignments, interleave
from zipper_jax.data.alignments import Word
from zipper_jax.data.import_corpus import import_corpus
from zipper_jax.data.packed_rows import RowStore
from zipper_jax.data.prepare_rows import prepare
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.data.prepared import read_examples, read_vocabularies
from zipper_jax.data.sources.rows import ImportSettings
from zipper_jax.metrics.normalisers import TextForm
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.tasks import DataModality, Interleaving, TaskConfig, TaskSet
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import UnitVocabulary

RATE = 25.0
BOTH = (("text", 1.0), ("speech", 1.0))


def task_set(**changes):
    switch = {"text": 0.5, "speech": 0.5}
    return TaskSet(tasks={"mixed": TaskConfig(BOTH, Interleaving(**{"switch": switch, **changes}))})


class Words(UnitVocabulary):
    """A vocabulary whose ids are the words, which are numbers, or units themselves: to see what was cut."""

    def encode(self, content):
        numbers = content.split() if isinstance(content, str) else content
        return np.array([int(number) for number in numbers], np.int32)


WORDS = {"text": Words(1000, RATE), "speech": Words(1000, RATE)}


@st.composite
def utterances(draw):
    """(times of words [W, 2], units U, offset): pauses, words without length, audio that ends early or late."""
    words = draw(st.integers(1, 12))
    steps = draw(st.lists(st.sampled_from([0.0, 0.01, 0.04, 0.1, 0.33, 1.0]), min_size=2 * words, max_size=2 * words))
    times = np.cumsum(steps).reshape(words, 2)
    units = draw(st.integers(1, 1 + int(RATE * times[-1, 1]) + 10))
    return times, units, draw(st.sampled_from([0.0, 0.01, 0.03]))


@given(
    utterances(),
    st.integers(0, 2**32 - 1),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.05]),
)
@settings(max_examples=300)
def test_spans_together_have_every_word_and_every_unit_once(utterance, seed, switch, words, pause):
    times, units, offset = utterance
    tasks = task_set(switch=dict(zip(("text", "speech"), switch, strict=True)), words=words, pause=pause, seed=seed)
    count = len(times)
    row = {
        "id": "x", "shift": 0, "text": " ".join(map(str, range(count))), "units": np.arange(units),
        "word_times": times.tolist(),
    }  # fmt: skip
    made = interleave.interleaved(tasks.tasks["mixed"], tasks, WORDS, row, RATE, offset, 0)
    bounds = interleave.unit_bounds(times, units, RATE, offset)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, units, count + 1)
    assert (np.diff(bounds) >= 0).all()
    word = unit = 0
    for number, span in enumerate(made):
        assert len(span.tokens) > 0
        tokens = span.tokens.tolist()
        if span.modality == "text":
            assert tokens == list(range(word, word + len(tokens)))
            word += len(tokens)
            unit = int(bounds[word])
        else:
            assert tokens == list(range(unit, unit + len(tokens)))
            unit += len(tokens)
            ends = [w for w in range(word + 1, count + 1) if bounds[w] == unit]
            assert ends, "a span of speech ends inside a word"
            word = count if number == len(made) - 1 else _next_word(made, number, ends)
    assert (word, unit) == (count, units)
    assert all(a.modality != b.modality for a, b in itertools.pairwise(made))


def _next_word(made, number, ends):
    """Where the next span begins: a text span says it; spans alternate, so the next one is text."""
    first = int(made[number + 1].tokens[0])
    assert first in ends
    return first


@given(utterances(), st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([0.0, 0.05, 0.5]))
@settings(max_examples=200)
def test_cuts_partition_the_words_where_spans_may_end(utterance, seed, words, pause):
    """Also with three modalities; a span has at least so many words and a unit, and ends at a pause that is long."""
    times, units, offset = utterance
    names = ("text", "speech", "tags")
    bounds = interleave.unit_bounds(times, units, RATE, offset)
    rule = Interleaving(dict.fromkeys(names, 0.7), words=words, pause=pause)
    cuts = interleave.cut(rule, names, times, bounds, interleave.uniforms(seed))
    assert [cut.first for cut in cuts] == [0, *(cut.last for cut in cuts[:-1])]
    assert cuts[-1].last == len(times)
    for one, other in itertools.pairwise(cuts):
        assert one.modality != other.modality
        assert times[other.first, 0] - times[one.last - 1, 1] >= pause
    for cut in cuts:
        assert cut.last - cut.first >= min(words, len(times))
        assert bounds[cut.first] < bounds[cut.last]


def test_words_part_in_the_middle_of_a_pause():
    """Units of 40 ms; 0.5 s of silence between the words belong half to each, what is outside to the nearest word."""
    times = np.array([[0.2, 0.4], [0.9, 1.2]])
    np.testing.assert_array_equal(interleave.unit_bounds(times, 40, RATE), [0, 16, 40])  # 0.65 s: unit 16.25
    np.testing.assert_array_equal(interleave.unit_bounds(times, 40, RATE, offset=0.03), [0, 16, 40])  # 15.5, to even
    np.testing.assert_array_equal(interleave.unit_bounds(times, 10, RATE), [0, 10, 10])  # the audio ends before


def test_draws_are_a_function_of_their_key():
    """Bit by bit what they were: stored rows and their digests depend on it."""
    draws = list(itertools.islice(interleave.uniforms(0, "a", 0, 0), 3))
    assert draws == list(itertools.islice(interleave.uniforms(0, "a", 0, 0), 3))
    assert draws != list(itertools.islice(interleave.uniforms(0, "a", 0, 1), 3))
    many = np.array(list(itertools.islice(interleave.uniforms(1), 4000)))
    assert ((many >= 0) & (many < 1)).all()
    assert abs(many.mean() - 0.5) < 0.02
    assert draws == [0.5773101170950777, 0.8829875506954551, 0.9253274466107698]


def test_copies_of_an_utterance_are_cut_differently():
    tasks = task_set(copies=20)
    text, times = " ".join(map(str, range(8))), np.arange(16.0).reshape(8, 2).tolist()
    row = {"id": "x", "shift": 0, "text": text, "units": np.arange(400), "word_times": times}
    made = list(interleave.examples("mixed", tasks, WORDS, [row], RATE, 1))
    assert len({tuple((span.modality, len(span.tokens)) for span in example) for example in made}) > 10
    assert len(made) == 20


def test_a_span_ends_as_often_as_asked():
    """Switching probabilities per modality: the mean length of its spans is their inverse."""
    times = np.arange(4000, dtype=np.float64).reshape(-1, 2)
    rule = Interleaving({"text": 0.25, "speech": 0.5})
    bounds = interleave.unit_bounds(times, 100_000, RATE)
    cuts = interleave.cut(rule, ("text", "speech"), times, bounds, interleave.uniforms(0))
    for modality, wanted in (("text", 4.0), ("speech", 2.0)):
        assert np.mean([c.last - c.first for c in cuts if c.modality == modality]) == pytest.approx(wanted, rel=0.15)


# ---- alignments ------------------------------------------------------------------------------------------------------

TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.2
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.2
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.2
            text = ""
        intervals [2]:
            xmin = 0.2
            xmax = 0.5
            text = "open"
        intervals [3]:
            xmin = 0.5
            xmax = 1.2
            text = "doors"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.2
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1.2
            text = "OW1"
"""
OPEN_DOORS = [Word("open", 0.2, 0.5), Word("doors", 0.5, 1.2)]


def test_three_formats_give_the_same_words(tmp_path):
    ctm = write(tmp_path / "a.ctm", ";; comment\nu/1 1 0.2 0.3 open 0.9\nu/1 1 0.5 0.7 doors\n\nu/1 1 1.2 0.1 <eps>\n")
    grids = tmp_path / "grids"
    write(grids / "u" / "1.TextGrid", TEXTGRID)
    write(grids / "u2.TextGrid", TEXTGRID.encode("utf-16"))
    line = json.dumps({"id": "u/1", "words": [["", 0, 0.2], ["open", 0.2, 0.5], ["doors", 0.5, 1.2]], "text": "-"})
    lines = write(tmp_path / "a.jsonl", line + "\n")
    for path in (ctm, lines):
        (name, words), *rest = alignments.read(path).items()
        assert (name, rest) == ("u-1", [])
        assert [w.word for w in words] == ["open", "doors"]
        np.testing.assert_allclose([w[1:] for w in words], [w[1:] for w in OPEN_DOORS])
    assert alignments.read(grids) == {"u-1": OPEN_DOORS, "1": OPEN_DOORS, "u2": OPEN_DOORS}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.ctm", "u1 1 0.2 x open\n", "a.ctm' line 1: 'u1 1 0.2 x open' is not ID CHANNEL START SECONDS WORD"),
        ("a.ctm", "\n;; nothing\n", "a.ctm': it has no word; give a file or folder of .ctm"),
        ("a.TextGrid", "no tiers", "a.TextGrid': there is no tier of intervals called 'words'"),
        ("a.TextGrid", TEXTGRID.replace("xmin = 0.2", "xmin = ?"), "a.TextGrid': an interval of 'words' has no time"),
        ("a.jsonl", '{"id": "u", "words": [["a", 0.1]]}\n', "a.jsonl' line 1: words[0]"),
        ("a.jsonl", '{"id": "u", "words": [["a", -1, 2]]}\n', "a.jsonl' line 1: words[0][1] = -1: expected"),
        ("a.txt", "x", "a.txt': its ending is unknown; give .ctm, .TextGrid, .jsonl"),
    ],
)
def test_alignments_of_another_form_are_an_error(tmp_path, name, content, message):
    with pytest.raises(UserError) as error:
        alignments.read(write(tmp_path / name, content))
    assert message in str(error.value)
    with pytest.raises(UserError, match="it does not exist; check the path"):
        alignments.read(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "words", "seconds", "problem"),
    [
        ("Open doors!", OPEN_DOORS, 1.2, ""),
        ("Open - doors", OPEN_DOORS, 1.2, ""),
        ("open doors", None, 1.2, "not in the alignments"),
        ("open door", OPEN_DOORS, 1.2, "words that differ from the alignment's"),
        ("open", OPEN_DOORS, 1.2, "words that differ from the alignment's"),
        ("open doors now", OPEN_DOORS, 1.2, "words that differ from the alignment's"),
        ("doors open", OPEN_DOORS[::-1], 1.2, "word times out of order"),
        ("open doors", [Word("open", 0.5, 0.2), Word("doors", 0.5, 1.2)], 1.2, "word times out of order"),
        ("open doors", [Word("open", float("nan"), 0.2), Word("doors", 0.5, 1.2)], 1.2, "word times out of order"),
        ("open doors", OPEN_DOORS, 1.0, "word times beyond the audio"),
    ],
)
def test_times_fit_the_text_or_say_why_not(text, words, seconds, problem):
    times, found = alignments.times_of(text, words, seconds, TextForm())
    assert found == problem
    assert len(times) == (0 if problem else len(text.split()))
    if not problem:
        assert (times[0], times[-1]) == ([0.2, 0.5], [0.5, 1.2])


# ---- from the source to packed rows ----------------------------------------------------------------------------------

NAMES = ("open", "close", "the", "door", "window", "please", "now")


def source(folder, rows=60, lacking=()):
    """Units whose number says which word they belong to: word w of row r has units 10 * w to 10 * w + 9 (mod 100)."""
    random, lines, words = np.random.default_rng(0), [], []
    for number in range(rows):
        said = [str(w) for w in random.choice(NAMES, random.integers(2, 7))] + [f"n{number}"]
        lengths = random.integers(3, 9, len(said))
        units = [10 * w % 100 + i for w, n in enumerate(lengths) for i in range(n)]
        ends = np.cumsum(lengths) / RATE
        split = "validation" if number % 10 == 8 else "test" if number % 10 == 9 else "train"
        lines.append({"id": f"r{number}", "text": " ".join(said), "units": units, "split": split})
        if number not in lacking:
            timed = [[w, e - n / RATE, e] for w, n, e in zip(said, lengths, ends.tolist(), strict=True)]
            words.append({"id": f"r{number}", "words": timed})
    write(folder / "header.json", json.dumps({"num_units": 100, "rate_hz": RATE}))
    write(folder / "words.jsonl", "".join(json.dumps(line) + "\n" for line in words))
    return write(folder / "units.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def corpus(folder, **options):
    path = source(folder / "source", **options)
    imported = import_corpus(
        "units",
        [path],
        folder / "corpus",
        ImportSettings(alignments=str(folder / "source" / "words.jsonl")),
        processes=1,
    )
    return folder / "corpus", imported


def settings_of(**changes):
    return PrepareSettings(text_vocabulary="bytes", tasks=("mixed",), task_set=task_set(**changes))


def stored(folder, split):
    store = RowStore(folder / "rows" / "mixed" / split)
    return store.meta, [example for r in range(len(store)) for example in store.row(r)]


def said(example, vocabularies):
    """The words of an example, those of units by what the units say: (word or index of a word) in order."""
    found = []
    for span in example:
        if span.modality == "text":
            found += vocabularies["text"].decode(span.tokens).split()
        else:
            units = vocabularies["speech"].decode(span.tokens)
            found += [index for index, _ in itertools.groupby(int(u) // 10 for u in units)]
    return found


def _is_said(sentence, words):
    """A word is there as itself, or as the last digit of its index."""
    return len(sentence) == len(words) and all(
        word in (own, index % 10) for index, (own, word) in enumerate(zip(sentence, words, strict=True))
    )


def test_packed_rows_hold_each_utterance_in_pieces_and_no_other_split(tmp_path):
    """Rows of training, read back, are the words of the training sentences in order; of the test's there are none."""
    place, header = corpus(tmp_path, lacking=(3, 11))
    assert header["aligned"] == 58
    assert header["unaligned"] == {
        "not in the alignments": {"count": 2, "first": f"{tmp_path / 'source' / 'units.jsonl'}:4"}
    }
    metas = prepare(place, tmp_path / "prepared", settings_of(copies=2), processes=1)
    manifest, vocabularies = {row["id"]: row for row in read_manifest(place)}, read_vocabularies(tmp_path / "prepared")
    assert metas["mixed", "train"]["dropped"] == {"empty": 0, "too_long": 0, "not_aligned": 2}
    for split in ("train", "validation", "test"):
        meta, examples = stored(tmp_path / "prepared", split)
        aligned = [row for row in manifest.values() if row["split"] == split and "word_times" in row]
        assert len(examples) == meta["examples"] == 2 * len(aligned)
        assert len({tuple(span.modality for span in example) for example in examples}) > 4
        wanted = {tuple(row["text"].split()) for row in aligned}
        for example in examples:
            words = said(example, vocabularies)
            fits = [sentence for sentence in wanted if _is_said(sentence, words)]
            assert fits, (split, words)
    # The same again, whatever is prepared with it or before it.
    again = prepare(place, tmp_path / "again", settings_of(copies=2), processes=1)
    assert again["mixed", "train"]["made_with"] == metas["mixed", "train"]["made_with"]
    for name in ("tokens.npy", "spans.npy"):
        paths = (tmp_path / folder / "rows" / "mixed" / "train" / name for folder in ("prepared", "again"))
        assert len({path.read_bytes() for path in paths}) == 1
    other = prepare(place, tmp_path / "other", settings_of(copies=2, seed=1), processes=1)
    assert other["mixed", "train"]["made_with"] != metas["mixed", "train"]["made_with"]


def test_a_corpus_without_word_times_cannot_be_interleaved(tmp_path):
    path = source(tmp_path / "source")
    import_corpus("units", [path], tmp_path / "corpus", ImportSettings(), processes=1)
    with pytest.raises(
        UserError, match=r"tasks: 'mixed' is interleaved, but none of \d+ examples has word times; import"
    ):
        prepare(tmp_path / "corpus", tmp_path / "prepared", settings_of(), processes=1)


def test_only_training_needs_word_times(tmp_path):
    """Held-out splits without any are not interleaved; training without any is an error."""
    held_out = [number for number in range(60) if number % 10 in (8, 9)]
    place, _ = corpus(tmp_path, lacking=held_out)
    metas = prepare(place, tmp_path / "prepared", settings_of(), processes=1)
    assert {key: meta["examples"] for key, meta in metas.items()} == {("mixed", "train"): 48}
    assert prepare(place, tmp_path / "prepared", settings_of(), processes=1) == metas
    place, _ = corpus(tmp_path / "other", lacking=[number for number in range(60) if number not in held_out])
    with pytest.raises(UserError, match="none of 48 examples has word times"):
        prepare(place, tmp_path / "other_prepared", settings_of(), processes=1)


def test_alignments_of_other_rows_are_an_error_and_strict_refuses_gaps(tmp_path):
    path = source(tmp_path / "source", lacking=(3,))
    words = tmp_path / "source" / "words.jsonl"
    with pytest.raises(UserError, match="--strict, and rows have no word times: 1 not in the alignments"):
        import_corpus("units", [path], tmp_path / "c", ImportSettings(alignments=str(words)), strict=True, processes=1)
    write(words, json.dumps({"id": "elsewhere", "words": [["a", 0, 1]]}) + "\n")
    with pytest.raises(UserError, match=r"they are of none of the 60 rows \(60 not in the alignments .*'elsewhere'"):
        import_corpus("units", [path], tmp_path / "c", ImportSettings(alignments=str(words)), processes=1)


def test_the_command_line_imports_prepares_and_inspects(tmp_path, capsys):
    """The commands of docs/interleaving.md, with gin/tasks/interleaved.gin."""
    path = source(tmp_path / "source")
    data, prepared = str(tmp_path / "corpus"), str(tmp_path / "prepared")
    words = str(tmp_path / "source" / "words.jsonl")
    assert cli.main(["data", "import", "units", str(path), "--alignments", words, "--out", data]) == 0
    arguments = ["--text_vocabulary=bytes", "--tasks=interleaved", "--gin_file=tasks/interleaved.gin", "--processes=1"]
    assert cli.main(["data", "prepare", "--corpus", data, "--out", prepared, *arguments]) == 0
    logged = capsys.readouterr().err
    assert "word times: 60 rows; without: none" in logged
    assert "interleaved/train: 96 examples" in logged
    assert cli.main(["data", "inspect", prepared]) == 0


def test_shifted_audio_is_cut_where_its_units_begin():
    """The last of four encodings begins 30 ms later, so that the second word's first unit is the one before."""
    tasks = task_set(switch={"text": 1.0, "speech": 1.0})
    row = {"id": "x", "text": "0 1", "units": np.arange(20), "word_times": [[0.0, 0.405], [0.405, 0.8]]}
    edges = {}
    for shift in (0, 3):
        (example,) = interleave.examples("mixed", tasks, WORDS, [row | {"shift": shift}], RATE, 4)
        (speech,) = (span.tokens.tolist() for span in example if span.modality == "speech")
        edges[shift] = speech[0] or speech[-1] + 1
    assert edges == {0: 10, 3: 9}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Interleaving({"text": 1.5}), r"Interleaving.switch\['text'\] = 1.5: give a probability"),
        (lambda: Interleaving({}, words=0), "Interleaving.words = 0: give at least 1"),
        (lambda: Interleaving({}, copies=0), "Interleaving.copies = 0: give at least 1"),
        (lambda: Interleaving({}, pause=-1.0), "Interleaving.pause = -1.0: give 0"),
        (lambda: TaskConfig(BOTH, Interleaving({"text": 0.5})), "give the probability of each modality of TaskConfig"),
        (lambda: TaskConfig(BOTH[:1], Interleaving({"text": 0.5})), "two or more: text"),
        (
            lambda: TaskSet(
                modalities={"codes": DataModality("codes", "units")},
                tasks={"x": TaskConfig((("text", 1.0), ("codes", 1.0)), Interleaving({"text": 0.5, "codes": 0.5}))},
            ),
            "'codes' cannot be interleaved: its units have no times",
        ),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_errors(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_examples_keep_their_word_times(tmp_path):
    place, _ = corpus(tmp_path)
    prepare(place, tmp_path / "prepared", settings_of(), processes=1)
    times = {row["id"]: row["word_times"] for row in read_manifest(place)}
    for row in read_examples(tmp_path / "prepared", "train"):
        assert row["word_times"] == times[row["id"]]
        assert row["units"].dtype == np.int32
