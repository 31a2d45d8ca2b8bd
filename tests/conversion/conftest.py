"""Tests that need transformers ask for ``tiny``; they are skipped where torch or transformers is not installed."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """``tiny(name, dtype="float32")`` -> (folder, transformers' model): built once per session."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    import tiny_hf

    made = {}

    def build(name, dtype="float32"):
        if (name, dtype) not in made:
            folder = tmp_path_factory.mktemp("hf")
            made[name, dtype] = (folder, tiny_hf.build(name, folder, dtype))
        return made[name, dtype]

    return build
