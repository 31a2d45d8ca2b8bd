"""seqio tasks and mixtures over a prepared folder. This module imports TensorFlow (7 s): import it late.

There is one seqio task per task of the folder's `TaskSet` whose modalities the folder has, with one feature per
modality (content only) and one example per utterance that has all of them; none of interleaved tasks, whose examples
`data.interleave` makes. Built in: text_lm, speech_lm, asr, tts, and the mixture asr_tts at the paper's rates.

seqio adds no begin and end tokens, order or loss weights: they come from the task's spans
(`zipper_jax.tasks.TaskConfig`). Nothing is trimmed or padded here.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zipper_jax.data.tensorflow_logging import quiet_stderr
from zipper_jax.utils.interrupts import interruptible

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with interruptible(), quiet_stderr():  # no setting silences its messages about CUDA and oneDNN
    import seqio
    import tensorflow as tf

    # TensorFlow only reads data here; by default it would allocate all GPU memory, which JAX needs.
    tf.config.set_visible_devices([], "GPU")

from zipper_jax.data import prepared
from zipper_jax.data.text_forms import read_policy
from zipper_jax.metrics.task_metrics import metrics_of, under
from zipper_jax.tasks import SPEECH, TaskSet
from zipper_jax.utils.configs import closest
from zipper_jax.utils.errors import UserError
from zipper_jax.vocabularies import UnitVocabulary, Vocabulary


class SeqioVocabulary(seqio.Vocabulary):
    """Adapter of a zipper_jax vocabulary to seqio.

    seqio reserves id 0 for padding; here 0 is a valid token, and seqio never pads.
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
        if isinstance(self.vocabulary, UnitVocabulary):  # in TensorFlow, because a Python call per example is slow
            units = self.vocabulary.num_units
            outside = tf.logical_or(s < 0, s >= units)
            message = f"a unit is outside 0 to {units - 1}: was another tokenizer used?"
            with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(outside), [message, s])]):
                return tf.cast(s, tf.int32) + self.vocabulary.first

        def encode(content: Any) -> np.ndarray:
            # Text arrives as bytes, or as an array in eager mode.
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
    """Register the tasks and mixtures of a prepared folder with seqio; return name -> ``prefix + name``.

    A later call replaces tasks of equal name; give each folder its own prefix to use several at a time.
    """
    folder = Path(folder)
    vocabularies, task_set = prepared.read_vocabularies(folder), prepared.read_task_set(folder)
    policy, names = read_policy(folder), {}
    for task, config in task_set.tasks.items():
        modalities = config.modalities
        if config.interleaving is not None or not set(modalities) <= set(vocabularies):
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
            metric_fns=list(under(policy, metrics_of(task_set, task))),
        )
    for mixture, rates in task_set.mixtures.items():
        # seqio mixes only tasks with the same features; mixtures of packed rows have no such limit.
        features = {frozenset(task_set.tasks[task].modalities) for task in rates}
        if set(rates) <= set(names) and len(features) == 1:
            names[mixture] = prefix + mixture
            seqio.MixtureRegistry.remove(names[mixture])
            seqio.MixtureRegistry.add(names[mixture], [(names[task], rate) for task, rate in rates.items()])
    return names


def examples(name: str, split: str) -> Any:
    """Yield the examples of a registered task's split in order, once: {modality: int32 content tokens}.

    Raises:
        UserError: An unknown task or split.
    """
    known = seqio.TaskRegistry.names()
    if name not in known:
        raise UserError(f"there is no seqio task {name!r}{closest(name, known)}")
    task = seqio.TaskRegistry.get(name)
    if split not in task.splits:
        raise UserError(f"task {name!r} has no split {split!r}{closest(split, task.splits)}")
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1)
    features = list(task.output_features)
    # In blocks, because each element that leaves TensorFlow costs 0.1 ms per feature.
    for block in dataset.ragged_batch(256):
        columns = [(np.asarray(block[m].values, np.int32), block[m].row_splits.numpy()) for m in features]
        for i in range(len(columns[0][1]) - 1):
            yield {m: values[at[i] : at[i + 1]] for m, (values, at) in zip(features, columns, strict=True)}


def _source(folder: Path, modalities: Sequence[str], task_set: TaskSet) -> seqio.FunctionDataSource:
    """Return the examples of a prepared folder that have all of ``modalities``.

    Without speech among them, shifted copies of an utterance count once.
    """
    fields = {modality: task_set.field_of(modality) for modality in modalities}

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # one file per split; the mixture shuffles

        rows = list(prepared.read_examples(folder, split))
        rows = [row for row in rows if all(row[field] is not None for field in fields.values())]
        rows = [row for row in rows if SPEECH in modalities or not row["shift"]]
        # As whole tensors: a Python generator costs 0.5 ms per example.
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
