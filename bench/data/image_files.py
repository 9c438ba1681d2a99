"""Image files, read whole and one way or not at all: whoever needs pixels (a run, a check, a prediction) reads them here.

OpenCV decodes what is cut short or damaged without a word of its own, so a file's end is looked for first, and what the decoders
(libjpeg, libtiff) print while they work is listened to.
"""

import contextlib
import io
import os
import re
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.errors import DataError, is_text

Bytes = NDArray[np.uint8]
Values = NDArray[Any]
DAMAGE = re.compile(r"(?:Corrupt JPEG data|Premature end of JPEG|TIFF_Error)[^\n]*")
DECODERS = re.compile(r"\s*$|\[ *(?:ERROR|WARN|INFO)|Corrupt|Premature|Inconsistent|Invalid|Unsupported|Warning|Unknown")
UNCLEAR_BELOW = 1 << 14  # of 16 bits: what stays in the lowest quarter may have fewer, and would be nearly black
ROTATED = 5  # orientation tags from here on swap height and width

_stderr = threading.Lock()


def read_image(path: Path, bits: int = 0) -> Bytes:
    """An image (H, W, 3) uint8 RGB, turned upright by its orientation tag; DataError where it is broken or can be read several ways.

    Grey is repeated, palettes and CMYK become RGB, an alpha channel is dropped, of 16 bits the upper 8 are kept. bits: how many
    of 16 are used, 8 to 16; 0: all, and an image that may have fewer is refused.
    """
    pixels = _decoded(path, cv2.IMREAD_COLOR)
    if pixels.dtype == np.uint16 and pixels.ndim == 3:
        pixels = eight_bits(f"image {path}", pixels, bits)
    if pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise DataError(
            f"The image {path} has values of type {pixels.dtype}, whose black and white nobody knows: uint8 or uint16 is needed."
        )
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def eight_bits(what: str, pixels: Values, bits: int = 0) -> Bytes:
    """The upper 8 of the `bits` that are used of 16; DataError as in `read_image`, `what` being an image as a message calls it."""
    largest = int(pixels.max())
    if not bits and 0 < largest < UNCLEAR_BELOW:
        raise DataError(
            f"The {what} has 16 bits and no value above {largest}, which may be fewer bits and would be nearly black: `bits` in the "
            f"data set's file (--bits of bench.predict) must say how many are used, {max(8, largest.bit_length())} to 16."
        )
    if bits and largest >> bits:
        raise DataError(f"The {what} has the value {largest}, which bits = {bits} does not allow: 0 to {2**bits - 1} is.")
    return (pixels >> ((bits or 16) - 8)).astype(np.uint8)


def read_mask(path: Path) -> Values:
    """A mask's values (H, W) from 0 at the depth that its file has, colours as grey, turned upright; DataError as above.

    What is not black is never 0, however dark, but in a JPEG.

    An alpha channel is dropped, but not where it may be the mask: where the colours are all the same and it is not.
    """
    values = _not_negative(path, _decoded(path, cv2.IMREAD_GRAYSCALE))
    if _may_have_colours(path.read_bytes()):  # of which dark ones have no grey left
        colours = _decoded(path, cv2.IMREAD_COLOR)
        values = np.maximum(values, colours.any(axis=2) if colours.ndim == 3 else 0)
    return _not_of_alpha(path, values)


def _may_have_colours(content: bytes) -> bool:
    """Whether a file's values are kept as they are, and may be colours."""
    if content[:4] == b"\x89PNG":
        return bool(content[25] & PNG_COLOURS)
    if _is_tif(content):
        return dict(_tif_tags(content)).get(PHOTOMETRIC, (RGB,))[0] not in GREY
    return not _is_jpg(content)


def _not_of_alpha(path: Path, values: Values) -> Values:
    """The values; DataError where they are all the same and an alpha channel, which may be the mask, is not."""
    if values.min() == values.max() and _alpha_varies(path):
        share = "100 % of it is" if values.max() else "none of it is"
        raise DataError(
            f"The mask {path} has the value {values.max():g} everywhere, so that {share} foreground, and an alpha channel that differs: "
            f"save the mask itself as grey, without one."
        )
    return values


