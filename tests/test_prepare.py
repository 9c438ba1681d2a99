"""`datasets.prepare` on files in the official archives' layout: put into place from zips and folders, and damaged in every way."""

import hashlib
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import Rectangles

import bench.manifest
from bench.manifest import data_facts, manifest_of, to_hash
from bench.objects import object_masks
from bench.registry import DATASETS
from datasets import prepare, synth
from datasets.folder import GENERATED_MARK
from datasets.kvasir import Kvasir
from datasets.preparation.places import tops
from datasets.preparation.unpack import plan, unpack
from datasets.preparation.verify import verify
from datasets.synth import LAYOUTS, SynthPolyps
from datasets.whu import TILES

ROOT = Path(__file__).parents[1]
NAMES = ("whu", "kvasir", "sbu")
ZIPS = {"whu": [TILES], "kvasir": ["TrainDataset", "TestDataset"], "sbu": ["SBU-shadow"]}
TRAIN, TEST = 18, 2


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """The three archives' folders as downloaded and unpacked by hand, below `folders/NAME`, and their zips beside it."""
    top = tmp_path_factory.mktemp("archives")
    for name in NAMES:
        synth.write_layout(LAYOUTS[name], top / "folders" / name, TRAIN, TEST)
        for packed in ZIPS[name]:
            zipped(top / "folders" / name, top / f"{packed}.zip", packed)
    return top


