"""A sweep of seconds: two towers of one block, a zipper and a Single Decoder, a few sentences."""

from zipper_jax.models.config import ModalityConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.sweep.plan import Arm, Claim, Figure, Places, Scoring, Sweep, Table
from zipper_jax.training.config import DataConfig, TrainConfig
from zipper_jax.training.optimizer import OptimizerConfig

LENGTHS = {"text": 32, "speech": 96}
COMPUTE = {"scan": False, "dtype": "float32", "remat": "none"}


def tower(places: Places, *modalities: str) -> TowerConfig:
    return TowerConfig(places.vocabulary_size(*modalities), 1, 16, 2, 2, 8, 32)


def run(model: ZipperConfig, data: str, task: str, lengths, **more) -> TrainConfig:
    rates = {} if task.endswith("_lm") else {"asr": 1.0, "tts": 1.0}
    return TrainConfig(
        model=model, data=DataConfig(data, task, lengths, rates), model_dir="-", steps=2, batch_size=2,
        optimizer=OptimizerConfig(learning_rate=1e-3), **more,
    )  # fmt: skip


def alone(name: str):
    def config(places: Places, seed: int) -> TrainConfig:
        modality = ModalityConfig(name, places.vocabulary_size(name))
        model = ZipperConfig({name: tower(places, name)}, {name: modality}, **COMPUTE)
        folder = places.text() if name == "text" else places.data()
        return run(model, folder, f"{name}_lm", {name: LENGTHS[name]})

    return Arm(f"{name}_lm", f"{name} alone", config, seeds=(0,), scored="no")


def zipper(name: str, share: float = 1.0, **arm) -> Arm:
    def config(places: Places, seed: int) -> TrainConfig:
        towers = {m: tower(places, m) for m in LENGTHS}
        modalities = {m: ModalityConfig(m, places.vocabulary_size(m)) for m in LENGTHS}
        zips = (ZipConfig(towers=("text", "speech"), pairs=((1, 1),), mlp_multiplier=1),)
        model = ZipperConfig(towers, modalities, zips=zips, **COMPUTE)
        start = {m: places.run(f"{m}_lm") for m in LENGTHS}
        return run(model, places.data(share), "fusion", LENGTHS, initialise_from=start)

    return Arm(name, "two towers", config, share=share, needs=("text_lm", "speech_lm"), **arm)


def single_decoder() -> Arm:
    def config(places: Places, seed: int) -> TrainConfig:
        text, speech = (places.vocabulary_size(m) for m in LENGTHS)
        modalities = {"text": ModalityConfig("decoder", text), "speech": ModalityConfig("decoder", speech, offset=text)}
        model = ZipperConfig({"decoder": tower(places, *LENGTHS)}, modalities, **COMPUTE)
        return run(model, places.data(), "fusion", {"decoder": 128})

    return Arm("single_decoder", "one tower", config)


def sweep(size: str) -> Sweep:
    voice = {"voices": ("kal16",), "rates": (1.0,), "engine": "flite"} if size == "flite" else {"engine": "espeak"}
    return Sweep(
        name="tiny",
        corpus={"train": 24, "validation": 4, "test": 6, "test_other": 4, **voice},
        prepare={
            "num_units": 16,
            "unit_features": "log-mel",
            "text_vocabulary_size": 64,
            "text_length": 32,
            "speech_length": 96,
        },
        arms=(
            alone("text"),
            alone("speech"),
            zipper("zipper", perplexity=True),
            single_decoder(),
            zipper("zipper.half", share=0.5),
            zipper("zipper.tried", scored="validation", seeds=(0,)),
        ),
        seeds=(0, 1),
        scoring=Scoring(speech_sentences=4),
        tables=(Table("Speech to text", ("zipper", "single_decoder"), ("asr", "asr_gates_zero", "tts")),),
        figures=(Figure("by_length", "By length", "letters", "tts", {"Zipper": [(0.0, "zipper")]}, by_length=True),),
        claims=(Claim("the zipper hears better", "asr_nats", "zipper", "single_decoder"),),
    )
