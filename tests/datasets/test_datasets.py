"""The three readers over generated archives, end to end; what they say of bad input; the generated domains themselves."""

import dataclasses
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import ROOT
from bench.data.image_files import is_complete, read_mask
from bench.data.objects import mask_objects
from bench.errors import DataError, RequestError
from bench.grid.plan import Request, specs_of
from bench.grid.registry import DATASETS
from bench.types import Sample, hash_order
from datasets import folder, synth
from datasets.folder import FolderDataset, Folders, SampleCache
from datasets.kvasir import Kvasir
from datasets.sbu import Sbu
from datasets.synth import LAYOUTS, SynthBuildings, SynthPolyps, SynthShadows, choose_shots
from datasets.whu import TILES, Whu

READERS: tuple[type[FolderDataset], ...] = (Whu, Kvasir, Sbu)
DOMAINS = (SynthBuildings, SynthPolyps, SynthShadows)
SUFFIXES = {"whu": (".tif", ".tif"), "kvasir": (".png", ".png"), "sbu": (".jpg", ".png")}
TRAIN, TEST = 24, 3


def run_synth(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "datasets.synth", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The data folder with the three archives, each written by the command of its own."""
    data = tmp_path_factory.mktemp("data")
    for name in SUFFIXES:
        done = run_synth("--layout", name, "--out", str(data / name), "--train", str(TRAIN), "--test", str(TEST))
        assert done.returncode == 0, done.stderr
    return data


@pytest.fixture
def data(written, tmp_path):
    """A copy of `written` that a test may damage; links, which are replaced and not written through."""
    shutil.copytree(written, tmp_path / "data", copy_function=lambda source, target: Path(target).hardlink_to(source))
    return tmp_path / "data"


def file_of(data: Path, reader: type[FolderDataset], stem: str, kind: str = "image", split: str = "train") -> Path:
    folders = reader.folders[split]
    parts = (folders.images, folders.image_suffix) if kind == "image" else (folders.masks, folders.mask_suffix)
    return data / reader.name / parts[0] / (stem + parts[1])


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def sentence(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


# --- the readers over generated archives


@pytest.mark.parametrize("reader", READERS)
def test_a_generated_archive_opens_and_reads(reader, written):
    dataset = reader.open(written)
    assert len(dataset.names("train")) == TRAIN and len(dataset.names("test")) == TEST
    assert type(dataset).is_generated(written)
    for split in ("train", "val", "test"):
        names = dataset.names(split)
        assert names and list(names) == sorted(names)
        sample = dataset.load(split, names[0])
        assert sample.name == names[0]
        assert sample.image.dtype == sample.mask.dtype == np.uint8
        assert sample.image.shape == (*LAYOUTS[reader.name].pixels, 3) and sample.mask.shape == LAYOUTS[reader.name].pixels
        assert set(np.unique(sample.mask)) <= {0, 1}


@pytest.mark.parametrize("reader", READERS)
def test_the_files_have_the_archives_formats(reader, written):
    for split in ("train", "test"):
        stem = reader.open(written).names(split)[0]
        for kind, suffix in zip(("image", "mask"), SUFFIXES[reader.name], strict=True):
            path = file_of(written, reader, stem, kind, split)
            assert path.suffix == suffix and path.read_bytes()[:2] == {".tif": b"II", ".png": b"\x89P", ".jpg": b"\xff\xd8"}[suffix]


def test_the_folders_are_the_archives(written):
    found = {p.relative_to(written).as_posix() for p in written.rglob("*") if p.is_dir()}
    tiles = {f"whu/{TILES}/{split}/{kind}" for split in ("train", "val", "test") for kind in ("image", "label")}
    kvasir = {f"kvasir/{folder_}" for folder_ in ("TrainDataset/image", "TrainDataset/masks", "TestDataset/Kvasir/images")}
    shadows = {f"sbu/SBU-shadow/{s}/{k}" for s in ("SBUTrain4KRecoveredSmall", "SBU-Test") for k in ("ShadowImages", "ShadowMasks")}
    assert tiles | kvasir | shadows <= found


@pytest.mark.parametrize("reader", READERS)
def test_the_official_lists_are_there(reader, written):
    dataset = reader.open(written)
    assert {shots: len(set(names)) for shots, names in reader.official.items()} == {1: 1, 16: 16}
    assert set(reader.official[1]) <= set(reader.official[16]) <= set(dataset.names("train"))
    assert dataset.support(1) == reader.official[1] and dataset.support(16) == reader.official[16]


def test_the_official_lists_are_the_references():
    assert Whu.official[1] == ("2432",) and Whu.official[16][:3] == ("168", "515", "807") and Whu.official[16][-1] == "4725"
    assert Kvasir.official[1] == ("cju0roawvklrq0799vmjorwfv",) and Kvasir.official[16][0] == "cju7dn24o296i09871qfxb8s2"
    assert Sbu.official[1] == ("lssd1109",) and Sbu.official[16][0] == "lssd3356" and Sbu.official[16][-1] == "lssd1109"


def test_whu_tests_on_the_archives_val_folder(written):
    dataset = Whu.open(written)
    name = dataset.names("test")[0]
    stored = cv2.imread(str(written / "whu" / TILES / "val" / "image" / f"{name}.tif"))[..., ::-1]
    unused = cv2.imread(str(written / "whu" / TILES / "test" / "image" / f"{name}.tif"))[..., ::-1]
    assert (dataset.load("test", name).image == stored).all() and (stored != unused).any()


def test_kvasir_skips_numeric_training_stems_and_leaves_their_files(written):
    numeric = [p for p in (written / "kvasir/TrainDataset/image").iterdir() if p.stem.isdecimal()]
    names = Kvasir.open(written).names("train")
    assert numeric and all(p.is_file() for p in numeric)
    assert not any(name.isdecimal() for name in names)


def test_kvasir_masks_are_not_binary_and_the_threshold_drops_foreground(written):
    dataset = Kvasir.open(written)
    dropped = 0
    for name in dataset.names("train"):
        grey = cv2.imread(str(file_of(written, Kvasir, name, "mask")), cv2.IMREAD_GRAYSCALE)
        assert ((grey < 8) | (grey >= 248)).all()
        assert (dataset.load("train", name).mask == (grey > 254)).all()
        dropped += int(((grey > 127) & (grey <= 254)).sum())
    assert dropped > 0


def test_the_archives_folder_may_lie_directly_in_the_data_folder(written):
    assert Whu.open(written / "whu").names("train") == Whu.open(written).names("train")


@pytest.mark.parametrize("reader", READERS)
def test_every_official_image_of_an_archive_shows_the_domains_own(reader, written):
    domain = LAYOUTS[reader.name].domain
    mask = domain().load("train", domain.official[1][0]).mask
    height, width = LAYOUTS[reader.name].pixels
    expected = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    differing = np.mean(reader.open(written).load("train", reader.official[1][0]).mask != expected)
    assert differing < 0.05  # Kvasir's noisy borders


# --- splits and draws


@pytest.mark.parametrize("reader", READERS)
def test_val_is_held_out_of_the_training_images_that_no_list_names(reader, written):
    dataset = reader.open(written)
    val = set(dataset.names("val"))
    assert len(val) == (TRAIN - 16) // 4
    assert val <= set(dataset.names("train")) and not val & set(reader.official[16])
    assert not val & set(dataset.support("full", hold_out_val=True))
    assert dataset.support("full") == dataset.names("train")


@settings(max_examples=15, deadline=None)
@given(draw=st.integers(1, 10**6), shots=st.integers(1, 16), domain=st.sampled_from(DOMAINS))
def test_a_random_draw_is_a_fixed_part_of_the_pool(draw, shots, domain):
    dataset = domain.open(Path("anywhere"))
    drawn = dataset.support(shots, draw)
    assert drawn == domain.open(Path("elsewhere")).support(shots, draw)
    assert len(set(drawn)) == shots and set(drawn) <= set(dataset.names("train")) - set(dataset.names("val"))


def test_draws_and_data_sets_differ(written):
    draws = {dataset.support(4, d) for dataset in (SynthPolyps(), SynthShadows(), Whu.open(written)) for d in range(5)}
    assert len(draws) == 15


def test_a_draw_passes_over_images_without_objects_and_only_then_has_another_key():
    """A quarter of the generated building tiles has no roof: of the first 20 one-shot draws, 5, 14 and 17 had such an image."""
    dataset = SynthBuildings()
    pool = [name for name in dataset.names("train") if dataset.rule.count(dataset.load("train", name))]
    assert 0 < len(pool) < len(dataset.names("train"))
    for shots, draw in [*((1, draw) for draw in range(1, 20)), (4, 0), (8, 2)]:
        drawn, before = dataset.support(shots, draw), hash_order(dataset.names("train"), dataset.name, shots, draw)[:shots]
        assert set(drawn) <= set(pool) and drawn == tuple(sorted(hash_order(pool, dataset.name, shots, draw)[:shots]))
        assert dataset.draw_revision(shots, draw) == (drawn != tuple(sorted(before)))
    assert [draw for draw in range(20) if dataset.draw_revision(1, draw)] == [5, 14, 17]
    assert dataset.support(16) == dataset.official[16] and dataset.support("full") == dataset.names("train")
    assert not any(dataset.draw_revision(shots, 0) for shots in (1, 16, "full"))
    keys = {spec.draw: spec for spec in specs_of(Request("lora", dataset.name, draws="0:6", protocol="smoke"), "0" * 64)}
    assert [spec.draw_revision for spec in keys.values()] == [0, 0, 0, 0, 0, 1]
    assert "draw_revision" not in keys[4].canonical() and keys[5].key != dataclasses.replace(keys[5], draw_revision=0).key


def test_more_shots_than_images_with_objects_are_one_sentence():
    with pytest.raises(RequestError) as error:
        SynthBuildings().support(64, draw=1)
    assert "cannot give 64 shots: 54 training images have an object, and 'full' takes all" in sentence(error)


@pytest.mark.parametrize("shots", [0, -1, 23, 1000])
def test_more_shots_than_there_are_is_one_sentence(shots, written):
    with pytest.raises(RequestError) as error:
        Whu.open(written).support(shots, draw=1)
    assert f"cannot give {shots} shots: 1 to 22 or 'full'" in sentence(error)


# --- sizes, formats


def write_pair(root: Path, image: np.ndarray, mask: np.ndarray, suffixes: tuple[str, str] = (".png", ".png")) -> folder.Pair:
    pair = folder.Pair(root / f"image{suffixes[0]}", root / f"mask{suffixes[1]}")
    cv2.imwrite(str(pair.image), image)
    cv2.imwrite(str(pair.mask), mask)
    return pair


def test_an_image_with_swapped_sides_is_transposed(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    sample = write_pair(tmp_path, image, np.zeros((30, 20), np.uint8)).read("a")
    assert (sample.image == image[..., ::-1].transpose(1, 0, 2)).all()


def test_an_image_of_another_size_is_resized_to_its_mask(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    sample = write_pair(tmp_path, image, np.zeros((24, 40), np.uint8)).read("a")
    assert (sample.image == cv2.resize(image[..., ::-1], (40, 24), interpolation=cv2.INTER_LINEAR)).all()


def test_a_mask_of_another_shape_is_not_this_images(tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(DataError, match=r"mask\.png has \(30, 30\) pixels \(H, W\) and its image \(20, 30\)"):
        write_pair(tmp_path, image, np.zeros((30, 30), np.uint8)).read("a")


def test_a_mask_with_three_channels_and_a_grey_image_are_read(tmp_path):
    mask = np.zeros((12, 10), np.uint8)
    mask[3:6, 2:7] = 255
    pair = write_pair(tmp_path, np.full((12, 10), 77, np.uint8), np.dstack([mask] * 3))
    sample = dataclasses.replace(pair, threshold=254).read("a")
    assert (sample.mask == mask // 255).all() and (sample.image == 77).all() and sample.image.shape == (12, 10, 3)


def palette_tif(pixels: np.ndarray, palette: np.ndarray) -> bytes:
    """A tif of one uncompressed strip; the directory comes first, the palette (256, 3) last."""
    height, width = pixels.shape
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 3), (277, 3, 1, 1), (278, 3, 1, height)]
    strip = 8 + 2 + 12 * 10 + 4
    entries += [(273, 4, 1, strip), (279, 4, 1, pixels.size), (320, 3, 768, strip + pixels.size)]
    packed = b"".join(struct.pack("<HHI", *e[:3]) + struct.pack("<I", e[3]) for e in sorted(entries))
    colours = (palette.T.astype("<u2") * 257).tobytes()
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + pixels.tobytes() + colours


def test_a_palette_mask_is_read_as_grey_and_its_lost_palette_is_noticed(tmp_path):
    palette = np.zeros((256, 3), np.uint8)
    palette[1] = 255
    pixels = np.zeros((16, 12), np.uint8)
    pixels[4:9, 3:8] = 1
    path = tmp_path / "mask.tif"
    path.write_bytes(palette_tif(pixels, palette))
    assert (read_mask(path) == pixels * 255).all()
    path.write_bytes(palette_tif(pixels, palette)[:-100])
    with pytest.raises(DataError, match="cut short"):
        read_mask(path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tif_whose_pixels_are_cut_off_behind_its_directory_is_noticed(order):
    tags = [(273, 3, 2, (100, 150)), (279, 3, 2, (50, 50))]
    content = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, 2)
    content += b"".join(struct.pack(order + "HHIHH", *tag[:3], *tag[3]) for tag in tags) + bytes(4)
    assert is_complete(content.ljust(200, b"x")) and not is_complete(content.ljust(199, b"x"))


# --- bad input


@pytest.mark.parametrize("reader", READERS)
def test_an_absent_folder_is_named_with_the_way_to_get_it(reader, tmp_path):
    with pytest.raises(DataError) as error:
        reader.open(tmp_path)
    text = sentence(error)
    assert str(tmp_path / reader.name / reader.folders["train"].images) in text
    assert reader.home in text and f"--layout {reader.name} --out {tmp_path / reader.name}" in text


def test_an_incomplete_archive_is_named(data):
    shutil.rmtree(data / "sbu/SBU-shadow/SBU-Test/ShadowMasks")
    with pytest.raises(DataError) as error:
        Sbu.open(data)
    assert f"{data}/sbu/SBU-shadow/SBU-Test/ShadowMasks does not exist" in sentence(error)


def test_an_empty_folder_is_named(data):
    for path in (data / "kvasir/TrainDataset/masks").iterdir():
        path.unlink()
    with pytest.raises(DataError) as error:
        Kvasir.open(data)
    assert f"{data}/kvasir/TrainDataset/masks holds no .png file" in sentence(error)


def test_a_training_folder_of_foreign_images_alone_is_named(data):
    for path in (data / "kvasir/TrainDataset/image").iterdir():
        if not path.stem.isdecimal():
            path.unlink()
    with pytest.raises(DataError) as error:
        Kvasir.open(data)
    assert "none of the images" in sentence(error)


@pytest.mark.parametrize("reader", READERS)
def test_an_image_without_a_mask_is_named(reader, data):
    stem = reader.open(data).names("test")[1]
    file_of(data, reader, stem, "mask", "test").unlink()
    with pytest.raises(DataError) as error:
        reader.open(data)
    assert f"{file_of(data, reader, stem, 'image', 'test')} has no mask {stem}" in sentence(error)


@pytest.mark.parametrize("reader", READERS)
def test_a_missing_official_image_is_named(reader, data):
    stem = reader.official[1][0]
    for kind in ("image", "mask"):
        file_of(data, reader, stem, kind).unlink()
    with pytest.raises(DataError) as error:
        reader.open(data)
    assert f"{file_of(data, reader, stem).name} of the official 1-shot list is not in" in sentence(error)


def test_files_that_are_no_images_do_not_matter(data):
    image = data / "whu" / TILES / "train" / "image"
    for name in ("._2432.tif", "Thumbs.db", "2432.tfw"):
        (image / name).write_bytes(b"junk")
    assert len(Whu.open(data).names("train")) == TRAIN


@pytest.mark.parametrize("kind", ["image", "mask"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("left", [0.0, 0.02, 0.5, 0.97, -1])
def test_a_truncated_file_is_named(reader, kind, left, data):
    stem = reader.official[1][0]
    path = file_of(data, reader, stem, kind)
    content = path.read_bytes()
    replace(path, content[:-1] if left == -1 else content[: int(len(content) * left)])
    dataset = reader.open(data)
    with pytest.raises(DataError) as error:
        dataset.load("train", stem)
    assert str(path) in sentence(error) and "cut short" in sentence(error)
    dataset.load("train", reader.official[16][0])  # the others can still be read


@settings(max_examples=60, deadline=None)
@given(suffix=st.sampled_from([".tif", ".png", ".jpg"]), grey=st.booleans(), cut=st.integers(1, 4000), seed=st.integers(0, 99))
def test_no_truncated_file_passes_for_complete(suffix, grey, cut, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50) if grey else (40, 50, 3), np.uint8)
    content = cv2.imencode(suffix, pixels)[1].tobytes()
    assert is_complete(content)
    assert not is_complete(content[: -min(cut, len(content))]) and not any(is_complete(content[:few]) for few in range(9))


def test_a_thumbnails_end_is_not_the_photographs(data):
    stem = Sbu.official[1][0]
    path = file_of(data, Sbu, stem)
    content = path.read_bytes()
    thumbnail = b"Exif\0\0" + content[:400] + b"\xff\xd9"
    with_thumbnail = content[:2] + b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2) + thumbnail + content[2:]
    replace(path, with_thumbnail[:2] + b"\xff\xff" + with_thumbnail[2:])  # padding before a marker is allowed
    assert Sbu.open(data).load("train", stem).image.shape[2] == 3
    replace(path, with_thumbnail[: len(with_thumbnail) // 2])
    with pytest.raises(DataError, match="cut short"):
        Sbu.open(data).load("train", stem)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\nIEND\xaeB`\x82"])
def test_a_file_that_is_no_image_is_named(content, data):
    path = file_of(data, Kvasir, Kvasir.official[1][0])
    replace(path, content)
    with pytest.raises(DataError) as error:
        Kvasir.open(data).load("train", Kvasir.official[1][0])
    assert str(path) in sentence(error)


def test_a_file_that_went_away_is_named(data):
    dataset = Sbu.open(data)
    path = file_of(data, Sbu, "lssd1109")
    path.unlink()
    with pytest.raises(DataError) as error:
        dataset.load("train", "lssd1109")
    assert f"{path} cannot be read: No such file" in sentence(error)


def test_opening_looks_at_listings_alone_and_is_quick(tmp_path):
    class Large(FolderDataset):
        name, title, home, archive, threshold, rule = "large", "Large", "nowhere", "nothing", 0, Whu.rule
        folders: ClassVar = {split: Folders(f"{split}/i", f"{split}/m", ".tif", ".png") for split in ("train", "test")}

    for split, count in (("train", 1700), ("test", 300)):
        for kind, suffix in (("i", ".tif"), ("m", ".png")):
            folder_ = tmp_path / "large" / split / kind
            folder_.mkdir(parents=True)
            for number in range(count):
                (folder_ / f"{number}{suffix}").touch()
    start = time.process_time()
    dataset = Large.open(tmp_path)
    assert time.process_time() - start < 0.5  # of this process: the machine may be busy
    assert len(dataset.names("train")) == 1700 and len(dataset.names("val")) == 64


# --- the cache


def sample_of(name: str, pixels: int = 10) -> Sample:
    return Sample(name, np.zeros((1, pixels, 3), np.uint8), np.zeros((1, pixels), np.uint8))  # 4 bytes a pixel


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 40)), max_size=40), st.integers(0, 300))
def test_the_cache_stays_within_its_limit(asked, limit):
    cache = SampleCache(limit)
    sizes: dict[str, int] = {}
    for name, pixels in asked:
        sizes.setdefault(name, pixels)
        sample = cache.get("train", name, lambda name=name: sample_of(name, sizes[name]))
        assert sample.name == name and sample.mask.size == sizes[name]
        assert 0 <= cache.used_bytes <= limit


def test_the_cache_keeps_what_was_used_last():
    cache, read = SampleCache(80), []
    for name in ("a", "b", "a", "c", "a", "b"):
        cache.get("train", name, lambda name=name: read.append(name) or sample_of(name))
    assert read == ["a", "b", "c", "b"]


def test_a_sample_is_decoded_once_and_cannot_be_written_to(written):
    dataset = Whu.open(written)
    sample = dataset.load("train", "2432")
    assert dataset.load("train", "2432") is sample
    with pytest.raises(ValueError, match="read-only"):
        sample.image[0, 0] = 0
    small, read = SampleCache(limit_bytes=0), lambda: dataset.entry("train", "2432").read("2432")
    assert small.get("train", "2432", read) is not small.get("train", "2432", read)


# --- the generated domains


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_needs_no_file(domain, tmp_path):
    dataset = domain.open(tmp_path / "absent")
    splits = {split: set(dataset.names(split)) for split in ("train", "val", "test")}
    assert {split: len(names) for split, names in splits.items()} == {"train": 64, "val": 32, "test": 64}
    assert len(set.union(*splits.values())) == 160
    assert "generated" in domain.title
    sample = dataset.load("test", dataset.names("test")[0])
    assert sample.image.shape == (192, 192, 3) and sample.mask.shape == (192, 192)
    assert sample.image.dtype == sample.mask.dtype == np.uint8 and set(np.unique(sample.mask)) <= {0, 1}


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domain_is_the_same_every_time(domain):
    first, second = domain(), domain()
    for split in ("train", "val", "test"):
        name = first.names(split)[3]
        one, other = first.load(split, name), second.load(split, name)
        assert (one.image == other.image).all() and (one.mask == other.mask).all()
    assert (first.load("train", "0003").image != first.load("val", "0067").image).any()


def test_a_name_of_another_split_is_refused():
    with pytest.raises(DataError) as error:
        SynthPolyps().load("train", "0064")
    assert sentence(error).endswith("'0064' is not in its train split; 0000 to 0063 are.")


def test_a_name_that_an_archive_lacks_is_refused(written):
    with pytest.raises(DataError) as error:
        Sbu.open(written).load("train", "cat")
    assert f"'cat' is not in its train split; {TRAIN} are, such as lssd" in sentence(error)


def test_all_six_data_sets_are_registered():
    assert {"whu", "kvasir", "sbu", "synth_buildings", "synth_polyps", "synth_shadows"} <= set(DATASETS.names())


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_domains_official_lists_are_training_images(domain):
    assert {shots: len(set(names)) for shots, names in domain.official.items()} == {1: 1, 16: 16}
    assert set(domain.official[1]) <= set(domain.official[16]) <= set(domain().names("train"))
    sample = domain().load("train", domain.official[1][0])
    assert len(mask_objects(sample.mask, domain.rule)) >= 1


def test_an_official_list_is_what_its_rule_chooses():
    chosen = choose_shots(SynthPolyps())
    assert (chosen[:1], tuple(sorted(chosen))) == (SynthPolyps.official[1], SynthPolyps.official[16])


def test_the_rule_looks_at_the_training_pool_alone(monkeypatch):
    seen = set()

    def scene(split, index):
        seen.add(split)
        mask = np.zeros((192, 192), np.uint8)
        mask[5 : 20 + index, 5 : 20 + index] = 1
        return np.full((192, 192, 3), index, np.uint8), mask

    monkeypatch.setattr(SynthShadows, "scene", staticmethod(scene))
    chosen = choose_shots(SynthShadows())
    assert seen == {"train"}
    assert len(set(chosen)) == 16 and chosen[0] in ("0031", "0032")  # the median image


# --- the writer


@pytest.fixture
def quick_polyps(monkeypatch):
    """Polyps that take no time to draw."""

    def scene(split, index):
        mask = np.zeros((192, 192), np.uint8)
        mask[40:90, 40 : 90 + index % 64] = 1
        return np.dstack([mask * 99] * 3), mask

    monkeypatch.setattr(SynthPolyps, "scene", staticmethod(scene))


def snapshot(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_writing_again_changes_nothing_and_fewer_images_leave_none_behind(tmp_path, quick_polyps):
    out = tmp_path / "kvasir"
    synth.write_layout(LAYOUTS["kvasir"], out, 18, 2)
    first = snapshot(out)
    synth.write_layout(LAYOUTS["kvasir"], out, 18, 2)
    assert snapshot(out) == first
    synth.write_layout(LAYOUTS["kvasir"], out, 16, 1)
    assert len(Kvasir.open(tmp_path).names("train")) == 16 and len(snapshot(out)) == len(first) - 14
    synth.write_layout(LAYOUTS["kvasir"], out, 18, 2)
    assert snapshot(out) == first


def test_an_interrupted_writer_knows_its_own_files(tmp_path, monkeypatch, quick_polyps):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(synth, "_write_picture", lambda layout, out, picture: stop())
        with pytest.raises(KeyboardInterrupt):
            synth.write_layout(LAYOUTS["kvasir"], tmp_path / "kvasir", 16, 1)
    synth.write_layout(LAYOUTS["kvasir"], tmp_path / "kvasir", 16, 1)
    assert len(Kvasir.open(tmp_path).names("train")) == 16


def test_the_writer_leaves_other_peoples_files_alone(tmp_path, capsys):
    image = tmp_path / "TrainDataset/image/7.png"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"real")
    assert synth.main(["--layout", "kvasir", "--out", str(tmp_path)]) == 2
    assert "holds TrainDataset/image/7.png, which this command did not write" in capsys.readouterr().err
    assert snapshot(tmp_path) == {"TrainDataset/image/7.png": b"real"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layout", "whu", "--train", "15"], "--train 15 is not allowed for the layout whu: 16 to 4000 are."),
        (["--layout", "whu", "--test", "0"], "--test 0 is not allowed for the layout whu: 1 to 4000 are."),
    ],
)
def test_too_few_images_are_one_sentence(arguments, said, tmp_path, capsys):
    assert synth.main([*arguments, "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.strip() == f"error: {said}"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments", ["--layout coco --out x", "--layout whu", "", "--layout sbu --out x --train many"])
def test_bad_arguments_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        synth.main(arguments.split())
    assert stopped.value.code == 2 and "error: " in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert synth.main(["--layout", "sbu", "--out", str(tmp_path / "file" / "sbu")]) == 2
    assert f"--out {tmp_path}/file/sbu cannot be written" in capsys.readouterr().err
