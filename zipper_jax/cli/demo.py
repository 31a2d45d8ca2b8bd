"""``zipper demo``: a web page for speech to text and text to speech."""

import argparse
import importlib.util
import os
import sys
from pathlib import Path

from zipper_jax.tasks import SPEECH, TEXT
from zipper_jax.utils.errors import UserError

DESCRIPTION = """\
Serve a web page on this machine only (127.0.0.1): transcribe recorded or uploaded speech, synthesise a sentence, and
show the cross-attention between text and speech. Ctrl-C stops it.
Needs gradio: pip install --editable '.[demo]' in the checkout.

  zipper demo --model runs/smoke/zipper
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.description = DESCRIPTION
    parser.add_argument("--model", required=True, type=Path, help="run folder of a fused model")
    parser.add_argument("--port", type=int, default=7860, help="TCP port (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    if not 1 <= args.port <= 65_535:
        raise UserError(f"--port = {args.port}: give 1 to 65535, e.g. 7860")
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "zipper demo needs gradio, which is not installed: pip install --editable '.[demo]' in the checkout"
        )
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported
    from zipper_jax.api import load
    from zipper_jax.cli import demo_page

    model = load(args.model)
    for modality in (SPEECH, TEXT):
        if modality not in model.layout:
            raise UserError(f"--model = {args.model}: it has no {modality}; give the run folder of a fused model")
    print(f"http://{demo_page.HOST}:{args.port} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    demo_page.launch(demo_page.build(model, f"Zipper: {args.model.resolve().name}"), args.port)
    return 0
