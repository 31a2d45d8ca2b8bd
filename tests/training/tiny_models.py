"""Tiny unequal towers that compile in seconds, shared by the training tests."""

from zipper_jax.models.config import ModalityConfig, ProjectionConfig, TowerConfig, ZipConfig, ZipperConfig
from zipper_jax.sharding.mesh import MeshConfig

TEXT, SPEECH = 22, 32  # vocabulary sizes, begin and end included
ONE_DEVICE = MeshConfig(data=1)
LENGTHS = {"text": 16, "speech": 24}


def tower(vocab_size: int, num_layers: int, width: int) -> TowerConfig:
    return TowerConfig(
        vocab_size, num_layers, width, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=2 * width
    )  # fmt: skip


def text_model() -> ZipperConfig:
    return ZipperConfig(towers={"text": tower(TEXT, 2, 16)}, modalities={"text": ModalityConfig("text", TEXT)})


def speech_model() -> ZipperConfig:
    return ZipperConfig(
        towers={"speech": tower(SPEECH, 3, 24)}, modalities={"speech": ModalityConfig("speech", SPEECH)}
    )


def zipper_model() -> ZipperConfig:
    return ZipperConfig(
        towers={"text": tower(TEXT, 2, 16), "speech": tower(SPEECH, 3, 24)},
        modalities={"text": ModalityConfig("text", TEXT), "speech": ModalityConfig("speech", SPEECH)},
        zips=(ZipConfig(("speech", "text"), {"text": 1, "speech": 2}),),
        input_projections={"text": ProjectionConfig(), "speech": ProjectionConfig()},
    )


def decoder_model() -> ZipperConfig:
    return ZipperConfig(
        towers={"decoder": tower(TEXT + SPEECH, 2, 16)},
        modalities={
            "text": ModalityConfig("decoder", TEXT),
            "speech": ModalityConfig("decoder", SPEECH, offset=TEXT),
        },
    )
