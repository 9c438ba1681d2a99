"""The paper's other tasks, and PraNet's other test folders, over generated archives: what is read, put into place, checked and named."""

import hashlib
import io
import json
import re
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from archive_files import replace, sentence, zipped
from PIL import Image

import bench
from bench import reevaluate, run
from bench.data.manifest import manifest_of
from bench.data.objects import sample_objects
from bench.grid.registry import DATASETS
from bench.training.conditions import Condition
from bench.types import hash_order
from datasets import fls, hqseg44k, jsrt
from datasets.folder import GENERATED_MARK
from datasets.synth import LAYOUTS, write_layout

pytestmark = pytest.mark.xdist_group("paper_archives")  # one worker makes what its tests share

TRAIN, TEST = 16, 1
TOPS = {
    "mass_roads": ["mass_roads"],
    "hrsid": ["HRSID_JPG"],
    "fls": ["watertank-segmentation"],
    "jsrt": ["All247images", "scratch"],
    "hqseg44k": ["DIS5K", "cascade_psp", "thin_object_detection"],
}
OF_HQ, OF_PRANET = ("dis_vd", "coift", "hrsod", "thinobject5k_te"), ("cvc_clinicdb", "cvc_colondb", "cvc_300", "etis_larib")


@pytest.fixture(scope="module")
def written(tmp_path_factory, archives):
    """Data folders with a stand-in each of these archives."""
    place = tmp_path_factory.mktemp("paper")
    for name in TOPS:
        write_layout(LAYOUTS[name], place / name, TRAIN, TEST)
    (place / "kvasir").symlink_to(archives / "folders" / "kvasir")
    return place


@pytest.fixture
def data(written, tmp_path):
    """A copy that a test may damage, of one archive."""

    def copy(name: str) -> Path:
        shutil.copytree(written / name, tmp_path / "data" / name, copy_function=lambda a, b: Path(b).hardlink_to(Path(a).resolve()))
        return tmp_path / "data"

    return copy


# --- what is read


@pytest.mark.parametrize("name", [*TOPS, *OF_HQ, *OF_PRANET])
def test_a_stand_in_is_checked_and_read(name, written, said):
    code, printed = said("verify", name, "--data", written)
    assert code == 0 and "A generated stand-in" in printed, printed
    cls = DATASETS.get(name)
    dataset, pool = cls.open(written), DATASETS.get(cls.pool or name).open(written)
    assert dataset.names("train") == pool.names("train") and cls.is_generated(written)
    for shots, draw in ((1, 0), (1, 1), (4, 2)):
        assert dataset.support(shots, draw) == pool.support(shots, draw)
    for split in ("train", "test"):
        samples = [dataset.load(split, name) for name in dataset.names(split)]
        assert all(sample.image.shape == (*sample.mask.shape, 3) for sample in samples)
        assert any(len(sample_objects(sample, cls.rule)) for sample in samples)


def test_a_split_of_several_folders_takes_all_of_them_and_the_whole_mask_is_one_object(written):
    dataset = DATASETS.get("hqseg44k").open(written)
    assert {name.partition("/")[0] for name in dataset.names("train")} == {part.part for part in hqseg44k.TRAIN}
    assert {name.partition("/")[0] for name in dataset.names("test")} == {"DIS-VD", "COIFT", "HRSOD", "ThinObject5K-TE"}
    several = 0
    for name in dataset.names("train"):
        sample = dataset.load("train", name)
        found = sample_objects(sample, dataset.rule)
        assert len(found) == 1 and (found.masks()[0] == sample.mask).all()
        several += cv2.connectedComponents(sample.mask)[0] > 2
    assert several