def read_labels(path: Path) -> Values:
    """A label map's whole numbers (H, W), 0 for the background: a palette's indices, grey at its own depth, RGB as R·2ⁿ·2ⁿ + G·2ⁿ + B
    of n bits; DataError as above, and for a JPEG, which keeps no value as it was."""
    content = _content(path)
    if _is_jpg(content):
        raise DataError(f"The label map {path} is a JPEG, which changes values: PNG or TIFF is needed.")
    indices = _palette_indices(content)
    pixels = _decoded(path, cv2.IMREAD_COLOR) if indices is None else indices
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels.ndim == 3 and pixels.dtype.kind == "u":
        blue, green, red = (pixels[..., i].astype(np.int64) for i in range(3))
        n = 8 * pixels.dtype.itemsize
        pixels = (((red << n) + green) << n) + blue
    labels = _not_of_alpha(path, _not_negative(path, pixels))
    if labels.dtype.kind == "f" and (labels != np.floor(labels)).any():
        raise DataError(f"The label map {path} has the value {labels[labels != np.floor(labels)][0]:g}: whole numbers are needed.")
    return labels


def _not_negative(path: Path, values: Values) -> Values:
    if values.ndim != 2:
        raise DataError(
            f"The mask {path} has {values.shape[-1]} channels of type {values.dtype}: one is needed, or colours of 8 or 16 bits."
        )
    if values.dtype.kind != "u" and not (values >= 0).all():  # not a number is neither
        raise DataError(f"The mask {path} has the value {values.min():g}: 0, the background, and larger ones are allowed.")
    return values


def _alpha_varies(path: Path) -> bool:
    pixels = _decoded(path, cv2.IMREAD_UNCHANGED)
    return bool(pixels.ndim == 3 and pixels.shape[2] == 4 and pixels[..., 3].min() < pixels[..., 3].max())


def orientation(path: Path) -> int:
    """The orientation tag of an image file, 1 (as stored) to 8; 1 where there is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            tag = image.getexif().get(0x0112, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 1
    return tag if tag in range(1, 9) else 1


def _palette_indices(content: bytes) -> Values | None:
    """The indices (H, W) of a file with a palette, upright; None of another one."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content)) as image:  # of a path it would map a turned tif's pixels wrongly
            return np.asarray(ImageOps.exif_transpose(image)) if image.mode == "P" else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def check_name(path: Path) -> Path:
    """The path; DataError where its name is not UTF-8, which no list, record or table could hold."""
    if not is_text(path.name):
        raise DataError(f"The name of the file {str(path)!a} is not UTF-8: rename it.")
    return path


def _content(path: Path) -> bytes:
    """A file that is whole and one image."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"The file {path} cannot be read: {error.strerror}.") from None
    if not is_complete(content):
        raise DataError(f"The file {path} is cut short after {len(content)} bytes; copy it again from where it came.")
    if (pages := _pages(content)) > 1:
        raise DataError(f"The file {path} holds {pages} pages or frames: one image is needed; save the one that is meant by itself.")
    return content


def _decoded(path: Path, mode: int) -> Values:
    """The pixels at the file's own depth: (H, W) or (H, W, 3) BGR as `mode` says, or as they are where OpenCV cannot bring them there."""
    content = _content(path)
    tags = dict(_tif_tags(content)) if _is_tif(content) else {}
    bands, (photometric, *_) = tags.get(SAMPLES, (1,))[0], tags.get(PHOTOMETRIC, (RGB,))
    if bands > 4 or (bands > 2 and photometric in GREY):
        raise DataError(
            f"The file {path} has {bands} bands that it does not call colours: grey, or RGB with a fourth one at most, is needed."
        )
    if tags.get(EXTRA) == (UNASSOCIATED_ALPHA,) and mode != cv2.IMREAD_UNCHANGED:
        content = _without_alpha(content)  # OpenCV would multiply the colours by it
    pixels, complaint = _decode(content, mode | cv2.IMREAD_ANYDEPTH if mode >= 0 else mode)
    if pixels is None and not complaint:  # it has a depth that no grey or colour of OpenCV's has
        pixels, complaint = _decode(content, cv2.IMREAD_UNCHANGED)
    if complaint := complaint or _bad_checksum(content, tags):
        raise DataError(f"The file {path} is damaged ({complaint}): copy it again from where it came, or save it anew if it looks right.")
    if pixels is None:
        raise DataError(f"The file {path} is not an image that can be read (tif, png or jpg of at most 2^30 pixels).")
    if tags.get(PLANES) == (SEPARATE,) and pixels.ndim == 3 and pixels.dtype != np.uint8:  # OpenCV mixes them up
        raise DataError(
            f"The file {path} has its colours one after another at {8 * pixels.itemsize} bits: save it with those of a pixel together."
        )
    if (stored := max(tags.get(BITS, (0,)))) > 8 * pixels.itemsize:
        raise DataError(f"The file {path} has {stored} bits, of which {8 * pixels.itemsize} can be read: save it without its second band.")
    is_inverted = photometric == MIN_IS_WHITE and pixels.dtype in (np.uint16, np.uint32)  # of 8 bits OpenCV does it itself
    return np.iinfo(pixels.dtype).max - pixels if is_inverted else pixels


