"""Tif files of any kind, written tag by tag: what other libraries do not write, or only in one way."""

import struct

import numpy as np

FORMATS = {"u": 1, "i": 2, "f": 3}  # sample formats
SHORT, LONG = 3, 4


def tif(*pages: np.ndarray, order: str = "<", planar: bool = False, big: bool = False, **tags: int) -> bytes:
    """Uncompressed pages (H, W) or (H, W, n); photometric, extra, orientation and subfile (of the pages after the first) as tags."""
    count, offset, width = ("Q", "Q", 8) if big else ("H", "I", 4)
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    content = magic + (struct.pack(order + "HHQ", 8, 0, 0) if big else struct.pack(order + "I", 0))
    link = len(content) - width
    for number, page in enumerate(pages):
        bands = page.reshape(*page.shape[:2], -1).astype(page.dtype.newbyteorder(order))
        n = bands.shape[2]
        strips = [bands[..., i].tobytes() for i in range(n)] if planar else [bands.tobytes()]
        at = [len(content) + sum(map(len, strips[:i])) for i in range(len(strips))]
        content += b"".join(strips) + bytes(sum(map(len, strips)) % 2)
        entries = {
            256: [page.shape[1]],
            257: [page.shape[0]],
            258: [8 * page.dtype.itemsize] * n,
            259: [1],
            262: [tags.get("photometric", 2 if n > 2 else 1)],
            273: at,
            274: [tags.get("orientation", 1)],
            277: [n],
            278: [page.shape[0]],
            279: [len(strip) for strip in strips],
            284: [2 if planar else 1],
            339: [FORMATS[page.dtype.kind]] * n,
        }
        if "extra" in tags:
            entries[338] = [tags["extra"]]
        if number and "subfile" in tags:
            entries[254] = [tags["subfile"]]
        packed, directory = b"", len(content)
        after = directory + struct.calcsize(order + count) + (4 + 2 * width) * len(entries) + width
        values = b""
        for tag, numbers in sorted(entries.items()):
            kind = LONG if tag in (254, 273, 279) else SHORT
            raw = struct.pack(f"{order}{len(numbers)}{'I' if kind == LONG else 'H'}", *numbers)
            packed += struct.pack(f"{order}HH{offset}", tag, kind, len(numbers))
            packed += raw.ljust(width, b"\0") if len(raw) <= width else struct.pack(order + offset, after + len(values))
            values += raw if len(raw) > width else b""
        content = content[:link] + struct.pack(order + offset, directory) + content[link + width :]
        content += struct.pack(order + count, len(entries)) + packed
        link = len(content)
        content += bytes(width) + values
    return content