def test_the_sonar_split_is_pinned_and_classes_are_read_from_every_kind_of_png(written, data):
    names = [fls.STEM(number) for number in range(1868)]
    assert set(hash_order(names, "fls", "test")[:617]) == fls.TEST and len(fls.TEST) == 617
    assert hashlib.sha256("\n".join(sorted(fls.TEST)).encode()).hexdigest()[:16] == "e68a731f090862e9"
    dataset = DATASETS.get("fls").open(written)
    assert set(dataset.names("test")) <= fls.TEST and not set(dataset.names("train")) & fls.TEST
    name = dataset.names("train")[0]
    sample, copy = dataset.load("train", name), data("fls")
    values = cv2.imread(str(written / f"fls/watertank-segmentation/Masks/{name}.png"), cv2.IMREAD_UNCHANGED)
    assert (sample.class_map == values).all() and set(sample.classes.tolist()) == set(np.unique(values).tolist()) - {0}
    blue = np.dstack([values, 0 * values, 0 * values])
    for pixels in (np.dstack([values] * 3), blue):  # as OpenCV fills three channels, or one of them
        replace(copy / f"fls/watertank-segmentation/Masks/{name}.png", cv2.imencode(".png", pixels)[1].tobytes())
        assert (DATASETS.get("fls").open(copy).load("train", name).class_map == values).all()


def test_radiographs_are_turned_over_and_halved_and_masks_may_overlap(written):
    dataset = DATASETS.get("jsrt").open(written)
    assert all(int(name[-1]) % 2 for name in dataset.names("train")) and not any(int(name[-1]) % 2 for name in dataset.names("test"))
    name = dataset.names("test")[0]
    raw = np.fromfile(written / f"jsrt/All247images/{name}.IMG", ">u2").reshape(256, 256).astype(int)
    upper = 255 - raw // 16
    expected = upper.reshape(128, 2, 128, 2).mean(axis=(1, 3))
    sample = dataset.load("test", name)
    assert np.abs(sample.image - expected[..., None]).max() <= 0.5 and raw.max() > 2000
    masks = [Image.open(written / f"jsrt/scratch/fold2/masks/{s}/{name}.gif").convert("L") for s in jsrt.STRUCTURES]
    assert (sample.objects == (np.stack([np.asarray(mask) for mask in masks]) > 0)).all() and sample.classes.tolist() == [1, 1, 2, 3, 3]
    lung, clavicle = sample.objects[0], sample.objects[3]
    assert (lung & clavicle).any() and (sample.class_map[lung & clavicle] == 3).all()  # the smaller one


def test_every_annotation_of_a_ship_is_an_object(written):
    dataset = DATASETS.get("hrsid").open(written)
    content = json.loads((written / "hrsid/HRSID_JPG/annotations/train2017.json").read_text())
    counted = sum(len(sample_objects(dataset.load("train", name), dataset.rule)) for name in dataset.names("train"))
    assert counted == len(content["annotations"]) > TRAIN


def test_the_points_on_roads_follow_from_masks_by_the_stated_seed(written):
    cls = DATASETS.get("mass_roads")
    assert cls.settings == {"evaluation_prompt": "points(5)"}
    dataset = cls.open(written)
    for name in dataset.names("test"):
        sample = dataset.load("test", name)
        objects = sample_objects(sample, cls.rule)
        prompts = Condition("points(5)").prompts(sample, objects, dataset)
        rng = np.random.default_rng(zlib.crc32(f"mass_roads/{name}".encode()))
        for i, mask in enumerate(objects.masks()):
            pixels = np.argwhere(mask)[rng.integers(0, mask.sum(), 5)][:, ::-1]
            assert (prompts.points[i].numpy() == pixels).all()


# --- what is put into place


@pytest.mark.parametrize("name", TOPS)
def test_zips_and_folders_are_put_into_place(name, written, tmp_path, said):
    packed = [zipped(written / name, tmp_path / f"{top}.zip", top, "downloads/") for top in TOPS[name]]
    code, printed = said(name, "--from", *packed, "--data", tmp_path / "data")
    assert code == 0 and "Still missing" not in printed, printed
    cls = DATASETS.get(name)
    opened = manifest_of(cls.open(tmp_path / "data"), None)
    assert opened.fingerprint == manifest_of(cls.open(written), None).fingerprint and cls.is_generated(tmp_path / "data")
    code, printed = said(name, "--from", *packed, "--data", tmp_path / "data")
    assert code == 0 and ": 0 files unpacked" in printed
    code, printed = said(name, "--from", written / name, "--data", tmp_path / "linked")
    assert code == 0 and manifest_of(cls.open(tmp_path / "linked"), None).fingerprint == opened.fingerprint


