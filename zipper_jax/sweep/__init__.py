"""Sweeps: runs that share data and pretrained towers, defined in a Python file, trained row by row, scored, reported.

    plan.py      definition of a sweep      runner.py   schedules rows, each in a process of its own
    prepare.py   corpus, rows, shares       row.py      one row: training, then generation and likelihoods (token ids)
    scores.py    errors per sentence        statistics.py, report.py, plots.py   tables, curves, verdicts

`row` needs only jax, flax, optax and orbax-checkpoint, so that rows run on a machine without text or audio libraries.
"""
