"""`datasets.prepare` puts archives in the official layout into place, from zips and folders, whole, damaged and hostile ones."""

import os
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from archive_files import NAMES, sentence, tree, zips

from bench import ROOT
from bench.data.manifest import manifest_of
from bench.grid.registry import DATASETS
from datasets.kvasir import Kvasir
from datasets.preparation.locations import tops
from datasets.preparation.unpack import plan, unpack
from datasets.whu import TILES

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
    others = {"whu": (f"{TILES}/test/",), "kvasir": ("TestDataset/CVC-", "TestDataset/ETIS-")}.get(name, ())
    assert all(path.startswith(others) for path in unread) and bool(unread) == bool(others)
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


def test_of_several_folders_that_would_do_the_one_of_the_right_name_is_taken(archives, tmp_path, said):
    mine = tmp_path / "downloads"
    shutil.copytree(archives / "folders" / "kvasir", mine / "z" / "PraNet")
    for kind in ("image", "masks"):
        (mine / "another polyp set" / kind).mkdir(parents=True)
    assert said("kvasir", "--from", mine, "--data", tmp_path / "data")[0] == 0
    assert (tmp_path / "data/kvasir/TrainDataset").resolve() == mine / "z/PraNet/TrainDataset"


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
        (("verfy", "whu"), "Did you mean verify"),
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
