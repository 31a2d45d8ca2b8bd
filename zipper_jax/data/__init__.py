"""From a corpus to packed rows, and from packed rows to batches.

Only ``tasks``, ``prepare_rows`` and ``live`` import TensorFlow (seqio), and only inside functions. Training reads rows
through ``packed_rows`` and ``mixtures``, which are numpy alone.
"""