def zipped(folder: Path, target: Path, only: str, prefix: str = "") -> Path:
    """A zip of the files below `folder/only`, and of the mark, with a Mac's junk."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(path for path in (folder / only).rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            file.write(path, prefix + name)
            file.writestr(f"__MACOSX/{prefix}{Path(name).parent.as_posix()}/._{path.name}", b"junk")
        file.write(folder / GENERATED_MARK, prefix + GENERATED_MARK)
    return target


def zips(archives: Path, name: str) -> list[str]:
    return [str(archives / f"{packed}.zip") for packed in ZIPS[name]]


@pytest.fixture
def data(archives, tmp_path):
    """A data folder that a test may damage; links, which are replaced and not written through."""
    shutil.copytree(archives / "folders", tmp_path / "data", copy_function=lambda source, target: Path(target).hardlink_to(source))
    return tmp_path / "data"


@pytest.fixture
def said(capsys, tmp_path):
    """Runs the command; its exit code and all that it printed."""

    def run(*words: str | Path) -> tuple[int, str]:
        code = prepare.main([*map(str, words), "--out", str(tmp_path / "results")])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file below a folder with its time of change and content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def sentence(printed: str) -> str:
    """The one line of an error."""
    assert printed.startswith("error: ") and printed.count("\n") == 1 and printed.endswith(".\n"), printed
    return printed


# --- putting into place


@pytest.mark.parametrize("name", NAMES)
def test_zips_are_unpacked_to_what_a_run_reads_and_a_second_time_nothing_happens(name, archives, tmp_path, said):
    code, printed = said(name, "--from", *zips(archives, name), "--data", tmp_path / "data")
    assert code == 0 and f"verify {name} --data {tmp_path / 'data'}" in printed
    here, there = tree(tmp_path / "data" / name), tree(archives / "folders" / name)
    assert {path: digest for path, (_, digest) in here.items()}.items() <= {path: digest for path, (_, digest) in there.items()}.items()
    cls = DATASETS.get(name)
    assert cls.is_generated(tmp_path / "data") and not any("__MACOSX" in path or "/._" in path for path in here)
    opened, original = cls.open(tmp_path / "data"), cls.open(archives / "folders")
    assert manifest_of(opened, None).fingerprint == manifest_of(original, None).fingerprint
    unread = {path for path in there if path not in here}
    assert all(f"{TILES}/test/" in path for path in unread) and bool(unread) == (name == "whu")
    code, printed = said("prepare", name, "--from", *zips(archives, name), "--data", tmp_path / "data")
    assert code == 0 and ": 0 files unpacked" in printed and tree(tmp_path / "data" / name) == here
    assert said("verify", name, "--data", tmp_path / "data")[0] == 0


def test_folders_nested_or_renamed_within_a_zip_are_found(archives, tmp_path, said):
    with zipfile.ZipFile(archives / "SBU-shadow.zip") as old, zipfile.ZipFile(tmp_path / "s.zip", "w") as new:
        for info in old.infolist():
            new.writestr(f"downloads/2024/{info.filename}".replace("SBU-shadow/", "SBU (1)/"), old.read(info))
    assert said("sbu", "--from", tmp_path / "s.zip", "--data", tmp_path / "data")[0] == 0
    assert (tmp_path / "data/sbu/SBU-shadow/SBU-Test/ShadowImages").is_dir() and said("verify", "sbu", "--data", tmp_path / "data")[0] == 0
    with zipfile.ZipFile(archives / f"{TILES}.zip") as old, zipfile.ZipFile(tmp_path / "w.zip", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename.removeprefix(f"{TILES}/"), old.read(info))  # no folder around train/ and val/
    assert said("whu", "--from", tmp_path / "w.zip", "--data", tmp_path / "data")[0] == 0
    assert said("verify", "whu", "--data", tmp_path / "data")[0] == 0


def test_archives_may_come_one_after_the_other(archives, tmp_path, said):
    train, test = zips(archives, "kvasir")
    code, printed = said("kvasir", "--from", train, "--data", tmp_path)
    assert code == 1 and "Still missing: TestDataset/ with Kvasir/images/*.png" in printed
    code, printed = said("kvasir", "--from", test, "--data", tmp_path)
    assert code == 0 and "Still missing" not in printed


def test_an_unpacked_folder_is_linked_and_not_touched(archives, tmp_path, said):
    mine = tmp_path / "downloads"
    shutil.copytree(archives / "folders" / "kvasir", mine / "polyps" / "PraNet")
    before = tree(mine)
    for _ in range(2):
        code, printed = said("kvasir", "--from", mine, "--data", tmp_path / "data")
        assert code == 0 and tree(mine) == before
    assert "in place already" in printed
    assert (tmp_path / "data/kvasir/TrainDataset").is_symlink() and Kvasir.is_generated(tmp_path / "data")
    assert said("verify", "kvasir", "--data", tmp_path / "data")[0] == 0
    code, printed = said("kvasir", "--from", archives / "folders" / "kvasir", "--data", tmp_path / "data")
    assert code == 2 and "exists and is not" in sentence(printed)


def test_a_folder_and_a_zip_together(archives, tmp_path, said):
    train, test = zips(archives, "kvasir")
    sources = [archives / "folders/kvasir/TrainDataset", test]
    code, printed = said("kvasir", "--from", sources[0], "--from", sources[1], "--data", tmp_path / "data")
    assert code == 0, printed
    assert said("verify", "kvasir", "--data", tmp_path / "data")[0] == 0
    code, printed = said("kvasir", "--from", sources[0], train, "--data", tmp_path / "other")
    assert code == 2 and "both hold TrainDataset" in sentence(printed) and not (tmp_path / "other").exists()


def test_another_file_in_the_place_of_one_is_never_overwritten(archives, tmp_path, said):
    with zipfile.ZipFile(archives / "SBU-shadow.zip") as file:
        name = next(name for name in file.namelist() if "/SBU-Test/ShadowMasks/" in name and name.startswith("SBU"))
    own = tmp_path / "data/sbu" / name
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    code, printed = said("sbu", "--from", archives / "SBU-shadow.zip", "--data", tmp_path / "data")
    assert code == 2 and f"{own} exists and is not the file of" in sentence(printed)
    assert list(tree(tmp_path / "data")) == [own.relative_to(tmp_path / "data").as_posix()] and own.read_bytes() == b"mine"


def test_nothing_is_written_through_a_link_into_somebodys_folder(archives, tmp_path, said):
    mine = tmp_path / "mine" / "SBU-shadow"
    shutil.copytree(archives / "folders/sbu/SBU-shadow", mine)
    next((mine / "SBU-Test/ShadowImages").iterdir()).unlink()
    before = tree(mine)
    (tmp_path / "data/sbu").mkdir(parents=True)
    (tmp_path / "data/sbu/SBU-shadow").symlink_to(mine)
    code, printed = said("sbu", "--from", archives / "SBU-shadow.zip", "--data", tmp_path / "data")
    assert code == 2 and "SBU-shadow is a link" in sentence(printed) and tree(mine) == before


def test_an_interrupted_unpacking_goes_on_where_it_stopped(archives, tmp_path, said):
    root, archive = tmp_path / "data/sbu", archives / "SBU-shadow.zip"
    written = []

    def stop_after_ten(size: int) -> None:
        written.append(size)
        if len(written) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack([plan(archive, root, tops(DATASETS.get("sbu")))], root, stop_after_ten)
    first = tree(root)
    assert len(first) == 10
    left = root / next(iter(first))
    left.with_name(f".{left.name}.4711.part").write_bytes(b"of a run that was killed")
    code, printed = said("sbu", "--from", archive, "--data", tmp_path / "data")
    assert code == 0 and "10 were there" in printed
    after = tree(root)
    assert not [path for path in after if path.endswith(".part")] and first.items() <= after.items()
    assert said("verify", "sbu", "--data", tmp_path / "data")[0] == 0


def command(*words: str | Path, **more) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "datasets.prepare", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, **more)


def test_a_disk_that_refuses_a_file_is_one_sentence_and_leaves_no_half_file(archives, tmp_path):
    """A limit on the size of files stands in for a full disk: the write itself fails, in the middle of a file."""
    words = ("sbu", "--from", archives / "SBU-shadow.zip", "--data", tmp_path)
    biggest = max(path.stat().st_size for path in (archives / "folders/sbu").rglob("*.jpg"))
    done = command(*words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (biggest - 1, biggest - 1)))
    assert done.returncode == 2 and "File too large; the same command goes on from there" in sentence(done.stderr)
    assert not [path for path in tree(tmp_path) if ".part" in path]
    assert command(*words).returncode == 0


def test_a_disk_without_room_for_all_is_noticed_before_anything_is_written(archives, tmp_path, said):
    large = tmp_path / "large.zip"
    shutil.copyfile(archives / "SBU-shadow.zip", large)
    with zipfile.ZipFile(large, "a") as file:  # the sizes that the archive states are what is asked of the disk
        for info in file.infolist():
            info.file_size = 1 << 50
        file._didModify = True
    code, printed = said("sbu", "--from", large, "--data", tmp_path / "data")
    assert code == 2 and "GB left; nothing was unpacked." in sentence(printed) and not (tmp_path / "data").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_small_disk(archives, tmp_path, said):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        code, printed = said("sbu", "--from", archives / "SBU-shadow.zip", "--data", small)
        assert code == 2 and "0.1 MB left; nothing was unpacked." in sentence(printed) and not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


def hostile(path: Path, archives: Path, name: str, mode: int = 0o100644) -> Path:
    shutil.copyfile(archives / "SBU-shadow.zip", path)
    with zipfile.ZipFile(path, "a") as file:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, mode << 16
        file.writestr(info, b"../../../../etc/passwd")
    return path


@pytest.mark.parametrize(
    ("name", "mode", "why"),
    [
        ("../escaped.png", 0o100644, "leads out of its folder"),
        ("SBU-shadow/SBU-Test/ShadowImages/../../../../escaped.jpg", 0o100644, "leads out of its folder"),
        ("/tmp/escaped.jpg", 0o100644, "leads out of its folder"),
        ("C:\\escaped.jpg", 0o100644, "leads out of its folder"),
        ("..\\escaped.jpg", 0o100644, "leads out of its folder"),
        ("SBU-shadow/SBU-Test/ShadowImages/link.jpg", 0o120777, "a link"),
    ],
)
def test_an_archive_that_would_write_elsewhere_is_refused_whole(name, mode, why, archives, tmp_path, said):
    code, printed = said("sbu", "--from", hostile(tmp_path / "h.zip", archives, name, mode), "--data", tmp_path / "data")
    assert code == 2 and why in sentence(printed) and "nothing was unpacked" in printed and not (tmp_path / "data").exists()


def patched(archive: Path, target: Path, change) -> Path:
    content = bytearray(archive.read_bytes())
    change(content)
    target.write_bytes(content)
    return target


def encrypt(content: bytearray) -> None:
    """Says of every entry that it is encrypted."""
    for mark, at in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        found = content.find(mark)
        while found >= 0:
            content[found + at] |= 1
            found = content.find(mark, found + 4)


def test_damaged_encrypted_and_other_files_are_one_sentence(archives, tmp_path, said):
    good = archives / "SBU-shadow.zip"

    def refused(source: Path, words: str) -> None:
        code, printed = said("sbu", "--from", source, "--data", tmp_path / "data")
        assert code == 2 and words in sentence(printed), printed

    refused(tmp_path / "absent.zip", "No such file")
    refused(patched(good, tmp_path / "cut.zip", lambda content: content.__delitem__(slice(len(content) // 2, None))), "not a whole zip")
    (tmp_path / "page.zip").write_text("<html>quota exceeded</html>")
    refused(tmp_path / "page.zip", "not a whole zip")
    refused(patched(good, tmp_path / "secret.zip", encrypt), "is encrypted")
    refused(archives / "TestDataset.zip", "holds nothing that sbu needs")
    refused(tmp_path / "empty", "No such file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds nothing that sbu needs")
    assert not (tmp_path / "data").exists()
    with zipfile.ZipFile(good) as file:
        info = [info for info in file.infolist() if info.filename.startswith("SBU") and info.filename.endswith(".jpg")][5]
    middle = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    broken = patched(good, tmp_path / "broken.zip", lambda content: content.__setitem__(slice(middle, middle + 9), b"xxxxxxxxx"))
    refused(broken, f"is damaged at {info.filename}")
    assert not (tmp_path / "data/sbu" / info.filename).exists()
    assert said("sbu", "--from", good, "--data", tmp_path / "data")[0] == 0


def test_what_is_asked_wrongly(tmp_path, said):
    for words, answer in (
        (("whuu", "--from", "x"), "Did you mean whu?"),
        (("verify",), "Which data set?"),
        (("synth_polyps", "--from", tmp_path), "has no archive"),
        (("whu",), "--from is needed: 3. The cropped aerial"),
        (("verify", "whu", "--data", tmp_path / "absent"), "is no folder"),
        (("where", "synth_polyps"), "has no archive"),
    ):
        code, printed = said(*words)
        assert code == 2 and answer in sentence(printed)


def test_where_names_the_page_the_files_and_what_they_hold():
    done = command("where")
    assert done.returncode == 0
    for words in (
        "gpcv.whu.edu.cn",
        "TrainDataset.zip and TestDataset.zip",
        "550 that are passed over",
        "SBU-Test/ShadowMasks/*.png",
        "1,036",
    ):
        assert words in done.stdout


# --- checking


def official(data: Path, name: str) -> Path:
    """Makes a generated archive look like a real one."""
    (data / name / GENERATED_MARK).unlink()
    return data / name


def test_every_fault_of_an_archive_is_named(data, said):
    root = official(data, "kvasir")
    train = root / "TrainDataset"
    images = sorted(path.name for path in (train / "image").iterdir() if path.stem not in Kvasir.official[16] and not path.stem.isdecimal())
    (train / "masks" / images[0]).unlink()
    replace(train / "image" / images[1], (train / "image" / images[1]).read_bytes()[:-30])
    replace(train / "masks" / f"{Kvasir.official[16][2]}.png", b"<html>")
    tall = cv2.imencode(".png", np.zeros((400, 100), np.uint8))[1].tobytes()
    other = sorted((root / "TestDataset/Kvasir/masks").iterdir())[0]
    replace(other, tall)
    official_image = Kvasir.official[16][4]
    for folder in ("image", "masks"):
        (train / folder / f"{official_image}.png").unlink()
    before = tree(data)
    code, printed = said("verify", "kvasir", "--data", data)
    problems = printed.partition("problems:\n")[2].splitlines()
    assert code == 1 and "not fit for a run" in printed and tree(data) == before
    expected = (
        f"{images[0]} has no mask",
        f"{images[1]} is cut short",
        f"{Kvasir.official[16][2]}.png is not an image",
        f"{other} has (400, 100) pixels",
        f"{official_image}.png of the official 16-shot list is not in",
        "The train split has 16 images; the official archive has 900",
        "The test split has 2 images; the official archive has 100",
        "The train folder has 4 images that are not part of the data set; the official archive has 550",
    )
    for words in expected:
        assert [line for line in problems if words in line], words
    code, printed = said("verify", "kvasir", "--data", data, "--show", 3)
    assert code == 1 and f"… and {len(expected) - 3} more; --show 0 prints all." in printed and printed.count("\n- Data set kvasir") == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_of_every_kind_is_named(name, data, said):
    files = DATASETS.get(name).open(data).files()
    broken = {path.suffix + kind: path for kind in ("image", "mask") for label, path in files.items() if label.endswith(kind)}
    for path in broken.values():
        replace(path, path.read_bytes()[:-40])
    code, printed = said("verify", name, "--data", data)
    assert code == 1 and all(f"The file {path} is cut short" in printed for path in list(broken.values())[-1:])


def test_the_official_numbers_are_what_is_asked_for(archives, tmp_path, said):
    """1,450 training and 100 test images in PraNet's folders pass; one less does not."""
    source = archives / "folders/kvasir/TrainDataset"
    image, mask = source / "image" / f"{Kvasir.official[1][0]}.png", source / "masks" / f"{Kvasir.official[1][0]}.png"
    small = {path: tmp_path / path.parent.name for path in (image, mask)}
    for path, target in small.items():
        cv2.imwrite(f"{target}.png", cv2.resize(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), (16, 16), interpolation=cv2.INTER_NEAREST))
    official_stems = list(dict.fromkeys(Kvasir.official[16]))
    stems = [*official_stems, *(f"cju{i:05}" for i in range(900 - len(official_stems))), *map(str, range(550))]
    for folder, names in (("TrainDataset", stems), ("TestDataset/Kvasir", [f"cjt{i}" for i in range(100)])):
        for kind in ("image" if folder == "TrainDataset" else "images", "masks"):
            place = tmp_path / "data/kvasir" / folder / kind
            place.mkdir(parents=True)
            for name in names:
                (place / f"{name}.png").hardlink_to(tmp_path / ("masks.png" if kind == "masks" else "image.png"))
    code, printed = said("verify", "kvasir", "--data", tmp_path / "data")
    assert code == 0, printed
    assert "550 images of the train folder are not part of the data set" in printed and "100 images have the same content" in printed
    for kind in ("images", "masks"):
        (tmp_path / f"data/kvasir/TestDataset/Kvasir/{kind}/cjt7.png").unlink()
    code, printed = said("verify", "kvasir", "--data", tmp_path / "data")
    assert code == 1 and "The test split has 99 images; the official archive has 100." in printed


