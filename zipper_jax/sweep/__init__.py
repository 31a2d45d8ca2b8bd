"""A grid of runs that share data and pretrained towers: planned in a Python file, run row by row, scored, reported.

    plan.py      what a sweep is            runner.py   which row runs when, each in a process of its own
    prepare.py   corpus, rows, shares       row.py      one row: training, then what the model says (no text, no audio)
    scores.py    errors per sentence        statistics.py, report.py, plots.py   tables, curves, verdicts

`row` needs jax, flax, optax and orbax-checkpoint alone, so that rows run on a machine that has nothing else.
"""