def _decode(content: bytes, mode: int) -> tuple[Values | None, str]:
    """The pixels, and what the decoder said of damage; of a png it does not make any up."""
    silent = contextlib.nullcontext(list[str]())
    with _listening() if _is_jpg(content) or _is_tif(content) else silent as said:
        try:
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), mode)
        except cv2.error:  # more pixels than OpenCV takes, 2^30
            pixels = None
    found = DAMAGE.search("".join(said))
    return pixels, found[0].strip().removeprefix("TIFF_Error ") if found else ""


def _bad_checksum(content: bytes, tags: Mapping[int, tuple[int, ...]]) -> str:
    """What is wrong with the checksum of a deflated tif's pixels, which libtiff does not look at; empty where nothing is."""
    if tags.get(COMPRESSION, (0,))[0] in DEFLATE:
        for offsets, counts in TIF_PIXELS:
            for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
                try:
                    zlib.decompress(content[offset : offset + count])
                except zlib.error as error:
                    return str(error)
    return ""


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """The lines that C code prints to stderr, which is the only place where libjpeg says that it made pixels up.

    One thread at a time: stderr is the whole process's. What is not a decoder's is passed on afterwards.
    """
    said: list[str] = []
    with _stderr, tempfile.TemporaryFile() as heard:
        try:
            before = os.dup(2)
        except OSError:  # there is no stderr
            yield said
            return
        os.dup2(heard.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
            heard.seek(0)
            said += heard.read().decode(errors="surrogateescape").splitlines(keepends=True)
    for line in said:
        if not DECODERS.match(line):
            os.write(2, line.encode(errors="surrogateescape"))


def is_complete(content: bytes) -> bool:
    """Whether a tif, png or jpg file goes on to its end; OpenCV fills what is missing of some with grey, without a word."""
    if _is_jpg(content):
        return _jpg_is_complete(content)
    if content[:4] == b"\x89PNG":
        return content.rfind(b"IEND\xae\x42\x60\x82") > 0
    if _is_tif(content):
        return _tif_is_complete(content)
    return len(content) > 3  # what is cut within its signature is of no kind any more


def _jpg_is_complete(content: bytes) -> bool:
    """Whether the end marker follows the pixels; a thumbnail in the header has an end marker too, so the header is skipped."""
    at = 2
    while content[at : at + 2] != b"\xff\xda":  # the start of the pixels
        if at + 4 > len(content) or content[at] != 0xFF:
            return False
        # a second 0xFF is padding before the marker, anything else a segment that states its length
        at += 1 if content[at + 1] == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4])
    return content.find(b"\xff\xd9", at) > 0


def _pages(content: bytes) -> int:
    """How many images a file holds: a tif's pages but for smaller copies and masks of one, an animation's frames.

    A jpg's first image is the one that counts: what a camera puts behind it are previews and depth maps.
    """
    if _is_tif(content):
        return sum(not dict(_tif_tags(content, at)).get(SUBFILE, (0,))[0] & NO_PAGE for at in _tif_directories(content))
    if content[:4] == b"\x89PNG" and (at := content.find(b"acTL", 0, content.find(b"IDAT"))) > 0:
        return int.from_bytes(content[at + 4 : at + 8])
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return content.count(b"ANMF")
    return _gif_frames(content) if content[:3] == b"GIF" else 1


def _gif_frames(content: bytes) -> int:
    from PIL import Image

    try:
        return int(getattr(Image.open(io.BytesIO(content)), "n_frames", 1))
    except (OSError, SyntaxError, ValueError):
        return 1