def test_tiles_of_another_size_are_named(data):
    official(data, "whu")
    texts = [finding.text for finding in verify(DATASETS.get("whu"), data, data / "cache").findings if finding.is_problem]
    assert sum("has 192×192 pixels; the official ones have 512×512" in text for text in texts) == TRAIN + TEST


def test_masks_that_are_not_binary_and_what_the_threshold_drops(data, said):
    code, printed = said("verify", "kvasir", "--data", data)
    grey = [cv2.imread(str(p), 0) for n in Kvasir.open(data).names("train") for p in [data / f"kvasir/TrainDataset/masks/{n}.png"]]
    dropped = sum(int(((values > 127) & (values <= 254)).sum()) for values in grey)
    assert code == 0 and dropped and f"with the values 0–7, 248–255; > 254 leaves out {dropped:,} pixels that > 127 would keep" in printed


def test_masks_without_any_foreground_are_a_problem_and_single_ones_are_counted(data, said):
    masks = sorted((data / "kvasir/TestDataset/Kvasir/masks").iterdir())
    replace(masks[0], cv2.imencode(".png", np.zeros(LAYOUTS["kvasir"].pixels, np.uint8))[1].tobytes())
    code, printed = said("verify", "kvasir", "--data", data)
    assert code == 0 and "and 1 image without a prompt" in printed
    for mask in masks:
        replace(mask, cv2.imencode(".png", np.full(LAYOUTS["kvasir"].pixels, 1, np.uint8))[1].tobytes())
    code, printed = said("verify", "kvasir", "--data", data)
    assert code == 1 and "No mask of the test split has any foreground; their brightest value is 1, and > 254 is foreground." in printed


