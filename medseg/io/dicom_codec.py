"""Compressed images are unpacked in a process of their own.

The decoders are C and C++: on damaged data they may abort the process, go on for ever, or give grey and say so only on the
error stream. There, all three end as one clear error, and the program goes on. The process runs this file as a script, reads
requests from its standard input until that closes, and answers each on its standard output: JSON on one line, then bytes.
Nothing that comes from a file is executed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from typing import Any, BinaryIO

PLUGINS = ("pyjpegls", "pylibjpeg", "gdcm", "pydicom", "pillow")
"""pydicom's decoders, the strictest first."""

LIMIT_S, LIMIT_S_PER_BYTE = 5.0, 1e-5
"""How long one image may take: a hundred times what the slowest decoder takes on one slow core (10 MB/s)."""

NO_DECODER, DAMAGED = "no decoder", "damaged"
"""What can be wrong with a request, as :class:`CodecError` has it."""

_lock = threading.Lock()


class CodecError(Exception):
    """An image was not unpacked: ``NO_DECODER`` is installed, or it is ``DAMAGED``."""


def unpack(frame: bytes, description: dict[str, Any], num_bytes: int) -> bytes:
    """Unpack one compressed image.

    Args:
        frame: The compressed image.
        description: What pydicom's decoders have to know of it; ``transfer_syntax_uid`` among it.
        num_bytes: Expected size of the result [bytes].

    Raises:
        CodecError: It was not unpacked.
    """
    request = json.dumps({"num_bytes": len(frame), "plugins": PLUGINS, "description": description})
    with _lock:
        try:
            answer, pixels = _ask(_worker(os.getpid()), request.encode() + b"\n" + frame, num_bytes)
        except (OSError, ValueError) as error:  # it died, was ended, or does not start
            _worker.cache_clear()
            raise CodecError(DAMAGED) from error
    if answer != "ok" or len(pixels) != num_bytes:
        raise CodecError(NO_DECODER if answer == NO_DECODER else DAMAGED)
    return pixels


@functools.lru_cache(maxsize=1)
def _worker(pid: int) -> subprocess.Popen[bytes]:
    """The process that decodes for this one; a fork of this process gets its own. It ends when this process does."""
    with tempfile.TemporaryFile() as complaints:
        worker = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,
        )
    assert worker.stdout is not None
    if worker.stdout.readline() != b"ready\n":
        raise OSError("the decoding process does not start")
    atexit.register(_end, worker, pid)
    return worker


def _end(worker: subprocess.Popen[bytes], pid: int) -> None:
    """Let the process go before the one that started it ends, which would complain of what it leaves open."""
    if os.getpid() != pid:
        return  # a fork
    worker.kill()
    with contextlib.suppress(OSError):  # it may be gone already
        worker.communicate()


def _ask(worker: subprocess.Popen[bytes], request: bytes, num_bytes: int) -> tuple[str, bytes]:
    assert worker.stdin is not None and worker.stdout is not None
    timer = threading.Timer(LIMIT_S + LIMIT_S_PER_BYTE * num_bytes, worker.kill)
    timer.start()
    try:
        worker.stdin.write(request)
        worker.stdin.flush()
        head = json.loads(worker.stdout.readline())
        return str(head["answer"]), worker.stdout.read(head["num_bytes"])
    except (OSError, ValueError):
        worker.kill()
        worker.communicate()
        raise
    finally:
        timer.cancel()


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """The other end of the pipe."""
    import pydicom.pixels  # noqa: F401  # before the clock of the first request runs

    answers.write(b"ready\n")
    answers.flush()
    while line := requests.readline():
        request = json.loads(line)
        frame = requests.read(request["num_bytes"])
        num_complaints = os.fstat(2).st_size
        try:
            pixels = _decode(frame, request["plugins"], request["description"])
            answer = DAMAGED if os.fstat(2).st_size > num_complaints else "ok"
        except Exception as error:  # every decoder has its own errors
            answer, pixels = (
                NO_DECODER if isinstance(error, LookupError) and error.args == (NO_DECODER,) else DAMAGED,
                b"",
            )
        answers.write(json.dumps({"answer": answer, "num_bytes": len(pixels)}).encode() + b"\n" + pixels)
        answers.flush()


def _decode(frame: bytes, plugins: list[str], description: dict[str, Any]) -> bytes:
    import warnings

    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    warnings.simplefilter("ignore")
    decoder = get_decoder(description["transfer_syntax_uid"])
    plugin = next((name for name in plugins if name in decoder.available_plugins), None)
    if plugin is None:
        raise LookupError(NO_DECODER)
    array, _ = decoder.as_array(
        encapsulate([frame], has_bot=False), index=0, raw=True, decoding_plugin=plugin, number_of_frames=1,
        samples_per_pixel=1, photometric_interpretation="MONOCHROME2", pixel_keyword="PixelData",
        correct_unused_bits=False, apply_jls_sign_correction=False, apply_j2k_sign_correction=False,
        **{name: value for name, value in description.items() if name != "transfer_syntax_uid"},
    )  # fmt: skip
    return bytes(array.tobytes())


if __name__ == "__main__":
    answers_stream = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what C code prints is a complaint, not an answer
    _serve(sys.stdin.buffer, answers_stream)
