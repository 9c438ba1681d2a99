"""Training augmentation: flips and a random crop, as the reference does them."""

from dataclasses import dataclass

import numpy as np

from bench.grid.protocol import Settings
from bench.training.streams import Stream
from bench.types import Sample


@dataclass(frozen=True)
class Augmentation:
    """What is done to an image: flipped first, then cut to some of its rows and columns, which are not resized here: the model
    resizes what it gets. share: of the area that is kept."""

    vertical: bool
    horizontal: bool
    rows: slice
    columns: slice
    share: float

    @classmethod
    def drawn(cls, height: int, width: int, stream: Stream, settings: Settings) -> "Augmentation":
        """A random one for images of this size, with the flips and the crop that the settings ask for."""
        vertical, horizontal = (stream.coin(), stream.coin()) if settings.flips else (False, False)
        rows, columns = slice(0, height), slice(0, width)
        if settings.random_crop:
            rows, columns = stream.crop(height, width, settings.crop_area_min)
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return cls(vertical, horizontal, rows, columns, area / (height * width))

    def of(self, maps: np.ndarray) -> np.ndarray:
        """An image or mask (H, W, …) after it."""
        flipped = maps[:: -1 if self.vertical else 1, :: -1 if self.horizontal else 1]
        return np.ascontiguousarray(flipped[self.rows, self.columns])

    @property
    def numbers(self) -> tuple[int, ...]:
        """What it does, as a key."""
        return self.vertical, self.horizontal, self.rows.start, self.rows.stop, self.columns.start, self.columns.stop

    def __str__(self) -> str:
        flips = {(True, True): "both flips", (True, False): "vertical flip", (False, True): "horizontal flip"}
        crop = "no crop" if self.share == 1 else f"crop of {100 * self.share:.1f} %"
        return f"{flips.get((self.vertical, self.horizontal), 'no flip')}, {crop}"


def augmented(sample: Sample, how: Augmentation) -> Sample:
    """The sample after an augmentation; the objects that it states go the same way as its mask. Training asks for no classes."""
    objects, labels = sample.objects, sample.labels
    if objects is not None:
        objects = np.ascontiguousarray(how.of(objects.transpose(1, 2, 0)).transpose(2, 0, 1))
    return Sample(sample.name, how.of(sample.image), how.of(sample.mask), objects, None if labels is None else how.of(labels))