def test_an_image_of_another_size_is_noted_as_the_reader_treats_it(data, said):
    path = sorted((data / "sbu/SBU-shadow/SBU-Test/ShadowImages").iterdir())[0]
    replace(path, cv2.imencode(".jpg", np.zeros((80, 104, 3), np.uint8))[1].tobytes())
    code, printed = said("verify", "sbu", "--data", data)
    assert code == 0 and f"test: 1 image has not the mask's size and are transposed or resized to it, such as {path.stem}." in printed


def test_what_a_run_would_see_is_what_the_reader_gives(data):
    found = verify(Kvasir, data, data / "cache")
    dataset = Kvasir.open(data)
    for split in ("train", "test"):
        seen = {look.name: look for look in found.seen[split]}
        assert sorted(seen) == list(dataset.names(split))
        for name in dataset.names(split):
            mask = dataset.load(split, name).mask
            assert (seen[name].foreground, seen[name].pixels) == (int(mask.sum()), mask.shape)
            assert seen[name].objects == len(object_masks(mask, Kvasir.rule))


def test_absent_data_is_a_problem_with_the_way_to_get_it(tmp_path, said):
    code, printed = said("verify", "sbu", "--data", tmp_path)
    assert code == 1 and "does not exist; get the archive SBU-shadow from https://www3.cs.stonybrook.edu" in printed


