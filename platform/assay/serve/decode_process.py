"""A process that decodes images, and may die of one; both ends of it.

It takes the bytes of one file through a socket and hands back the pixels in memory that both see
(`memfd_create(2)`, passed as by `unix(7)`), so that an image of any size crosses without a copy.
"""

import json
import math
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import weakref
from contextlib import suppress
from dataclasses import dataclass, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np

import assay
from assay.data.images import decode
from assay.data.images.pyramid import ImagePyramid, Level
from assay.data.images.white import Range
from assay.errors import ImageError
from assay.shapes import UInt8

FLOOR_BYTES = 512 << 20
"""Memory that any file may take to decode, beside that by its bytes and pixels."""


BYTES_PER_BYTE, BYTES_PER_PIXEL = 4, 24
"""Memory by the file's bytes; and by its pixels: copies of 16-bit colours, and their pyramid."""


ARENAS, ARENA_BYTES = 2, 160 << 20
"""Memories that a process keeps for the images that come, and the largest of them. An image that finds
none free has one of its own, as a larger one has."""


ONCE = -1


START_S = 120.0
"""Longest time that a process may take to begin; no image is to blame for that."""


_LENGTH, _REQUEST = struct.Struct("<Q"), struct.Struct("<Qiq")


_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(128 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}
"""Of a child: one thread, and memory that was used goes to the next image, since fresh pages cost more
than decoding a small one (glibc, mallopt(3))."""


@dataclass(frozen=True)
class DecodeLimits:
    """What an image may cost: pixels by its header, and seconds."""

    pixels: float
    seconds: float


