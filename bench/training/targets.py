"""The masks that a training image's maps are to become, held as one map of labels where they do not overlap."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.data.objects import Objects
from bench.model.transfer import pinned, uploaded


@dataclass(frozen=True, eq=False)
class LabelledMasks:
    """n masks (H, W), of which mask i is where labels (H, W) are i + 1; a mask exists while it is computed with."""

    labels: Tensor
    count: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, H, W)."""
        return self.count, self.labels.shape[0], self.labels.shape[1]

    def to(self, device: torch.device) -> "LabelledMasks":
        """The same masks on another device."""
        return LabelledMasks(uploaded(self.labels, device), self.count)

    def pinned(self, device: torch.device) -> "LabelledMasks":
        """See `bench.model.transfer.pinned`."""
        return LabelledMasks(pinned(self.labels, device), self.count)

    def split(self, size: int) -> Iterator[Tensor]:
        """The masks, (≤ size, H, W) uint8, some at a time."""
        numbers = torch.arange(1, self.count + 1, dtype=self.labels.dtype, device=self.labels.device)
        return ((self.labels == part[:, None, None]).to(torch.uint8) for part in numbers.split(size))

    def stacked(self) -> Tensor:
        """All of them, (n, H, W) uint8."""
        return torch.cat(list(self.split(self.count)))


Target = Tensor | LabelledMasks  # (n, H, W), 0/1


def target_of(objects: Objects) -> Target:
    """The masks of objects; without any, an empty one."""
    if objects.overlap and len(objects):
        return torch.from_numpy(objects.masks()).to(torch.uint8)
    return LabelledMasks(torch.from_numpy(objects.label_map()), max(1, len(objects)))


def stacked(targets: Sequence[Target]) -> list[Tensor]:
    """Targets as tensors (n, H, W)."""
    return [target.stacked() if isinstance(target, LabelledMasks) else target for target in targets]
