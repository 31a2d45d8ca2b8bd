"""seqio tasks and the mixture over a prepared folder. This module imports TensorFlow (7 s): import it late.

One seqio task per task of the folder's `TaskSet` whose modalities it has, with a feature per modality, content only:
one example per utterance that has them all. Of ours: text_lm, speech_lm, asr, tts; and the mixture asr_tts of the last
two at the paper's rates.

Begin and end tokens, order and loss weights are not seqio's business: they come from the task's spans
(`zipper_jax.tasks.TaskConfig`). Nothing is trimmed or padded here either.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.data.tensorflow_logging import quiet_stderr
from zipper_jax.utils.interrupts import interruptible

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with interruptible(), quiet_stderr():  # a dozen lines about CUDA and oneDNN that no setting silences
    import seqio
    import tensorflow as tf

    # TensorFlow only reads data here; by default it would take a whole GPU from JAX.
    tf.config.set_visible_devices([], "GPU")

from zipper_jax.data import prepared
from zipper_jax.metrics.task_metrics import metrics_of
from zipper_jax.tasks import SPEECH, TaskSet
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import UnitVocabulary, Vocabulary


class SeqioVocabulary(seqio.Vocabulary):
    """One of our vocabularies where seqio expects its own.

    seqio takes id 0 for padding; with us 0 is a token, and no code here lets seqio pad.
    """

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self.vocabulary = vocabulary
        self._is_text = isinstance(vocabulary.decode([]), str)

    @property
    def bos_id(self) -> int:
        return self.vocabulary.begin_id

    @property
    def eos_id(self) -> int:
        return self.vocabulary.end_id

    @property
    def unk_id(self) -> None:
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.vocabulary.size

    def _encode(self, s: Any) -> list[int]:
        return self.vocabulary.encode(s).tolist()

    def _decode(self, ids: Any) -> Any:
        return self.vocabulary.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        if isinstance(self.vocabulary, UnitVocabulary):  # a call of Python for each example takes its time
            units = self.vocabulary.num_units
            outside = tf.logical_or(s < 0, s >= units)
            message = f"a unit lies outside 0 to {units - 1}: was another tokenizer used?"
            with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(outside), [message, s])]):
                return tf.cast(s, tf.int32) + self.vocabulary.first

        def encode(content: Any) -> np.ndarray:
            # Text comes as bytes, or wrapped in an array when called eagerly.
            return self.vocabulary.encode(np.asarray(content).item().decode())

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(row: np.ndarray) -> Any:
            content = self.vocabulary.decode(row)
            return content.encode() if self._is_text else content

        return tf.numpy_function(decode, [ids], tf.string if self._is_text else tf.int32, stateful=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self.vocabulary.digest == other.vocabulary.digest

    def __hash__(self) -> int:
        return hash(self.vocabulary.digest)


def register(folder: Any, prefix: str = "") -> dict[str, str]:
    """Registers the tasks and mixtures of a prepared folder with seqio, as ``prefix + name``; returns name -> that.

    Registering again replaces: the last folder counts. Give each folder a prefix to use several at a time.
    """
    folder = Path(folder)
    vocabularies, task_set = prepared.read_vocabularies(folder), prepared.read_task_set(folder)
    names = {}
    for task, config in task_set.tasks.items():
        modalities = config.modalities
        if not set(modalities) <= set(vocabularies):
            continue
        names[task] = prefix + task
        seqio.TaskRegistry.remove(names[task])
        seqio.TaskRegistry.add(
            names[task],
            source=_source(folder, modalities, task_set),
            preprocessors=[seqio.preprocessors.tokenize],
            output_features={
                modality: seqio.Feature(SeqioVocabulary(vocabularies[modality]), add_eos=False, dtype=tf.int32)
                for modality in modalities
            },
            metric_fns=list(metrics_of(task_set, task)),
        )
    for mixture, rates in task_set.mixtures.items():
        # seqio mixes tasks of the same features only; our own mixtures of packed rows know no such limit.
        features = {frozenset(task_set.tasks[task].modalities) for task in rates}
        if set(rates) <= set(names) and len(features) == 1:
            names[mixture] = prefix + mixture
            seqio.MixtureRegistry.remove(names[mixture])
            seqio.MixtureRegistry.add(names[mixture], [(names[task], rate) for task, rate in rates.items()])
    return names


def examples(name: str, split: str) -> Any:
    """Iterates a registered task's split in order, once: {modality: int32 content tokens}.

    Raises:
      UserError: an unknown task, or a split that it lacks.
    """
    known = seqio.TaskRegistry.names()
    if name not in known:
        raise UserError(f"no seqio task is called {name!r}{closest(name, known)}")
    task = seqio.TaskRegistry.get(name)
    if split not in task.splits:
        raise UserError(f"task {name!r} has no split {split!r}{closest(split, task.splits)}")
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1)
    features = list(task.output_features)
    # In blocks, because every element that leaves TensorFlow takes a tenth of a millisecond for each feature.
    for block in dataset.ragged_batch(256):
        columns = [(np.asarray(block[m].values, np.int32), block[m].row_splits.numpy()) for m in features]
        for i in range(len(columns[0][1]) - 1):
            yield {m: values[at[i] : at[i + 1]] for m, (values, at) in zip(features, columns, strict=True)}


def _source(folder: Path, modalities: Sequence[str], task_set: TaskSet) -> seqio.FunctionDataSource:
    """The examples of a prepared folder that have ``modalities``, by these names; those that differ in their speech
    alone, once if it is not among them."""
    fields = {modality: task_set.field_of(modality) for modality in modalities}

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # one small file per split; shuffling is the mixture's work

        rows = list(prepared.read_examples(folder, split))
        rows = [row for row in rows if all(row[field] is not None for field in fields.values())]
        rows = [row for row in rows if SPEECH in modalities or not row["shift"]]
        # As whole tensors: a Python generator takes half a millisecond for each example.
        columns: dict[str, Any] = {}
        for modality, field in fields.items():
            contents = [row[field] for row in rows]
            if task_set.vocabulary_of(modality) == "units":
                units = np.concatenate([np.zeros(0, np.int32), *contents])
                columns[modality] = tf.RaggedTensor.from_row_lengths(units, [len(content) for content in contents])
            else:
                columns[modality] = tf.constant(contents, tf.string)
        return tf.data.Dataset.from_tensor_slices(columns)

    return seqio.FunctionDataSource(dataset, splits=prepared.splits(folder))
