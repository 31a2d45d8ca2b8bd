"""The claims of the Zipper paper (arXiv 2405.18669), tested on a reproducible synthetic corpus.

    zipper sweep run experiments/findings.py --size cpu --out runs/findings --jobs 2

Two sizes of the same arms: ``cpu`` (runs of minutes on one core) and ``gpu`` (an H100). Unless an arm says otherwise,
the text tower is frozen, as in the paper; name and description of an arm state its difference from ``zipper``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from zipper_jax.data.packed_rows import position_scales, read_meta
from zipper_jax.models.config import ModalityConfig, ProjectionConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.models.zipper import parameters
from zipper_jax.sweep.plan import Arm, Claim, Figure, Places, Scoring, Sweep, Table
from zipper_jax.training.config import DataConfig, SaveCheckpointConfig, TrainConfig
from zipper_jax.training.optimizer import OptimizerConfig
from zipper_jax.training.partition_tree import FreezeConfig
from zipper_jax.utils.errors import UserError

RATES = {"asr": 1.0, "tts": 1.26}  # proportional to the paper's numbers of samples


@dataclass(frozen=True)
class Size:
    """Data, towers and budgets of one size."""

    corpus: dict[str, Any]
    prepare: dict[str, Any]
    text: dict[str, int]
    speech: dict[str, int]
    pretrain_steps: dict[str, int]
    pretrain_rows: int
    steps: int
    rows: int
    rates: dict[str, float]  # peak learning rates: pretrain, zipper, single_decoder
    tried: dict[str, tuple[float, ...]]  # learning rates compared on validation
    warmup_steps: int
    save: int
    equal_steps: int  # steps of a Single Decoder with the FLOP of the zipper's steps
    about: str
    scan: bool
    dtype: str
    scoring: Scoring


SIZES = {
    "cpu": Size(
        corpus={
            "voices": ("kal16",),
            "rates": (1.0,),
            "train": 4000,
            "validation": 100,
            "test": 150,
            "test_other": 150,
        },
        prepare={
            "num_units": 128,
            "unit_features": "log-mel",
            "shifts": 2,
            "text_length": 32,
            "speech_length": 128,
        },
        text={"num_layers": 4, "embed_dim": 64, "num_heads": 2, "num_kv_heads": 2, "head_dim": 32, "mlp_dim": 128},
        speech={"num_layers": 4, "embed_dim": 96, "num_heads": 3, "num_kv_heads": 3, "head_dim": 32, "mlp_dim": 192},
        pretrain_steps={"text": 300, "speech": 600},
        pretrain_rows=16,
        steps=800,
        rows=4,
        rates={"pretrain": 3e-3, "zipper": 2e-3, "single_decoder": 4e-3},
        tried={"zipper": (1e-3, 2e-3, 4e-3), "single_decoder": (2e-3, 4e-3, 8e-3)},
        warmup_steps=30,
        save=10_000,
        equal_steps=2950,
        about="The cpu size: towers of 4 blocks, one synthetic voice, 4,000 sentences, runs of minutes on one core.",
        scan=False,
        dtype="float32",
        scoring=Scoring(sentences=100, speech_sentences=60),
    ),
    "gpu": Size(
        # 40,000 sentences of 718 words in four voices at three tempos; 1,024 units at 25 Hz, as in the paper.
        corpus={
            "grammar": "wide",
            "engine": "flite",
            "voices": ("slt", "kal16", "rms", "awb"),
            "other_pitches": (1.0,),  # rms has no pitch control
            "train": 40_000,
            "validation": 200,
            "test": 500,
            "test_other": 500,
        },
        prepare={
            "num_units": 1024,
            "unit_features": "log-mel",
            "shifts": 4,
            "text_vocabulary_size": 1024,
            "text_length": 64,
            "speech_length": 512,
        },
        text={"num_layers": 8, "embed_dim": 512, "num_heads": 8, "num_kv_heads": 8, "head_dim": 64, "mlp_dim": 1536},
        speech={"num_layers": 8, "embed_dim": 576, "num_heads": 9, "num_kv_heads": 9, "head_dim": 64, "mlp_dim": 1536},
        pretrain_steps={"text": 2000, "speech": 4000},
        pretrain_rows=32,
        steps=2000,
        rows=16,
        rates={"pretrain": 1e-3, "zipper": 5e-4, "single_decoder": 5e-4},
        tried={"zipper": (2.5e-4, 5e-4, 1e-3), "single_decoder": (2.5e-4, 5e-4, 1e-3)},
        warmup_steps=100,
        save=2000,
        equal_steps=3440,
        about="The gpu size: towers of 8 blocks (about 30 million parameters each), four synthetic voices, 718 words.",
        scan=True,
        dtype="bfloat16",
        scoring=Scoring(sentences=500, speech_sentences=200),
    ),
}

# The gpu size with few sentences and rows: with --steps 1, it checks that every arm runs before renting a GPU.
SIZES["gpu_trial"] = replace(
    SIZES["gpu"],
    corpus={**SIZES["gpu"].corpus, "train": 400, "validation": 4, "test": 4, "test_other": 4},
    pretrain_rows=2,
    rows=2,
    about="A trial of the gpu size on 400 sentences: that it runs, not what it reaches.",
    scoring=Scoring(sentences=4, speech_sentences=4),
)


def tower(size: dict[str, int], vocabulary: int) -> TowerConfig:
    return TowerConfig(vocab_size=vocabulary, embedding_scale=size["embed_dim"] ** 0.5, **size)  # type: ignore[arg-type]


def every(size: Size, zips: int, blocks: tuple[int, int] | None = None) -> tuple[tuple[int, int], ...]:
    """Return pairs (text block, speech block): ``zips`` evenly spaced up to the last, or all within ``blocks``."""
    depths = size.text["num_layers"], size.speech["num_layers"]
    if blocks is None:
        return tuple((n * depths[0] // zips, n * depths[1] // zips) for n in range(1, zips + 1))
    first, last = blocks
    return tuple((b * depths[0] // depths[1], b) for b in range(first, last + 1))


class Models:
    """The models of one size; vocabulary sizes come from the prepared data."""

    def __init__(self, size: Size, places: Places):
        self.size = size
        self.prepared = places.prepared
        self.ids = {m: places.vocabulary_size(m) for m in ("text", "speech")}
        self.towers = {"text": tower(size.text, self.ids["text"]), "speech": tower(size.speech, self.ids["speech"])}
        self.compute: dict[str, Any] = {"scan": size.scan, "dtype": size.dtype, "remat": "none"}

    def alone(self, name: str) -> ZipperConfig:
        modality = ModalityConfig(name, self.ids[name])
        return ZipperConfig(towers={name: self.towers[name]}, modalities={name: modality}, **self.compute)

    def single_decoder(self) -> ZipperConfig:
        """Return the text tower with a vocabulary extended by the units."""
        text, speech = self.ids["text"], self.ids["speech"]
        return ZipperConfig(
            towers={"decoder": replace(self.towers["text"], vocab_size=text + speech)},
            modalities={
                "text": ModalityConfig("decoder", text),
                "speech": ModalityConfig("decoder", speech, offset=text),
            },
            **self.compute,
        )

    def zipper(
        self,
        pairs: tuple[tuple[int, int], ...],
        projections: Mapping[str, ProjectionConfig] | None = None,
        **fields: Any,
    ) -> ZipperConfig:
        """Return a zipper; ``projections``: input projections (None: the paper's), ``fields``: of ZipConfig.

        Rotary positions are scaled by the rates of all pairs, whatever their share.
        """
        if fields.get("positions") == "rotary":
            fields["position_scales"] = position_scales(self.prepared, "asr")
        if projections is None:
            projections = {"text": ProjectionConfig(), "speech": ProjectionConfig()}
        return ZipperConfig(
            towers=self.towers,
            modalities={name: ModalityConfig(name, self.ids[name]) for name in self.towers},
            zips=(ZipConfig(towers=("text", "speech"), pairs=pairs, **fields),),
            input_projections=dict(projections),
            **self.compute,
        )


PAPER: dict[str, Any] = {"positions": "learned", "normalise_source": True}
"""Fields of ZipConfig that the paper does not state; those it states are ZipConfig's defaults."""
PRESERVING = {"text": ProjectionConfig(form="residual"), "speech": ProjectionConfig(form="residual")}
"""Input projections that are the identity at step 0."""
IDENTITY: dict[str, Any] = {
    **PAPER,
    "feed_forward": "where_visible",
    "gate_init": 1.0,
    "projection": ProjectionConfig(depth=1, final_activation="none"),
}
"""Identity-preserving form: with PRESERVING, text without speech is unchanged at step 0, and only its input projection
can change it."""
DIAGONAL: dict[str, Any] = {**IDENTITY, "positions": "rotary", "rope_base": 100.0, "diagonal_init": 1.0}
"""Identity-preserving form whose attention starts on the diagonal of text and speech."""
PRETRAINED = {"text": "text_lm", "speech": "speech_lm"}


def balance(places: Places) -> float:
    """Return the weight of a text token that balances text and speech in the Single Decoder's loss.

    The zipper's loss is balanced without it, because each tower's loss is a separate mean.
    """
    targets = {}
    for task, modality in (("asr", "text"), ("tts", "speech")):
        meta = read_meta(places.prepared / "rows" / task / "train")
        assert meta is not None
        targets[task] = RATES[task] * (meta["tokens"][modality] + meta["examples"]) / meta["rows"]
    return round(targets["tts"] / targets["asr"], 2)


class Arms:
    """Builders of the arms of one size; their parameters are differences from the paper's zipper."""

    def __init__(self, size: Size):
        self.size = size
        self.lengths = {m: size.prepare[f"{m}_length"] for m in ("text", "speech")}
        self.positions = max(self.lengths.values())

    def pretraining(self, modality: str) -> Arm:
        size = self.size

        def config(places: Places, seed: int) -> TrainConfig:
            return TrainConfig(
                model=Models(size, places).alone(modality),
                data=DataConfig(
                    places.text() if modality == "text" else places.data(),
                    f"{modality}_lm",
                    {modality: self.lengths[modality]},
                ),
                batch_size=size.pretrain_rows,
                steps=size.pretrain_steps[modality],
                optimizer=self._optimizer("pretrain"),
                **self._common(),
            )

        return Arm(f"{modality}_lm", f"{modality} tower alone, pretrained", config, seeds=(0,), scored="no")

    def zipper(
        self,
        name: str,
        about: str,
        *,
        zips: int = 4,
        blocks: tuple[int, int] | None = None,
        projections: Mapping[str, ProjectionConfig] | None = None,
        form: Mapping[str, Any] = PAPER,
        frozen: tuple[str, ...] = ("text",),
        pretrained: bool = True,
        share: float = 1.0,
        rates: Mapping[str, float] = RATES,
        learning_rate: float | None = None,
        last_blocks: bool = False,
        tower_rate: float = 0.25,
        training: Mapping[str, Any] | None = None,
        **arm: Any,
    ) -> Arm:
        """A zipper.

        Args:
            last_blocks: The one pair of the towers' last blocks, in place of ``zips`` and ``blocks``.
            tower_rate: Multiplier of the learning rate of pretrained weights.
            training: Other fields of TrainConfig.
        """
        size = self.size
        last = ((size.text["num_layers"], size.speech["num_layers"]),)
        pairs = last if last_blocks else every(size, zips, blocks)

        def config(places: Places, seed: int) -> TrainConfig:
            fields = dict(form)
            if fields.get("positions") == "learned":
                fields["max_positions"] = self.positions
            # The learning rate of the new parts is too high for pretrained weights and too low for scalar gates.
            model = Models(size, places).zipper(pairs, projections, **fields)
            multipliers = {".*_gate": 3.0} if any(path.endswith("_gate") for path in parameters(model)) else {}
            if pretrained and set(frozen) != set(PRETRAINED):
                multipliers["towers/.*"] = tower_rate
            return TrainConfig(
                model=model,
                data=DataConfig(places.data(share), "fusion", self.lengths, dict(rates)),
                batch_size=size.rows,
                steps=size.steps,
                optimizer=self._optimizer("zipper", learning_rate, multipliers),
                freeze=FreezeConfig(towers=frozen),
                **(training or {}),
                initialise_from={t: places.run(run) for t, run in PRETRAINED.items()} if pretrained else {},
                **self._common(),
            )

        needs = tuple(PRETRAINED.values()) if pretrained else ()
        return Arm(name, about, config, share=share, needs=needs, **arm)

    def single_decoder(
        self,
        name: str,
        about: str,
        *,
        pretrained: bool = True,
        share: float = 1.0,
        learning_rate: float | None = None,
        steps: int | None = None,
        dropout: float = 0.0,
        token_noise: float = 0.0,
        **arm: Any,
    ) -> Arm:
        size = self.size

        def config(places: Places, seed: int) -> TrainConfig:
            return TrainConfig(
                model=Models(size, places).single_decoder(),
                data=DataConfig(
                    places.data(share),
                    "fusion",
                    {"decoder": sum(self.lengths.values())},
                    dict(RATES),
                    task_weights={"asr": balance(places)},
                ),
                batch_size=size.rows,
                steps=steps or size.steps,
                optimizer=self._optimizer("single_decoder", learning_rate),
                dropout={"decoder": dropout} if dropout else {},
                token_noise={"decoder": token_noise} if token_noise else {},
                initialise_from={"decoder": places.run("text_lm")} if pretrained else {},
                **self._common(),
            )

        return Arm(name, about, config, share=share, needs=("text_lm",) if pretrained else (), **arm)

    def _optimizer(
        self, what: str, learning_rate: float | None = None, multipliers: Mapping[str, float] | None = None
    ) -> OptimizerConfig:
        return OptimizerConfig(
            learning_rate=learning_rate or self.size.rates[what],
            schedule="cosine",
            warmup_steps=self.size.warmup_steps,
            learning_rate_multipliers=dict(multipliers or {}),
        )

    def _common(self) -> dict[str, Any]:
        """Return common fields; checkpoints are rare, because a killed row of minutes simply restarts."""
        return {"model_dir": "set by the runner", "log_period": 50, "save": SaveCheckpointConfig(period=self.size.save)}


SHARES = (0.3, 0.1, 0.03, 0.01, 0.005)
SMALL = (0.03, 0.01, 0.005)
UNIMODAL_TOO = {**RATES, "text_lm": 0.5, "speech_lm": 0.5}
_NONE = ProjectionConfig(form="none")
_MLP = ProjectionConfig()


def percent(share: float) -> str:
    return f"{100 * share:g}"


def all_arms(size: Size) -> tuple[Arm, ...]:
    arms = Arms(size)
    zipper, single = arms.zipper, arms.single_decoder
    found = [
        arms.pretraining("text"),
        arms.pretraining("speech"),
        # Tables 1 and 2.
        zipper("zipper", "the paper's form, speech tower trained, text tower frozen", perplexity=True),
        single("single_decoder", "one decoder, all weights trained", perplexity=True),
        single("single_decoder.longer", "as much arithmetic in fusion as the zipper", steps=size.equal_steps),
        zipper("zipper.frozen", "both towers frozen", frozen=("text", "speech"), perplexity=True),
        zipper("identity", "ours: identity-preserving", projections=PRESERVING, form=IDENTITY, perplexity=True),
        zipper(
            "identity.frozen",
            "ours, both towers frozen",
            projections=PRESERVING,
            form=IDENTITY,
            frozen=("text", "speech"),
            perplexity=True,
        ),
    ]
    # Figure 3, and the identity-preserving form at its smallest shares.
    for share in SHARES:
        p = percent(share)
        found.append(zipper(f"zipper.{p}", f"{p} % of the pairs", share=share))
        found.append(single(f"single_decoder.{p}", f"{p} % of the pairs", share=share))
    for share in SMALL:
        p = percent(share)
        ours: dict[str, Any] = {"projections": PRESERVING, "form": IDENTITY, "share": share}
        found.append(zipper(f"identity.{p}", f"ours, {p} % of the pairs", **ours))
        found.append(zipper(f"identity.mixed.{p}", f"ours, {p} %, unimodal rows mixed in", rates=UNIMODAL_TOO, **ours))
    found += [
        zipper("zipper.scratch", "no tower pretrained, none frozen", pretrained=False, frozen=()),
        single("single_decoder.scratch", "not pretrained", pretrained=False),
        zipper("zipper.scratch.10", "no tower pretrained, 10 % of the pairs", pretrained=False, frozen=(), share=0.1),
        zipper("zipper.unfrozen.10", "pretrained, no tower frozen, 10 % of the pairs", frozen=(), share=0.1),
        single("single_decoder.scratch.10", "not pretrained, 10 % of the pairs", pretrained=False, share=0.1),
        # Figure 4, and ablations that the paper lacks.
        zipper("zipper.no_text_proj", "no text input projection", projections={"text": _NONE, "speech": _MLP}),
        zipper("zipper.no_speech_proj", "no speech input projection", projections={"text": _MLP, "speech": _NONE}),
        zipper("zipper.no_proj", "no input projection", projections={"text": _NONE, "speech": _NONE}),
        *(
            zipper(f"zipper.zips_{n}", f"{n} zip{'s' * (n > 1)}", zips=n)
            for n in (1, 2, 8)
            if n <= size.text["num_layers"] and n != 4
        ),
        zipper("zipper.middle", "zips at the middle half of the blocks only", blocks=_middle(size)),
        zipper("zipper.gate_1", "gates start at 1", form={**PAPER, "gate_init": 1.0}),
        zipper("zipper.linear", "cross-tower projection linear", form={**PAPER, "projection": IDENTITY["projection"]}),
        # Learning rates, chosen on validation.
        *(
            make(f"{name}.lr_{lr:g}", f"peak rate {lr:g}", learning_rate=lr, **_TUNING)
            for name, make in (("zipper", zipper), ("single_decoder", single))
            for lr in size.tried[name]
        ),
    ]
    return tuple(found)


_TUNING: dict[str, Any] = {"scored": "validation", "seeds": (0,)}


def _middle(size: Size) -> tuple[int, int]:
    depth = size.speech["num_layers"]
    return depth // 4 + 1, depth - depth // 4


def tables(size: Size) -> tuple[Table, ...]:
    main = ("single_decoder", "single_decoder.longer", "zipper", "zipper.frozen", "identity", "identity.frozen")
    zips = [f"zipper.zips_{n}" for n in (1, 2, 8) if n <= size.text["num_layers"]]
    asr = ("asr", "asr_other", "asr_shuffled", "asr_no_audio", "asr_gates_zero", "asr_nats", "asr_shuffled_nats")
    tts = ("tts", "tts_target", "tts_short", "tts_long", "tts_shuffled", "tts_nats", "tts_shuffled_nats")
    both = ("asr", "asr_shuffled", "asr_nats", "tts", "tts_shuffled", "tts_nats")
    small = [f"{arm}.{percent(s)}" for s in SMALL for arm in ("single_decoder", "zipper", "identity", "identity.mixed")]
    shares = [f"{arm}.{percent(s)}" for s in SHARES if s not in SMALL for arm in ("single_decoder", "zipper")]
    scratch = (
        "zipper.scratch", "single_decoder.scratch", "zipper.unfrozen.10", "zipper.scratch.10",
        "single_decoder.scratch.10",
    )  # fmt: skip
    ablations = ("zipper", "zipper.no_text_proj", "zipper.no_speech_proj", "zipper.no_proj", *zips, "zipper.middle")
    return (
        Table("Speech to text (the paper's Table 1)", main, asr),
        Table("Text to speech (Table 2)", main, tts),
        Table("Few pairs (Figure 3)", (*shares, *small), both),
        Table("Without pretraining", scratch, both),
        Table("Ablations (Figure 4 and more)", (*ablations, "zipper.gate_1", "zipper.linear", "identity"), both),
        Table(
            "Learning rates, chosen on validation",
            tuple(f"{arm}.lr_{lr:g}" for arm, rates in size.tried.items() for lr in rates),
            ("asr_validation", "asr_nats", "tts_nats"),
        ),
    )


def figures(size: Size) -> tuple[Figure, ...]:
    def over_shares(arm: str, shares: tuple[float, ...]) -> list[tuple[float, str]]:
        return [(100.0, arm), *((100 * s, f"{arm}.{percent(s)}") for s in shares)]

    shares = {
        "Single Decoder": over_shares("single_decoder", SHARES),
        "Zipper, paper's form": over_shares("zipper", SHARES),
        "Zipper, identity-preserving": over_shares("identity", SMALL),
        "… unimodal rows mixed in": [(100 * s, f"identity.mixed.{percent(s)}") for s in SMALL],
    }
    zips = {
        "Zipper": sorted(
            [(4.0, "zipper"), *((float(n), f"zipper.zips_{n}") for n in (1, 2, 8) if n <= size.text["num_layers"])]
        )
    }
    by_length = {
        "Single Decoder": [(0.0, "single_decoder")],
        "Zipper, paper's form": [(0.0, "zipper")],
        "Zipper, identity-preserving": [(0.0, "identity")],
    }
    pairs = "share of the pairs, %"
    return (
        Figure("shares_asr", "Speech to text with few pairs (Figure 3)", pairs, "asr", shares, log_x=True),
        Figure("shares_tts", "Text to speech with few pairs, nats a token", pairs, "tts_nats", shares, log_x=True),
        Figure("zips_asr", "Number of zips (Figure 4b), speech to text", "zips", "asr", zips),
        Figure("zips_tts", "Number of zips (Figure 4b), text to speech, nats a token", "zips", "tts_nats", zips),
        Figure(
            "length_tts",
            "Text to speech by length (Figure 2)",
            "text up to so many letters",
            "tts",
            by_length,
            by_length=True,
        ),
    )


def claims() -> tuple[Claim, ...]:
    one = percent(0.01)
    text = "text input projection matters for TTS"
    return (
        Claim(
            "ASR of Zipper is near that of the Single Decoder",
            "asr",
            "zipper",
            "single_decoder",
            "similar",
            0.02,
            "Table 1",
        ),
        Claim("TTS of Zipper is better than the Single Decoder's", "tts", "zipper", "single_decoder", source="Table 2"),
        Claim("… by likelihood", "tts_nats", "zipper", "single_decoder", source="Table 2"),
        Claim("training the speech tower helps TTS", "tts", "zipper", "zipper.frozen", source="Table 2"),
        Claim("… by likelihood", "tts_nats", "zipper", "zipper.frozen", source="Table 2"),
        Claim("a frozen speech tower costs ASR nothing", "asr", "zipper.frozen", "zipper", "similar", 0.02, "Table 1"),
        Claim(
            "with 1 % of the pairs Zipper's ASR is better",
            "asr",
            f"zipper.{one}",
            f"single_decoder.{one}",
            source="Figure 3",
        ),
        Claim("… by likelihood", "asr_nats", f"zipper.{one}", f"single_decoder.{one}", source="Figure 3"),
        Claim(text, "tts", "zipper", "zipper.no_text_proj", source="Figure 4a"),
        Claim("… by likelihood", "tts_nats", "zipper", "zipper.no_text_proj", source="Figure 4a"),
        Claim(
            "the speech input projection does not",
            "tts",
            "zipper",
            "zipper.no_speech_proj",
            "similar",
            0.02,
            "Figure 4a",
        ),
        Claim("1 zip is as good as 4 for ASR", "asr", "zipper.zips_1", "zipper", "similar", 0.02, "Figure 4b"),
        Claim(
            "on the shorter half (12 to 35 letters) Zipper's TTS is worse than the Single Decoder's",
            "tts_short",
            "single_decoder",
            "zipper",
            source="Figure 2",
        ),
        Claim(
            "on the longer half (36 to 48 letters) it is better",
            "tts_long",
            "zipper",
            "single_decoder",
            source="Figure 2",
        ),
        Claim(
            "pretrained towers help ASR with 10 % of the pairs",
            "asr",
            "zipper.unfrozen.10",
            "zipper.scratch.10",
            source="implied",
        ),
        Claim("our form is better than the paper's in ASR", "asr", "identity", "zipper", source="ours"),
        Claim("our form is better than the paper's in TTS", "tts", "identity", "zipper", source="ours"),
        Claim("… with 3 % of the pairs, ASR", "asr", "identity.3", "zipper.3", source="ours"),
        Claim("… with 1 % of the pairs, ASR", "asr", "identity.1", "zipper.1", source="ours"),
        Claim("… with 0.5 % of the pairs, ASR", "asr", "identity.0.5", "zipper.0.5", source="ours"),
        Claim(
            "unimodal rows help our form with 1 % of the pairs", "asr", "identity.mixed.1", "identity.1", source="ours"
        ),
        Claim(
            "our form's TTS is better than the Single Decoder's on the shorter half",
            "tts_short",
            "identity",
            "single_decoder",
            source="ours",
        ),
    )


def size_of(name: str) -> Size:
    """The size called ``name``. Raises UserError if there is none."""
    if name not in SIZES:
        raise UserError(f"--size = {name!r}: give one of {', '.join(SIZES)}")
    return SIZES[name]


def sweep(size: str) -> Sweep:
    chosen = size_of(size)
    return Sweep(
        name=f"findings_{size}",
        corpus=chosen.corpus,
        prepare=chosen.prepare,
        arms=all_arms(chosen),
        scoring=chosen.scoring,
        tables=tables(chosen),
        figures=figures(chosen),
        claims=claims(),
        about=chosen.about,
    )