TIF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8, 18: 8}
TIF_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}
TIF_PIXELS = ((273, 279), (324, 325))  # tags: offsets and byte counts of strips, of tiles
SUBFILE, COMPRESSION, PHOTOMETRIC = 254, 259, 262  # tags: what kind of page, how it is packed, what its values are
SAMPLES, EXTRA = 277, 338  # tags: how many bands, what those beyond grey or RGB are
BITS, PLANES = 258, 284  # tags: of each band; whether a pixel's bands lie together
SEPARATE = 2
DEFLATE = (8, 32946)
NO_PAGE = 1 | 4  # bits of SUBFILE: a smaller copy, a mask
MIN_IS_WHITE, MIN_IS_BLACK, RGB = 0, 1, 2
GREY = (MIN_IS_WHITE, MIN_IS_BLACK)
UNASSOCIATED_ALPHA = 2
PNG_COLOURS = 2  # bit of the kind of a png: RGB or a palette


def _is_jpg(content: bytes) -> bool:
    return content[:2] == b"\xff\xd8"


def _is_tif(content: bytes) -> bool:
    return content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _tif_is_complete(content: bytes) -> bool:
    """Whether all tags, their values and all strips or tiles lie within the file."""
    try:
        pages = [dict(_tif_tags(content, at)) for at in _tif_directories(content)]
    except struct.error:
        return False
    ranges = (zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False) for tags in pages for offsets, counts in TIF_PIXELS)
    return all(offset + count <= len(content) for of_kind in ranges for offset, count in of_kind)


def _tif_form(content: bytes) -> tuple[str, str, str, int]:
    """The byte order, the formats of a directory's length and of offsets, and the bytes before a tag's value; of a big tif (64 bit) too."""
    order = "<" if content[:2] == b"II" else ">"
    return (order, "Q", "Q", 12) if b"+" in content[:4] else (order, "H", "I", 8)


def _tif_directories(content: bytes) -> Iterator[int]:
    """Where the directories of a tif's pages begin; struct.error where one lies beyond the file."""
    order, length, offset, ahead = _tif_form(content)
    link, seen = (8 if offset == "Q" else 4), set[int]()
    while True:
        (directory,) = struct.unpack_from(order + offset, content, link)
        if directory in seen or not (directory or not seen):
            return
        seen.add(directory)
        (entries,) = struct.unpack_from(order + length, content, directory)
        link = directory + struct.calcsize(length) + (ahead + struct.calcsize(offset)) * entries
        yield directory


def _tif_tags(content: bytes, directory: int | None = None) -> Iterable[tuple[int, tuple[int, ...]]]:
    """The whole-number tags of a page (the first one) with their values; struct.error where any tag lies beyond the file."""
    directory = next(_tif_directories(content)) if directory is None else directory
    order, length, offset, ahead = _tif_form(content)
    width = struct.calcsize(offset)
    (entries,) = struct.unpack_from(order + length, content, directory)
    first, size_of_entry = directory + struct.calcsize(length), ahead + width
    struct.unpack_from(f"{width}x", content, first + size_of_entry * entries)  # the link to a next image ends the directory
    for at in range(first, first + size_of_entry * entries, size_of_entry):
        tag, kind, count = struct.unpack_from(f"{order}HH{offset}", content, at)
        size = TIF_TYPE_BYTES.get(kind, 1) * count
        start = at + ahead if size <= width else struct.unpack_from(order + offset, content, at + ahead)[0]
        struct.unpack_from(f"{size}x", content, start)
        if kind in TIF_FORMATS:
            yield tag, struct.unpack_from(f"{order}{count}{TIF_FORMATS[kind]}", content, start)


def _without_alpha(content: bytes) -> bytes:
    """A tif whose fourth band is marked as unspecified, not as alpha."""
    order, _, offset, _ = _tif_form(content)
    directory = next(_tif_directories(content))
    for kind, form in TIF_FORMATS.items():  # a short by the standard, not by every writer
        marked, unmarked = (struct.pack(f"{order}HH{offset}{form}", EXTRA, kind, 1, value) for value in (UNASSOCIATED_ALPHA, 0))
        content = content[:directory] + content[directory:].replace(marked, unmarked, 1)
    return content
