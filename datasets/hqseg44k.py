"""HQSeg-44K: HQ-SAM's training set, put together from seven others, and the four sets of fine structures that it is tested on."""

from typing import ClassVar

from bench.grid.registry import DATASETS
from bench.types import ObjectRule
from datasets.folder import Expected, FolderDataset, Folders

THIN = "thin_object_detection"


def _folders(part: str, images: str, masks: str = "") -> Folders:
    return Folders(images, masks or images, ".jpg", ".png", part)


TRAIN = (
    _folders("DIS5K-TR", "DIS5K/DIS-TR/im", "DIS5K/DIS-TR/gt"),
    _folders("ThinObject5K-TR", f"{THIN}/ThinObject5K/images_train", f"{THIN}/ThinObject5K/masks_train"),
    _folders("FSS", "cascade_psp/fss_all"),
    _folders("DUTS-TR", "cascade_psp/DUTS-TR"),
    _folders("DUTS-TE", "cascade_psp/DUTS-TE"),
    _folders("ECSSD", "cascade_psp/ecssd"),
    _folders("MSRA10K", "cascade_psp/MSRA_10K"),
)
DIS_VD = _folders("DIS-VD", "DIS5K/DIS-VD/im", "DIS5K/DIS-VD/gt")
COIFT = _folders("COIFT", f"{THIN}/COIFT/images", f"{THIN}/COIFT/masks")
HRSOD = _folders("HRSOD", f"{THIN}/HRSOD/images", f"{THIN}/HRSOD/masks_max255")
THIN_TE = _folders("ThinObject5K-TE", f"{THIN}/ThinObject5K/images_test", f"{THIN}/ThinObject5K/masks_test")
TRAINING = Expected(44320, tolerance=3, why="3,000 + 4,748 + 10,000 + 10,553 + 5,019 + 1,000 + 10,000; FSS has 10,003 in some copies")


@DATASETS.register("hqseg44k")
class HqSeg44k(FolderDataset):
    """All four test sets together: tune on it once, then `bench.reevaluate --datasets dis_vd,coift,hrsod,thinobject5k_te`.

    As in HQ-SAM the whole mask of an image is one object, however many parts it has.
    """

    title = "HQSeg-44K"
    home = "https://github.com/SysCV/sam-hq/tree/main/train"
    archive = "HQ-SAM's training data (its page links them): the folders DIS5K, cascade_psp and thin_object_detection"
    licence = "each of the sets has its own: DIS5K has terms of use of its own, for research"
    ours = "the few-shot draws; no list was published"
    zips = ("DIS5K.zip", "cascade_psp.zip", "thin_object_detection.zip")
    pool = "hqseg44k"
    folders: ClassVar = {"train": TRAIN, "test": (DIS_VD, COIFT, HRSOD, THIN_TE)}
    threshold = 128
    is_one = True
    expected: ClassVar = {"train": TRAINING, "test": Expected(470 + 280 + 287 + 500)}
    rule = ObjectRule(connectivity=8, min_area=10)
    metric = "mean_image_iou"


@DATASETS.register("dis_vd")
class DisVd(HqSeg44k):
    """DIS5K's validation set: dichotomous segmentation of fine structures."""

    title = "DIS-VD"
    folders: ClassVar = {"train": TRAIN, "test": DIS_VD}
    expected: ClassVar = {"train": TRAINING, "test": Expected(470)}


@DATASETS.register("coift")
class Coift(HqSeg44k):
    """COIFT: thin objects."""

    title = "COIFT"
    folders: ClassVar = {"train": TRAIN, "test": COIFT}
    expected: ClassVar = {"train": TRAINING, "test": Expected(280)}


@DATASETS.register("hrsod")
class Hrsod(HqSeg44k):
    """HRSOD's part with thin objects, by the masks of `masks_max255`."""

    title = "HRSOD"
    folders: ClassVar = {"train": TRAIN, "test": HRSOD}
    expected: ClassVar = {"train": TRAINING, "test": Expected(287)}


@DATASETS.register("thinobject5k_te")
class ThinObject5kTe(HqSeg44k):
    """ThinObject5K's test set."""

    title = "ThinObject5K-TE"
    folders: ClassVar = {"train": TRAIN, "test": THIN_TE}
    expected: ClassVar = {"train": TRAINING, "test": Expected(500)}
