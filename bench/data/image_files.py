"""Image files, read whole or not at all: what is cut short is noticed, which OpenCV does not do."""

import struct
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.errors import DataError

Bytes = NDArray[np.uint8]


def read_image(path: Path, mode: int, upright: bool = False) -> Bytes:
    """The pixels of a file in OpenCV's `mode` (colour: (H, W, 3) BGR, grey: (H, W)); DataError where it is cut short or broken.

    16 bits become 8, the upper ones; palettes and CMYK become RGB, an alpha channel is dropped. upright: turned as the camera's
    orientation tag says, which the masks of a data set do not follow.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"The file {path} cannot be read: {error.strerror}.") from None
    if not is_complete(content):
        raise DataError(f"The file {path} is cut short after {len(content)} bytes; copy it again from where it came.")
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), mode if upright else mode | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # more pixels than OpenCV takes, 2^30
        pixels = None
    if pixels is None:
        raise DataError(f"The file {path} is not an image that can be read (tif, png or jpg of at most 2^30 pixels).")
    return pixels.astype(np.uint8, copy=False)


def is_complete(content: bytes) -> bool:
    """Whether a tif, png or jpg file goes on to its end; OpenCV fills what is missing of some with grey, without a word."""
    if content[:2] == b"\xff\xd8":
        return _jpg_is_complete(content)
    if content[:4] == b"\x89PNG":
        return content.rfind(b"IEND\xae\x42\x60\x82") > 0
    if content[:4] in (b"II*\0", b"MM\0*"):
        return _tif_is_complete(content)
    return bool(content)


def _jpg_is_complete(content: bytes) -> bool:
    """Whether the end marker follows the pixels; a thumbnail in the header has an end marker too, so the header is skipped."""
    at = 2
    while content[at : at + 2] != b"\xff\xda":  # the start of the pixels
        if at + 4 > len(content) or content[at] != 0xFF:
            return False
        # a second 0xFF is padding before the marker, anything else a segment that states its length
        at += 1 if content[at + 1] == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4])
    return content.find(b"\xff\xd9", at) > 0


TIF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
TIF_FORMATS = {1: "B", 3: "H", 4: "I"}
TIF_PIXELS = ((273, 279), (324, 325))  # tags: offsets and byte counts of strips, of tiles


def _tif_is_complete(content: bytes) -> bool:
    """Whether the first image's tags, their values and all its strips or tiles lie within the file."""
    try:
        tags = dict(_tif_tags(content))
    except struct.error:
        return False
    ranges = (zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False) for offsets, counts in TIF_PIXELS)
    return all(offset + count <= len(content) for of_kind in ranges for offset, count in of_kind)


def _tif_tags(content: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The whole-number tags of a tif's first image with their values; struct.error where any tag lies beyond the file."""
    order = "<" if content[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(order + "I", content, 4)
    (entries,) = struct.unpack_from(order + "H", content, directory)
    struct.unpack_from("4x", content, directory + 2 + 12 * entries)  # the link to a next image ends the directory
    for at in range(directory + 2, directory + 2 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", content, at)
        size = TIF_TYPE_BYTES.get(kind, 1) * count
        start = at + 8 if size <= 4 else struct.unpack_from(order + "I", content, at + 8)[0]
        struct.unpack_from(f"{size}x", content, start)
        if kind in TIF_FORMATS:
            yield tag, struct.unpack_from(f"{order}{count}{TIF_FORMATS[kind]}", content, start)
