"""Every way to join the same two decoders: equal pairs, steps, rows and data order (docs/fusions.md).

    zipper sweep run experiments/fusions.py --size cpu --out runs/fusions --jobs 2

Data, towers, budgets and sizes are those of experiments/findings.py. Unless an arm says otherwise, the text tower is
frozen and the speech tower trained.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from findings import DIAGONAL, IDENTITY, PRESERVING, RATES, Arms, Size, size_of

from zipper_jax.models.config import ProjectionConfig
from zipper_jax.sweep.plan import Arm, Claim, Sweep, Table

BOTH = ("text", "speech")
SHARED: dict[str, Any] = {"fusion": "shared_attention", "gate_init": 1.0}
UNGATED: dict[str, Any] = {"fusion": "shared_attention", "options": {"gate": False}}
MLP: dict[str, Any] = {
    "fusion": "projector",
    "projection": ProjectionConfig(depth=2, final_activation="none"),  # SLAM-ASR's
    "normalise_source": True,
}
LINEAR: dict[str, Any] = {**MLP, "projection": ProjectionConfig(depth=1, final_activation="none")}
STACKED: dict[str, Any] = {**MLP, "options": {"stack": {"speech": 5}}}  # SLAM-ASR's 5; units come 25 a second
INSULATED: dict[str, Any] = {"insulate": ("speech",)}
"""The speech tower, the one that is trained, learns from its own loss alone."""
NOISE = 0.3
"""Of the tokens that a model writes itself, in training."""
WITHOUT: dict[str, ProjectionConfig] = {}
"""No input projections: the papers of these fusions have none, and soft tokens are input themselves."""


def all_arms(size: Size) -> tuple[Arm, ...]:
    arms = Arms(size)
    depths = size.text["num_layers"], size.speech["num_layers"]
    middle = depths[1] // 4 + 1, depths[1] - depths[1] // 4

    def joined(name: str, about: str, **how: Any) -> Arm:
        return arms.zipper(name, about, perplexity=True, **how)

    def projector(name: str, about: str, form: dict[str, Any], **how: Any) -> Arm:
        return joined(name, about, form=form, projections=WITHOUT, last_blocks=True, **how)

    return (
        arms.pretraining("text"),
        arms.pretraining("speech"),
        arms.single_decoder("single_decoder", "one decoder, all weights trained", perplexity=True),
        arms.single_decoder("single_decoder.dropout", "with the paper's dropout of 0.1", dropout=0.1, perplexity=True),
        arms.single_decoder("single_decoder.noise", "with token noise of 0.3", token_noise=NOISE, perplexity=True),
        joined("zipper", "gated cross-attention, the paper's form"),
        joined("zipper.frozen", "… both towers frozen", frozen=BOTH),
        joined("identity", "gated cross-attention, identity-preserving", projections=PRESERVING, form=IDENTITY),
        joined("diagonal", "… attention starts on the diagonal", projections=PRESERVING, form=DIAGONAL),
        joined(
            "diagonal.noise",
            "… with token noise of 0.3 in units",
            projections=PRESERVING,
            form=DIAGONAL,
            training={"token_noise": {"speech": NOISE}},
        ),
        joined(
            "middle", "… zips in the middle half only (HBridge)", projections=PRESERVING, form=IDENTITY, blocks=middle
        ),
        joined(
            "one_way",
            "… into text only, speech to text only, both towers frozen (CALM)",
            projections=WITHOUT,
            form={**IDENTITY, "into": ("text",)},
            frozen=BOTH,
            rates={"asr": RATES["asr"]},
        ),
        joined("shared", "shared attention, gates that start open", projections=WITHOUT, form=SHARED),
        joined("shared.ungated", "… without gates (Mixture-of-Transformers)", projections=WITHOUT, form=UNGATED),
        joined("shared.frozen", "… gated, both towers frozen", projections=WITHOUT, form=SHARED, frozen=BOTH),
        projector("projector", "soft tokens by an MLP (SLAM-ASR), both ways", MLP),
        projector("projector.linear", "… by a linear map", LINEAR),
        projector("projector.stacked", "… by an MLP, one of 5 units of speech (SLAM-ASR's downsampling)", STACKED),
        projector("projector.frozen", "… by an MLP trained alone, both towers frozen", MLP, frozen=BOTH),
        joined(
            "identity.insulated",
            "identity, the speech tower insulated from the text tower's loss",
            projections=PRESERVING,
            form={**IDENTITY, **INSULATED},
        ),
        joined("shared.insulated", "shared, insulated", projections=WITHOUT, form={**SHARED, **INSULATED}),
        projector("projector.insulated", "projector, insulated", {**MLP, **INSULATED}),
    )


MAIN = (
    "single_decoder", "single_decoder.dropout", "single_decoder.noise", "zipper", "identity", "diagonal",
    "diagonal.noise", "middle", "shared", "shared.ungated",
)  # fmt: skip
SOFT = ("projector", "projector.linear", "projector.stacked")
INSULATION = ("identity", "shared", "projector")
FROZEN = ("zipper.frozen", "one_way", "shared.frozen", "projector.frozen")


def tables() -> tuple[Table, ...]:
    asr = ("asr", "asr_other", "asr_shuffled", "asr_no_audio", "asr_gates_zero", "asr_nats", "asr_shuffled_nats")
    tts = ("tts", "tts_target", "tts_shuffled", "tts_nats", "tts_shuffled_nats")
    both = ("asr", "asr_shuffled", "asr_nats", "tts", "tts_shuffled", "tts_nats")
    note = "`one_way` is trained on speech to text alone: its text to speech is that of a tower that sees no text."
    return (
        Table("Speech to text, speech tower trained", (*MAIN, *SOFT), asr),
        Table("Text to speech, speech tower trained", (*MAIN, *SOFT), tts),
        Table("Both towers frozen", FROZEN, both, note=note),
        Table("Insulation", tuple(f"{arm}{form}" for arm in INSULATION for form in ("", ".insulated")), both),
    )


def claims() -> tuple[Claim, ...]:
    found = [
        Claim(f"{words} is better than gated cross-attention {where}", measure, arm, "identity", source="ours")
        for words, arm in (("shared attention", "shared"), ("the projector", "projector"))
        for where, measure in (
            ("in ASR", "asr"), ("in ASR, by likelihood", "asr_nats"), ("in TTS", "tts"),
            ("in TTS, by likelihood", "tts_nats"),
        )
    ]  # fmt: skip
    frozen = [
        Claim(f"{words} is better than the paper's form with both towers frozen, {what}", measure, arm, "zipper.frozen",
              source="ours")
        for words, arm in (("shared attention", "shared.frozen"), ("the projector", "projector.frozen"))
        for what, measure in (("ASR", "asr"), ("TTS, by likelihood", "tts_nats"))
    ]  # fmt: skip
    insulated = [
        Claim(f"insulation does not hurt {arm} in {what}", measure, f"{arm}.insulated", arm, "similar", 0.02,
              "arXiv 2505.23705")
        for arm in INSULATION
        for what, measure in (("ASR", "asr"), ("TTS", "tts"))
    ]  # fmt: skip
    return (
        *found,
        *frozen,
        *insulated,
        Claim(
            "one soft token of 5 units does for ASR",
            "asr",
            "projector.stacked",
            "projector",
            "similar",
            0.02,
            "SLAM-ASR",
        ),
        Claim(
            "gates do not matter to shared attention in ASR", "asr", "shared", "shared.ungated", "similar", 0.02, "ours"
        ),
        Claim("an MLP is better than a linear projector in ASR", "asr", "projector", "projector.linear", source="ours"),
        *(
            Claim(f"starting on the diagonal helps in {what}", measure, "diagonal", "identity", source="ours")
            for what, measure in (("ASR", "asr"), ("TTS", "tts"), ("TTS, by likelihood", "tts_nats"))
        ),
        *(
            Claim(f"token noise helps {words} in {what}", measure, f"{arm}.noise", arm, source="ours")
            for words, arm in (("the diagonal", "diagonal"), ("the Single Decoder", "single_decoder"))
            for what, measure in (("ASR", "asr"), ("TTS", "tts"))
        ),
        Claim("zips in the middle suffice for ASR", "asr", "middle", "identity", "similar", 0.02, "HBridge"),
        Claim(
            "dropout helps the Single Decoder's ASR", "asr", "single_decoder.dropout", "single_decoder", source="ours"
        ),
    )


def sweep(size: str) -> Sweep:
    chosen = size_of(size)
    return Sweep(
        name=f"fusions_{size}",
        corpus=chosen.corpus,
        prepare=chosen.prepare,
        arms=all_arms(chosen),
        scoring=chosen.scoring,
        tables=tables(),
        claims=claims(),
        about=f"Ways to join the same two decoders, on equal data and steps. {chosen.about}",
        times=True,
    )
