"""Kvasir-SEG: colonoscopy frames with polyps, in PraNet's split; and the four other sets that PraNet is tested on."""

from typing import ClassVar

from bench.grid.registry import DATASETS
from bench.types import ObjectRule, Split
from datasets.folder import Expected, FolderDataset, Folders, SplitFolders, stems


@DATASETS.register("kvasir")
class Kvasir(FolderDataset):
    """PraNet's 900 training and 100 test images.

    The masks are not binary (0–7 and 248–255 occur): the threshold drops some foreground at the borders, as the reference does.
    """

    title = "Kvasir-SEG"
    home = "https://github.com/DengPingFan/PraNet"
    archive = "PraNet's TrainDataset and TestDataset (its README, section 3.1)"
    zips = ("TrainDataset.zip", "TestDataset.zip")
    folders: ClassVar[SplitFolders] = {
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


class PolypTest(Kvasir):
    """Another test folder of PraNet's archive, which Kvasir's users have. What is trained on are Kvasir's 900 images: run `kvasir`, then
    `bench.reevaluate --datasets cvc_clinicdb,cvc_colondb,cvc_300,etis_larib`. PraNet itself is trained on 550 of CVC-ClinicDB too."""

    pool = "kvasir"
    metric = "mean_image_dice"


def _test(folder: str) -> SplitFolders:
    return {**Kvasir.folders, "test": Folders(f"TestDataset/{folder}/images", f"TestDataset/{folder}/masks", ".png", ".png")}


@DATASETS.register("cvc_clinicdb")
class CvcClinicDb(PolypTest):
    """CVC-ClinicDB's 62 images that PraNet does not train on."""

    title = "CVC-ClinicDB"
    folders: ClassVar = _test("CVC-ClinicDB")
    expected: ClassVar = {**Kvasir.expected, "test": Expected(62)}


@DATASETS.register("cvc_colondb")
class CvcColonDb(PolypTest):
    """380 colonoscopy frames, for testing only."""

    title = "CVC-ColonDB"
    folders: ClassVar = _test("CVC-ColonDB")
    expected: ClassVar = {**Kvasir.expected, "test": Expected(380)}


@DATASETS.register("cvc_300")
class Cvc300(PolypTest):
    """The test part of EndoScene, 60 colonoscopy frames."""

    title = "CVC-300"
    folders: ClassVar = _test("CVC-300")
    expected: ClassVar = {**Kvasir.expected, "test": Expected(60)}


@DATASETS.register("etis_larib")
class EtisLarib(PolypTest):
    """196 colonoscopy frames, for testing only."""

    title = "ETIS-LaribPolypDB"
    folders: ClassVar = _test("ETIS-LaribPolypDB")
    expected: ClassVar = {**Kvasir.expected, "test": Expected(196)}
