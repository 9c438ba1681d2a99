"""What frozen encoders said of images, in files that stay: the next run reads them instead of encoding again."""

import io
import platform
import sys
from collections.abc import Hashable
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

import torch
from torch import Tensor

from bench.grid.files import write_together
from bench.grid.provenance import cpu_model

REVISION = 2  # raised where an encoder's numbers change, in the last bit too


class EmbeddingFiles:
    """Tensors in a folder that several runs and processes may share; nothing in it is ever changed.

    A file is named by a hash of all that its content follows from: the pixels that were encoded, and how; `weights`, which say the
    backbone and its checkpoint; and torch, the device and its threads, on which the order of a sum depends. So what is read is bit for
    bit what would be computed here. Who needs the room deletes the folder, or those of single backbones in it.
    """

    def __init__(self, folder: Path, weights: str, device: torch.device) -> None:
        self.folder, self.device, self.full = folder / weights, device, False

    @cached_property
    def _machine(self) -> tuple[Hashable, ...]:
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else f"{cpu_model()} {torch.backends.cpu.get_cpu_capability()}"
        return REVISION, torch.__version__, platform.machine(), name, 0 if cuda else torch.get_num_threads()

    def path(self, image: Tensor, how: tuple[Hashable, ...]) -> Path:
        """Where the tensor lies that was made of `image`, in this way."""
        pixels = image.cpu().contiguous()
        said = sha256(repr((*self._machine, str(pixels.dtype), tuple(pixels.shape), *how)).encode())
        said.update(pixels.numpy().data)
        digest = said.hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}.pt"

    def read(self, path: Path) -> Tensor | None:
        """The tensor, if it is there and whole; with the strides that it had, on which a sum's order may depend."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        with suppress(Exception):  # whatever a damaged file raises: it is made again
            whole = ZipFile(io.BytesIO(content)).testzip() is None  # torch's reader compares no checksums
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True) if whole else None
            if isinstance(found, Tensor):
                return found
        with suppress(OSError):
            path.unlink(missing_ok=True)
        return None

    def write(self, path: Path, value: Tensor) -> None:
        """Writes a tensor; a full disk is said once, and ends it."""
        if self.full or path.is_file():
            return
        buffer = io.BytesIO()
        torch.save(value.to("cpu").clone(), buffer)
        try:
            write_together(path.parent, {path.name: buffer.getvalue()}, durable=False)
        except OSError as error:
            print(f"No more embeddings are written to {self.folder}: {error.strerror}.", file=sys.stderr)
            self.full = True
