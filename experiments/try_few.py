"""Trials on validation."""
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent))
from dataclasses import replace
from findings import IDENTITY, PAPER, PRESERVING, DIAGONAL, RATES, Arms, size_of, percent
from zipper_jax.models.config import ProjectionConfig
from zipper_jax.sweep.plan import Arm, Claim, Sweep, Table
BOTH = ("text", "speech")
NONE = ProjectionConfig(form="none")
def sweep(size):
    chosen = size_of("cpu")
    arms = Arms(chosen)
    T = dict(scored="validation", seeds=(0,))
    out = [arms.pretraining("text"), arms.pretraining("speech")]
    for share in (0.01, 0.03, 0.005):
        p = percent(share)
        def z(name, **k):
            k = {"projections": PRESERVING, "form": DIAGONAL, "share": share, **T, **k}
            out.append(arms.zipper(f"{name}.{p}", name, **k))
        z("identity", form=IDENTITY)
        z("zipper", form=PAPER, projections=None)
        z("diag")
        z("diag.full", tower_rate=1.0)
        z("diag.frozen", frozen=BOTH)
        for n in (0.1, 0.3, 0.5):
            z(f"diag.noise{n}", training={"token_noise": {"text": n, "speech": n}})
        z("diag.frozen.noise0.3", training={"token_noise": {"text": 0.3, "speech": 0.3}}, frozen=BOTH)
        z("identity.noise0.3", form=IDENTITY, training={"token_noise": {"text": 0.3, "speech": 0.3}})
        z("diag.drop0.1", training={"dropout": {"text": .1, "speech": .1}})
        z("diag.noise0.3.drop0.1", training={"dropout": {"text": .1, "speech": .1}, "token_noise": {"text": 0.3, "speech": 0.3}})
        z("diag.steep", form={**DIAGONAL, "diagonal_init": 2.0})
        z("diag.steep.noise0.3", form={**DIAGONAL, "diagonal_init": 2.0}, training={"token_noise": {"text": 0.3, "speech": 0.3}})
    return Sweep(name="try", corpus=chosen.corpus, prepare=chosen.prepare, arms=tuple(out), scoring=chosen.scoring,
      tables=(Table("t", tuple(a.name for a in out if a.scored != "no"), ("asr_validation","asr_nats","tts","tts_nats")),), about="x", times=True)
