"""Word times of flite, in the manifest of a synthesised corpus, and an interleaved task made of it."""

import numpy as np
import pytest

from zipper_jax.data.prepare_rows import prepare
from zipper_jax.data.prepare_settings import PrepareSettings
from zipper_jax.speech import flite
from zipper_jax.speech.audio import SAMPLE_RATE, load_audio
from zipper_jax.speech.corpus import CorpusSettings, synthesise_corpus
from zipper_jax.speech.manifest import read_manifest
from zipper_jax.speech.word_times import require
from zipper_jax.tasks import Interleaving, TaskConfig, TaskSet
from zipper_jax.utils.errors import UserError

needs_flite = pytest.mark.skipif(not flite.is_available(), reason="flite is not installed")
TEXT = "stop it, no no, seven twenty-two cats"


@needs_flite
@pytest.mark.parametrize("voice", flite.FliteEngine.voices)
@pytest.mark.parametrize("rate", [1.0, 1.4])
def test_flite_says_each_word_when_it_says_so(voice, rate):
    """Pauses between the words' times are quiet, the words are not; equal neighbours are two words."""
    engine = flite.open_engine()
    times, samples = np.array(engine.word_times(TEXT, voice, rate)), engine.say(TEXT, voice, rate)
    assert times.shape == (len(TEXT.split()), 2)
    assert (np.diff(times.reshape(-1)) >= 0).all()
    assert times[-1, 1] <= len(samples) / SAMPLE_RATE

    def level(start, end):
        return float(np.sqrt(np.mean(np.square(samples[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]))))

    pauses = [(a, b) for a, b in zip(times[:-1, 1], times[1:, 0], strict=True) if b - a > 0.02]
    assert len(pauses) == 2  # at the commas
    quietest = min(level(start, end) for start, end in times)
    for start, end in pauses:
        middle = (start + end) / 2
        assert level(middle - 0.02, middle + 0.02) < 0.2 * quietest
    np.testing.assert_array_equal(samples, engine.say(TEXT, voice, rate))  # asking changed nothing


@needs_flite
def test_words_that_flite_reads_as_others_have_no_times():
    engine = flite.open_engine()
    assert engine.word_times("stop - now", "slt") == []  # a dash is written, and not spoken
    assert len(engine.word_times("a 22", "slt")) == 2  # two words spoken, one written


def test_an_engine_without_word_times_is_an_error():
    class Silent:
        name, voices, default_voices, default_rate, without_pitch = "silent", (), (), 1.0, ()

        def say(self, text, voice, rate=1.0, pitch=1.0):
            raise NotImplementedError

    with pytest.raises(
        UserError, match="word_times = 'engine': silent does not report when it says which word; give --e"
    ):
        require(Silent())


@needs_flite
def test_a_synthesised_corpus_becomes_an_interleaved_task(tmp_path):
    """Times of the manifest are those of the trimmed audio: words are loud there, and cut units make up the audio's."""
    settings = CorpusSettings(train=12, validation=2, test=2, test_other=2, engine="flite", word_times="engine")
    corpus = synthesise_corpus(tmp_path / "corpus", settings, processes=1)
    rows = read_manifest(corpus)
    for row in rows:
        times = np.array(row["word_times"])
        assert times.shape == (len(row["text"].split()), 2)
        assert (np.diff(times.reshape(-1)) >= 0).all()
        assert times[-1, 1] <= row["seconds"] + 0.01
        waveform = load_audio(corpus / row["audio"])
        assert times[0, 0] < 0.06  # trimmed to 40 ms of silence
        levels = [np.abs(waveform[int(a * SAMPLE_RATE) : int(b * SAMPLE_RATE)]).max() for a, b in times]
        assert min(levels) > 0.02 * np.abs(waveform).max()
    plain = synthesise_corpus(tmp_path / "plain", CorpusSettings(2, 1, 1, 1, engine="flite"), processes=1)
    assert not any("word_times" in row for row in read_manifest(plain))
    task = TaskConfig((("text", 1.0), ("speech", 1.0)), Interleaving({"text": 0.5, "speech": 0.5}, copies=2))
    mixed = TaskSet(tasks={"mixed": task})
    how = PrepareSettings(
        num_units=16, unit_features="log-mel", text_vocabulary="bytes", tasks=("mixed",), task_set=mixed
    )
    metas = prepare(corpus, tmp_path / "prepared", how, processes=1)
    assert metas["mixed", "train"]["examples"] == 24
    assert metas["mixed", "train"]["dropped"]["not_aligned"] == 0