def test_data_sets_of_one_archive_share_its_place(archives, tmp_path, said):
    folder = archives / "folders" / "kvasir"
    packed = [archives / "TrainDataset.zip", archives / "TestDataset.zip"]
    assert said("kvasir", "--from", *packed, "--data", tmp_path)[0] == 0
    code, printed = said("verify", "cvc_300", "--data", tmp_path)
    assert code == 1 and "TestDataset/CVC-300/images does not exist" in printed and "--layout kvasir" in printed
    code, printed = said("cvc_300", "--from", packed[1], "--data", tmp_path)
    assert code == 0 and "4 files unpacked" in printed and not (tmp_path / "cvc_300").exists()
    assert said("verify", "cvc_300", "--data", tmp_path)[0] == 0
    assert (folder / "TestDataset/ETIS-LaribPolypDB/masks").is_dir()


@pytest.mark.parametrize(
    ("name", "lost", "said_of_it"),
    [
        ("mass_roads", "mass_roads/valid", "has no valid/sat/*.tiff, valid/map/*.tif"),
        ("hrsid", "HRSID_JPG/annotations/test2017.json", "has no annotations/*test2017.json"),
        ("fls", "watertank-segmentation/Masks", "has no Masks/*.png"),
        ("jsrt", "scratch/fold2/masks/left clavicle", "has no fold2/masks/left clavicle/*.gif"),
        ("hqseg44k", "cascade_psp/ecssd", "has no ecssd/*.jpg, ecssd/*.png"),
    ],
)
def test_a_folder_that_is_missing_is_named(name, lost, said_of_it, data, tmp_path, said):
    here = data(name)
    path, top = here / name / lost, lost.split("/")[0]
    path.unlink() if path.is_file() else shutil.rmtree(path)
    code, printed = said("verify", name, "--data", here)
    assert code == 1 and f"the folder {path.parent if path.suffix else path}" in printed and "datasets.prepare" in printed
    for source in (zipped(here / name, tmp_path / "half.zip", top), here / name / top):
        code, printed = said(name, "--from", source, "--data", tmp_path / "new")
        assert code == 2 and f"{source} is another release of {name}'s archive, or not all of it" in printed
        assert said_of_it in sentence(printed) and not (tmp_path / "new").exists()


# --- what is damaged


def test_a_class_id_that_nobody_named_is_named(data, said):
    here = data("fls")
    name = DATASETS.get("fls").open(here).names("train")[0]
    path = here / f"fls/watertank-segmentation/Masks/{name}.png"
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    values[0, 0] = 12
    replace(path, cv2.imencode(".png", values)[1].tobytes())
    code, printed = said("verify", "fls", "--data", here)
    assert code == 1 and f"The mask {path} has the class id 12, which the data set fls does not name: 1 (Bottle), 2 (Can)," in printed


def test_everything_that_is_wrong_with_radiographs_is_named(data, said):
    here = data("jsrt")
    root, names = here / "jsrt", DATASETS.get("jsrt").open(here).names("train")
    image, mask = (lambda name: root / f"All247images/{name}.IMG"), (lambda name, kind: root / f"scratch/fold1/masks/{kind}/{name}.gif")
    replace(image(names[0]), image(names[0]).read_bytes()[:-2])
    replace(image(names[1]), np.fromfile(image(names[1]), ">u2").astype("<u2").tobytes())  # the low byte first
    replace(mask(names[2], "heart"), mask(names[2], "heart").read_bytes()[:200])
    small = io.BytesIO()
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(small, "GIF")
    replace(mask(names[3], "heart"), small.getvalue())
    code, printed = said("verify", "jsrt", "--data", here)
    for words in (
        f"{image(names[0])} has 131,070 bytes: it is cut short",
        f"{image(names[1])} has the value",
        f"The mask {mask(names[2], 'heart')} cannot be read",
        f"has (256, 256) pixels (H, W) and its mask {mask(names[3], 'heart')} (64, 64): twice as many a side are needed",
    ):
        assert code == 1 and words in printed, words
    mask(names[4], "left clavicle").unlink()
    image(names[5]).unlink()
    code, printed = said("verify", "jsrt", "--data", here)
    assert f"{names[4]} has no mask scratch/fold1/masks/left clavicle/*.gif in {root}" in printed
    assert code == 1 and f"{names[5]} has no image All247images/*.IMG in {root}" in printed


