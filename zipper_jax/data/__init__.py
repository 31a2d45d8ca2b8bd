"""Data pipeline: import a corpus, prepare packed rows, build batches.

Only ``tasks`` imports TensorFlow (through seqio); ``prepare_rows`` imports ``tasks`` inside a function. Training reads
rows through ``packed_rows`` and ``mixtures``, which need only numpy.
"""