def test_a_data_set_without_files_is_checked_too(tmp_path):
    found = verify(Rectangles, tmp_path, tmp_path)
    assert not found.findings and {split: len(seen) for split, seen in found.seen.items()} == {"train": 4, "val": 2, "test": 5}
    assert [look.objects for look in found.seen["test"]] == [1, 1, 1, 1, 0] and found.manifest.fingerprint is None


# --- the manifest


def test_a_fingerprint_follows_from_contents_and_not_from_places_or_dates(data, tmp_path):
    here = manifest_of(Kvasir.open(data), None)
    assert len(here.fingerprint) == bench.manifest.DIGITS and here.bytes == sum(
        p.stat().st_size for p in Kvasir.open(data).files().values()
    )
    moved = tmp_path / "elsewhere"
    shutil.copytree(data / "kvasir", moved / "kvasir")
    assert manifest_of(Kvasir.open(moved), None).fingerprint == here.fingerprint
    mask = next(iter((moved / "kvasir/TestDataset/Kvasir/masks").iterdir()))
    mask.write_bytes(mask.read_bytes() + b"\0")
    assert manifest_of(Kvasir.open(moved), None).fingerprint != here.fingerprint


def test_files_are_hashed_once_and_again_when_their_date_changes(data, tmp_path, said):
    cache = tmp_path / "results" / "cache"
    dataset = Kvasir.open(data)
    hashed: list[int] = []
    first = manifest_of(dataset, cache, tell=hashed.append)
    assert sum(hashed) == first.bytes and to_hash(dataset, cache) == 0
    path = dataset.files()[f"train/{dataset.names('train')[0]}/image"]
    content, date = path.read_bytes(), path.stat().st_mtime_ns
    hashed.clear()
    replace(path, content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(date, date))
    assert manifest_of(dataset, cache, tell=hashed.append) == first and not hashed  # nothing was read
    code, printed = said("verify", "kvasir", "--data", data)
    assert code == 1 and f"The content of {path} changed, though its size and date did not" in printed
    replace(path, content)
    assert manifest_of(dataset, cache, tell=hashed.append).fingerprint == first.fingerprint and hashed == [len(content)]
    next((cache / bench.manifest.FOLDER).iterdir()).write_text("{]")
    assert manifest_of(dataset, cache).fingerprint == first.fingerprint


def test_drawn_images_have_no_fingerprint_and_cost_nothing(tmp_path):
    facts = data_facts(SynthPolyps(), tmp_path)
    assert facts == {"title": "Polyps (generated)", "fingerprint": None, "files": 0, "bytes": 0} and not list(tmp_path.iterdir())
