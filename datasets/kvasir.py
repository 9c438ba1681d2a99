"""Kvasir-SEG: colonoscopy frames with polyps, in PraNet's split."""

from typing import ClassVar

from bench.grid.registry import DATASETS
from bench.types import ObjectRule, Split
from datasets.folder import Expected, FolderDataset, Folders, stems


@DATASETS.register("kvasir")
class Kvasir(FolderDataset):
    """PraNet's 900 training and 100 test images.

    The masks are not binary (0–7 and 248–255 occur): the threshold drops some foreground at the borders, as the reference does.
    """

    title = "Kvasir-SEG"
    home = "https://github.com/DengPingFan/PraNet"
    archive = "PraNet's TrainDataset and TestDataset (its README, section 3.1)"
    zips = ("TrainDataset.zip", "TestDataset.zip")
    folders: ClassVar = {
        "train": Folders("TrainDataset/image", "TrainDataset/masks", ".png", ".png"),
        "test": Folders("TestDataset/Kvasir/images", "TestDataset/Kvasir/masks", ".png", ".png"),
    }
    threshold = 254
    expected: ClassVar = {"train": Expected(900, foreign=550), "test": Expected(100)}
    rule = ObjectRule(connectivity=8, min_area=20, relative_area=0.001)
    official: ClassVar = {
        1: ("cju0roawvklrq0799vmjorwfv",),
        16: stems("""
            cju7dn24o296i09871qfxb8s2 cju83mki1jv5w0817kubxm31r cju6vucxvvlda0755j7msqnya cju43kj2pm34f0850l28ahpni
            cju2x7vw87mu30878hye2ca0m cju5ddda9bkkt0850enzwatb1 cju77vvcwzcm50850lzoykuva cju3128yi0rpu0988o4oo5n8n
            cju8b7aqtr4a00987coba14b7 cjz14qsk2wci60794un9ozwmw cju0s690hkp960855tjuaqvv0 cju888fr7nveu0818r9uwtiit
            cju8b542nr81x0871uxnkm9ih cju2qtee81yd708787bsjr75d cju83h9ysjwe808716nt35oah cju0roawvklrq0799vmjorwfv
            """),
    }

    @classmethod
    def uses(cls, split: Split, stem: str) -> bool:
        """A training image whose stem is a number comes from CVC-ClinicDB."""
        return not (split == "train" and stem.isdecimal())
