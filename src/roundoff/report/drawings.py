"""What a trained model makes: small grey pictures as PNG inside the page, or a text."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from roundoff.errors import UsageError

__all__ = ["Drawing", "Made", "grey_png", "made_of"]

MOST_DRAWINGS = 48
MOST_TEXT = 4000


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture as a `data:` address, with what it should show and its size in points."""

    address: str
    caption: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Made:
    """What a model made after training: pictures or a text, and how many are left out."""

    drawings: Sequence[Drawing] = ()
    text: str = ""
    left_out: int = 0
    problem: str = ""


def made_of(sample: object) -> Made:
    """The key `sample` of a line, ready to be shown; what is no picture is told, not raised."""
    found = cast("dict[str, Any]", sample) if isinstance(sample, dict) else {}
    text, held = found.get("text"), found.get("images")
    if isinstance(text, str):
        return Made(text=text[:MOST_TEXT], left_out=max(0, len(text) - MOST_TEXT))
    images = cast("list[Any]", held) if isinstance(held, list) else []
    captions = [*map(str, found.get("captions") or ()), *("" for _ in images)]
    try:
        drawings = [
            Drawing(_address(image), caption, len(image[0]), len(image))
            for image, caption in zip(images[:MOST_DRAWINGS], captions, strict=False)
        ]
    except UsageError as error:
        return Made(problem=str(error))
    return Made(drawings, left_out=max(0, len(images) - MOST_DRAWINGS))


def _address(image: Sequence[Sequence[int]]) -> str:
    return "data:image/png;base64," + base64.b64encode(grey_png(image)).decode()


def grey_png(image: Sequence[Sequence[int]]) -> bytes:
    """Rows of grey values, 0 (black) to 255 (white), as a PNG; `UsageError` for anything else.

    >>> grey_png([[0, 255]])[:8]
    b'\\x89PNG\\r\\n\\x1a\\n'
    """
    try:
        rows = [bytes(list(row)) for row in image]  # bytes(3) would be three zeros
    except (TypeError, ValueError):
        raise UsageError("a sample is no picture; expected rows of numbers 0 to 255") from None
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise UsageError("a sample is no picture; expected rows of one length")
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows), 9)
    parts = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