def test_everything_that_is_wrong_with_ships_is_named(data, said):
    here = data("hrsid")
    path = here / "hrsid/HRSID_JPG/annotations/train2017.json"
    content = json.loads(path.read_text())
    gone = here / "hrsid/HRSID_JPG/JPEGImages" / content["images"][0]["file_name"]
    gone.unlink()
    content["annotations"][3] |= {"category_id": 7}
    replace(path, json.dumps(content).encode())
    code, printed = said("verify", "hrsid", "--data", here)
    assert code == 1 and f"The image {gone} of {path} does not exist" in printed
    assert f"Annotation 4 in {path} is of category 7, which the file does not list" in printed and "skip_bad" not in printed
    replace(path, b"{")
    code, printed = said("verify", "hrsid", "--data", here)
    assert code == 1 and f"The annotations {path} are no JSON" in printed


@pytest.mark.parametrize("name", TOPS)
def test_another_number_of_images_than_the_archive_has_is_named(name, data, said):
    here, cls = data(name), DATASETS.get(name)
    (here / name / GENERATED_MARK).unlink()
    code, printed = said("verify", name, "--data", here)
    for split, expected in cls.expected.items():
        count = len(cls.open(here).names(split))
        assert code == 1 and re.search(rf"The {split} split has {count} images.*; the official archive has {expected.images:,}\.", printed)
    assert name != "hqseg44k" or "16 images (3 of DIS5K-TR, 3 of ThinObject5K-TR, 2 of FSS" in printed
    code, printed = said("where", name)
    assert code == 0 and all(f"{expected.images:,} of the {split} split" in printed for split, expected in cls.expected.items())
    assert f"ours      {cls.ours}" in printed and f"licence   {cls.licence}" in printed


def test_a_cut_file_of_the_roads_and_of_a_test_set_is_named(data, said):
    for name, split in (("mass_roads", "val"), ("hqseg44k", "test")):
        here = data(name)
        files = DATASETS.get(name).open(here).files()
        for kind in ("image", "mask"):
            path = next(path for label, path in files.items() if label.startswith(split) and label.endswith(kind))
            replace(path, path.read_bytes()[:-40])
            code, printed = said("verify", name, "--data", here)
            assert code == 1 and f"The file {path} is cut short" in printed


# --- all of it together


@pytest.mark.slow
def test_the_papers_eleven_tasks_run_end_to_end_and_one_polyp_cell_is_tested_on_five(written, archives, tmp_path):
    for name in ("whu", "sbu"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(archives / "folders" / name)
    for name in (*TOPS, "kvasir"):
        (tmp_path / "data" / name).symlink_to((written / name).resolve())
    tasks = ["whu", "mass_roads", "kvasir", "sbu", "jsrt", "fls", "hrsid", *OF_HQ]
    where = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    shared = ["--backbone", "tiny", "--protocol", "smoke(selections=['last'],epochs=1)", *where]
    assert run.main(["--methods", "lora", "--datasets", ",".join(tasks), "--shots", "1", *shared]) == 0
    cells = bench.results(tmp_path / "out")
    assert sorted(cells.dataset) == sorted(tasks) and cells["last.miou_all"].notna().all() and cells.generated.all()
    assert {name: prompt for name, prompt in zip(cells.dataset, cells.evaluation_prompt, strict=True) if prompt != "box"} == {
        "mass_roads": "points(5)"
    }
    kvasir = str(tmp_path / "out" / "runs" / "kvasir" / "lora,decoder=sam")
    assert reevaluate.main([kvasir, "--datasets", ",".join(OF_PRANET), *where]) == 0
    again = bench.results(tmp_path / "out")
    assert set(again.dataset) - set(cells.dataset) == set(OF_PRANET)