class Child:
    """One decoding process, at the other end of a socket; it ends when the socket does."""

    def __init__(self, limits: DecodeLimits) -> None:
        self.socket, other = socket.socketpair()
        self.socket.settimeout(START_S)
        self.seconds, self.has_begun = limits.seconds, False
        self.arenas: dict[int, mmap] = {}
        self.free = list(range(ARENAS))
        package = str(Path(assay.__file__).parents[1])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        command = (
            f"from assay.serve.decode_process import work; work({other.fileno()}, {limits.pixels})"
        )
        with other:
            self.process = subprocess.Popen(
                [sys.executable, "-c", command],
                env=os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)},
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries write there what a file makes them say
            )

    def read(self, content: bytes, page: int | None = None) -> ImagePyramid | ImageError:
        """Hand over a file and wait for its pixels, or for why there are none.

        Raises:
            TimeoutError: the process is too slow.
            Exception: it died, or what it answers makes no sense.
        """
        if not self.has_begun:
            _receive(self.socket, 1)
            self.socket.settimeout(self.seconds)
            self.has_begun = True
        arena = self.free.pop() if self.free else ONCE
        self.socket.sendall(_REQUEST.pack(len(content), arena, -1 if page is None else page))
        self.socket.sendall(content)
        start, files, _, _ = socket.recv_fds(self.socket, _LENGTH.size, 1)
        try:
            length = _LENGTH.unpack(start + _receive(self.socket, _LENGTH.size - len(start)))[0]
            answer = json.loads(_receive(self.socket, length))
            if files:
                self.arenas[arena] = mmap(files[0], 0, access=ACCESS_READ)
        finally:
            for file in files:
                os.close(file)
        pixels = np.frombuffer(self.arenas[arena], np.uint8) if "error" not in answer else None
        if arena == ONCE:
            self.arenas.pop(arena, None)
        elif pixels is None:
            self.free.append(arena)
        else:
            weakref.finalize(pixels, self.free.append, arena)
        return ImageError(answer["error"]) if pixels is None else _attach(answer, pixels)

    def kill(self) -> None:
        """End it, whatever it does."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


def _receive(connection: socket.socket, length: int) -> bytes:
    """Receive so many bytes.

    Raises:
        EOFError: the other end is gone.
    """
    content = b""
    while len(content) < length:  # once, as a rule
        piece = connection.recv(length - len(content), socket.MSG_WAITALL)
        if not piece:
            raise EOFError
        content = content + piece if content else piece
    return content


def _attach(answer: dict[str, Any], pixels: UInt8[np.ndarray, " n"]) -> ImagePyramid:
    """Cut what an arena holds into the levels of a pyramid, each of which keeps it from being reused."""
    levels, offset, dtype = [], 0, np.dtype(answer["dtype"])
    for shape in answer["shapes"]:
        end = offset + math.prod(shape) * dtype.itemsize
        levels.append(pixels[offset:end].view(dtype).reshape(shape))
        offset = end
    mean, std = np.array(answer["mean"]), np.array(answer["std"])
    values = Range(answer["dtype"], answer["low"], answer["high"])
    return ImagePyramid(levels, values, mean, std, bytes.fromhex(answer["signature"]))


def work(file: int, most_pixels: float) -> None:
    """Decode what comes through a socket until it closes; the main function of a child."""
    import cv2

    cv2.setNumThreads(1)
    os.nice(4)  # what answers /health goes first
    with suppress(OSError):  # and where memory is short, this ends first
        Path("/proc/self/oom_score_adj").write_text("1000")
    arenas: dict[int, mmap] = {}
    with socket.socket(fileno=file) as connection, suppress(EOFError, ConnectionError):
        connection.sendall(b"!")
        while True:
            length, arena, page = _REQUEST.unpack(_receive(connection, _REQUEST.size))
            content = _receive(connection, length)
            try:
                entry = _decode(content, None if page < 0 else page, most_pixels)
            except Exception as error:  # MemoryError too: whatever a decoder raises is an answer
                _send(connection, {"error": say(error)})
                continue
            _answer(connection, entry, arenas, arena)
            del entry, content  # before the next one is measured


def _answer(
    connection: socket.socket, entry: ImagePyramid, arenas: dict[int, mmap], arena: int
) -> None:
    """Send a pyramid by way of an arena: a larger one in the place of one that is too small."""
    size, files = sum(level.nbytes for level in entry.levels), []
    if arena == ONCE or arena not in arenas or len(arenas[arena]) < size:
        files = [_make_memory(size)]
        arenas[arena] = mmap(files[0], size)
    target, offset = np.frombuffer(arenas[arena], np.uint8), 0
    for level in entry.levels:
        target[offset : offset + level.nbytes] = (
            np.ascontiguousarray(level).reshape(-1).view(np.uint8)
        )
        offset += level.nbytes
    _send(connection, _describe(entry), *files)
    for file in files:
        os.close(file)
    del target
    if arena == ONCE or size > ARENA_BYTES:
        del arenas[arena]


def _decode(content: bytes, page: int | None, most_pixels: float) -> ImagePyramid:
    """Decode within the memory that a file of its bytes and pixels may take.

    Raises:
        ImageError: it cannot be read, or has too many pixels.
    """
    _limit_memory(FLOOR_BYTES + BYTES_PER_BYTE * len(content))
    pixels = probe_within(content, page, most_pixels)
    _limit_memory(FLOOR_BYTES + BYTES_PER_BYTE * len(content) + BYTES_PER_PIXEL * pixels)
    entry = ImagePyramid.read(content, page)
    # a page of tiles decodes them as they are looked at; that too is done here
    levels: list[Level] = [np.asarray(level) for level in entry.levels]
    return replace(entry, levels=levels, range=Range.of(np.asarray(levels[0])))


def probe_within(content: bytes, page: int | None, most_pixels: float) -> int:
    """Return how many pixels a file has, by its header.

    Raises:
        ImageError: they are too many, or the header is damaged.
    """
    height, width = decode.probe(content, page=page)
    if height * width > most_pixels:
        raise ImageError(
            f"it has {width} x {height} pixels, more than {most_pixels / 1e6:g} megapixels"
        )
    return height * width


def _limit_memory(more: int) -> None:
    """Let this process take so much more than it has (bytes)."""
    with suppress(OSError):  # a system without /proc goes without this limit
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))


def say(error: Exception) -> str:
    """Return why an image cannot be read, in half a sentence for who sent it.

    What a library says may name files of the machine that it was built on, or addresses in memory;
    then the sender is told less.
    """
    if isinstance(error, MemoryError):
        return "it takes more memory to decode than an image of its size should"
    text = str(error).removeprefix("Image <bytes> cannot be read: ").removesuffix(".")
    is_plain = isinstance(error, ImageError) and text.isprintable() and len(text) <= 300
    return text if is_plain and not any(mark in text for mark in "/<>") else "it is damaged"


def _make_memory(size: int) -> int:
    """Open memory without a name that another process may map."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("assay")
    else:
        with tempfile.TemporaryFile() as opened:
            file = os.dup(opened.fileno())
    os.ftruncate(file, size)
    return file


def _describe(entry: ImagePyramid) -> dict[str, Any]:
    return {
        "dtype": str(entry.levels[0].dtype),
        "shapes": [level.shape for level in entry.levels],
        "low": entry.range.low,
        "high": entry.range.high,
        "mean": entry.mean_value.tolist(),
        "std": entry.std_value.tolist(),
        "signature": entry.signature.hex(),
    }


def _send(connection: socket.socket, answer: dict[str, Any], *files: int) -> None:
    content = json.dumps(answer).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(content))], files)
    connection.sendall(content)
