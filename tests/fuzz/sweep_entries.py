"""Entry points that read sweeps: the Python file, and what its rows and scores have written."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from property import Entry, entry_point
from valid_files import lines

from zipper_jax.sweep import plan, prepare, row, scores
from zipper_jax.sweep.report import write_report

_FILE = b"""\
from zipper_jax.models.config import ModalityConfig, TowerConfig, ZipperConfig
from zipper_jax.sweep.plan import Arm, Claim, Figure, Scoring, Sweep, Table
from zipper_jax.training.config import DataConfig, TrainConfig


def arm(name, **more):
    def config(places, seed):
        model = ZipperConfig({'text': TowerConfig(9, 1, 8, 2, 1, 4, 8)}, {'text': ModalityConfig('text', 9)})
        data = DataConfig(places.data(), 'text_lm', {'text': 32})
        return TrainConfig(model, data, model_dir='-', steps=2, batch_size=2)

    return Arm(name, 'about', config, **more)


def sweep(size):
    return Sweep(
        name='tiny',
        corpus={'train': 24, 'engine': 'flite'},
        prepare={'num_units': 16, 'unit_features': 'log-mel', 'text_length': 32, 'speech_length': 96},
        arms=(arm('first', scored='no', seeds=(0,)), arm('second', needs=('first',), share=0.5)),
        seeds=(0, 1),
        scoring=Scoring(speech_sentences=4),
        tables=(Table('Speech to text', ('second',), ('asr', 'tts')),),
        figures=(Figure('by_length', 'By length', 'letters', 'tts', {'Zipper': [(0.0, 'second')]}, by_length=True),),
        claims=(Claim('better', 'asr', 'second', 'second'),),
    )
"""


def _sweep_file(source: Path, out: Path) -> None:
    sweep = plan.load_sweep(source / "sweep.py", "cpu")
    places = plan.Places(out)
    found = plan.rows(sweep)
    assert {one.arm.name for one in found} == {arm.name for arm in sweep.arms}
    for one in found:
        assert plan.train_config(sweep, one, places).model_dir.startswith(str(out))
        plan.digest(sweep, one, places)


@entry_point
def sweep_file() -> Entry:
    return Entry("sweep_file", {"sweep.py": [_FILE]}, _sweep_file, ("sweep/plan.py",))


@cache
def _sweep() -> plan.Sweep:
    with TemporaryDirectory() as folder:
        (Path(folder) / "sweep.py").write_bytes(_FILE)
        return plan.load_sweep(Path(folder) / "sweep.py", "cpu")


def _sweep_folder(source: Path, out: Path) -> None:
    sweep, places = _sweep(), plan.Places(source)
    if not prepare.prepared(sweep, places):  # it is made with other shares, and would be made again
        assert not set(sweep.shares) <= set(json.loads((source / "made_with.json").read_bytes())["shares"])
        return
    for one in plan.rows(sweep, ["first"]):
        row.finished(sweep, one, places)
    for sentence in row.read_examples(places, "test"):
        assert set(sentence) == {"id", "text", "contents"}
    results = scores.read_results(places.results)
    content = places.results.read_bytes()
    assert len(results) == sum(bool(line) for line in content.split(b"\n"))
    write_report(sweep, places, out / "page", "zipper sweep {}")


@entry_point
def sweep_folder() -> Entry:
    sweep = _sweep()
    line = {
        "arm": "second", "outputs": "x", "steps": 2, "rows_per_step": 2, "flops": 1e9, "flops_before": 1e9,
        "trained": 3000, "frozen": 10, "letters": [4, 9],
        "perplexity": {"text_fused_before": 2.0, "text_fused_after": 1.5},
        "measures": {name: [[0.0, 4.0], [1.0, 2.0]] for name in ("asr", "tts")},
        "not_possible": {"asr_shuffled": "one text"},
    }  # fmt: skip
    errors = {name: [[0.0, 4.0]] for name in ("raw_audio", "gold_units", "reversed", "noise")}
    judge = {"sentences": 1, "judge": "grammar", "errors": errors, "heard": {"gold_units": ["open the door"]}}
    sentences = [{"id": "a", "text": "open it", "contents": {"text": [1, 2], "speech": [3]}}]
    digest = plan.digest(sweep, plan.rows(sweep)[0], plan.Places("here"))
    outputs = {"arm": "first", "seed": 0, "digest": digest, "scored": "no"}
    made_with = {**plan.data_settings(sweep), "shares": sweep.shares}
    files = {
        "made_with.json": [json.dumps(made_with).encode()],
        "sentences/test.json": [json.dumps(sentences).encode()],
        "outputs/first-0.json": [json.dumps(outputs).encode()],
        "judge.json": [json.dumps(judge).encode()],
        "results.jsonl": [lines(line | {"seed": seed} for seed in range(2))],
    }
    modules = tuple(f"sweep/{name}.py" for name in ("scores", "report", "statistics", "prepare", "row"))
    return Entry("sweep_folder", files, _sweep_folder, modules)
