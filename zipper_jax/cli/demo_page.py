"""The page of ``zipper demo``: speech to text, text to speech, and their cross-attention. Needs gradio.

The page loads no font, script or figure from other machines and sends no telemetry.
"""

from html import escape
from typing import Any

import gradio as gr
import numpy as np

from zipper_jax.evaluation.attention import cross_attention
from zipper_jax.inference.model import Model
from zipper_jax.reports.page import page, plots
from zipper_jax.reports.plots import attention
from zipper_jax.tasks import SPEECH, TEXT
from zipper_jax.utils.errors import UserError

HOST = "127.0.0.1"
"""Loopback only, because the page has no access control."""


def build(model: Model, title: str) -> gr.Blocks:
    """Build the page for a model of text and speech."""

    def transcribe(recorded: str | None) -> tuple[str, str]:
        if recorded is None:
            raise gr.Error("Record something, or upload a file, first.")
        units = _told(model.units, recorded)
        (transcript,) = _told(model.generate, [[(SPEECH, units)]], (TEXT,))[0]
        return transcript.content, _pictures(model, transcript.content, units, "asr")

    def speak(text: str) -> tuple[tuple[int, np.ndarray], str]:
        if not text.strip():
            raise gr.Error("Write a sentence first.")
        spoken = _told(model.speak, text)
        if not len(spoken.units):
            raise gr.Error("The model generated no unit: try another sentence.")
        samples = np.round(np.clip(spoken.waveform, -1, 1) * 32767).astype(np.int16)
        return (spoken.sample_rate, samples), _pictures(model, text, spoken.units, "tts")

    # Recordings and generated audio are temporary files, deleted after at most an hour and when the page stops.
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.Markdown(f"## {title}")
        with gr.Tab("Speech to text"):
            # As a file, because for arrays gradio would decode it, with ffmpeg if it is not a WAV.
            recorded = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Speech", buttons=[])
            listen = gr.Button("Transcribe", variant="primary")
            transcript = gr.Textbox(label="Text", buttons=["copy"])
            seen = gr.HTML()
            listen.click(transcribe, recorded, [transcript, seen])
        with gr.Tab("Text to speech"):
            text = gr.Textbox(label="Sentence")
            say = gr.Button("Speak", variant="primary")
            spoken = gr.Audio(label="Speech", interactive=False, buttons=["download"])
            drawn = gr.HTML()
            say.click(speak, text, [spoken, drawn])
            text.submit(speak, text, [spoken, drawn])
    return blocks


def launch(blocks: gr.Blocks, port: int) -> None:
    """Serve the page on loopback until interrupted.

    Raises:
        UserError: The port is in use.
    """
    # The default theme fetches its fonts.
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    try:
        blocks.launch(
            server_name=HOST, server_port=port, share=False, ssr_mode=False, theme=theme, quiet=True, footer_links=[]
        )
    except OSError as error:
        raise UserError(f"--port = {port}: {error}; give another one") from error


def _told(function: Any, *arguments: Any) -> Any:
    """Call ``function``; a UserError is shown on the page."""
    try:
        return function(*arguments)
    except UserError as error:
        raise gr.Error(str(error)) from error


def _pictures(model: Model, text: str, units: np.ndarray, task: str) -> str:
    """Return one figure per zip, in an iframe, so that its styles do not affect the page."""
    tokens, weights = cross_attention(model, text, units, task)
    step = 1 / model.tokenizer.rate_hz
    what = "each text token draws from speech" if task == "asr" else "speech draws from each text token"
    titles = {index: f"Zip {index + 1}: what {what}" for index in weights}
    drawn = [(titles[i], attention(w.astype(np.float32), tokens, step, title=titles[i])) for i, w in weights.items()]
    inside = page("Cross-attention", plots(drawn, "no zip leads this way"))
    height = 140 + 16 * len(tokens) * -(-len(drawn) // 2)
    return f'<iframe srcdoc="{escape(inside)}" style="width: 100%; height: {height}px; border: 0"></iframe>'
