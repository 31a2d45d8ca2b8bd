"""A separate program around espeak-ng (GPL-3): one JSON request per line in, a JSON header line and PCM out.

Run by path, never imported by zipper_jax; it imports nothing of zipper_jax. The library is initialised once, and every
utterance is synthesised in a child forked from that state: espeak-ng carries state from one utterance to the next, so a
fresh child makes the samples independent of the order of requests.
"""

import ctypes
import json
import os
import signal
import sys

import espeakng_loader

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: no thread, no sound card
_CHARACTERS = 1  # POS_CHARACTER
_UTF8 = 1  # espeakCHARS_UTF8
_RATE, _PITCH = 1, 3  # espeakRATE, espeakPITCH
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(library: ctypes.CDLL, request: dict) -> tuple[int, bytes]:
    """Return status (0: success) and 16-bit samples; call it once per process."""
    pieces = []

    def receive(samples, count, _events):
        if samples and count:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _Callback(receive)
    library.espeak_SetSynthCallback(callback)
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    ctypes.CDLL(None).srand(1)
    status = library.espeak_SetVoiceByName(request["voice"].encode())
    library.espeak_SetParameter(_RATE, request["words_per_minute"], 0)
    library.espeak_SetParameter(_PITCH, request["pitch"], 0)
    text = request["text"].encode() + b"\0"
    status = status or library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, _CHARACTERS, 0, _UTF8, None, None)
    return status, b"".join(pieces)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent closes stdin
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    sample_rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if sample_rate <= 0:
        sys.exit("espeak-ng cannot read its data: reinstall espeakng-loader")
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            status, samples = speak(library, json.loads(line))
            header = {"status": status, "sample_rate": sample_rate, "bytes": len(samples)}
            sys.stdout.buffer.write(json.dumps(header).encode() + b"\n" + samples)
            sys.stdout.buffer.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit("espeak-ng crashed")


if __name__ == "__main__":
    main()
