"""Speech from the espeak-ng shared library, in a process of its own.

`fm.data.builders.spoken_words` runs this file by its path; it imports only the standard library.
The library is C code loaded with ctypes: a crash ends only this process.

Usage: python -I espeak.py LIBRARY DATA OUT < utterances

`utterances` is a JSON list of [text, voice, pitch 0..99, speed in words a minute]. OUT becomes
4-byte little-endian integers and samples: the rate in Hz; then for each utterance the number of its
samples and the samples, int16 in the machine's byte order.
"""

import ctypes
import json
import pathlib
import struct
import sys

# From espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_RATE, _PITCH = 1, 3
_CHARACTER_POSITION = 1
_UTF8 = 1
_OK = 0

_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


def main(library: str, data: str, out: str) -> None:
    """Synthesizes utterances, a JSON list on stdin, with eSpeak and writes the audio to `out`."""
    try:
        espeak = ctypes.CDLL(library)
    except OSError as error:
        sys.exit(f"the library cannot be loaded: {error}")
    rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), 0)
    if rate <= 0:
        sys.exit("the library found no voices")
    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples, count, events) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    espeak.espeak_SetSynthCallback(collect)
    # Otherwise the breath noise of a voice depends on the time of day.
    espeak.espeak_ng_SetRandSeed(ctypes.c_long(0))
    with pathlib.Path(out).open("wb") as file:
        file.write(struct.pack("<I", rate))
        for text, voice, pitch, speed in json.load(sys.stdin):
            chunks.clear()
            encoded = text.encode()
            codes = (
                espeak.espeak_SetVoiceByName(voice.encode()),
                espeak.espeak_SetParameter(_RATE, speed, 0),
                espeak.espeak_SetParameter(_PITCH, pitch, 0),
                espeak.espeak_Synth(
                    encoded, len(encoded) + 1, 0, _CHARACTER_POSITION, 0, _UTF8, None, None
                ),
                espeak.espeak_Synchronize(),
            )
            if set(codes) != {_OK}:
                sys.exit(f"no speech for {text!r} by {voice!r}: codes {codes}")
            samples = b"".join(chunks)
            file.write(struct.pack("<I", len(samples) // 2) + samples)


if __name__ == "__main__":
    main(*sys.argv[1:])
