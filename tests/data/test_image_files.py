"""Image files of every kind: read the one right way, upright and at their own depth, or refused by name; the same for every reader."""

import io
import os
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from tif_files import tif

from bench.data.image_files import orientation, read_image, read_labels, read_mask
from bench.errors import DataError
from bench.model.inputs import image_files, read_picture

CASES = Path(__file__).parents[1] / "cases"
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 16, 3), np.uint8)
GREY = RGB[..., 0]
ALPHA = RNG.integers(0, 256, (12, 16), np.uint8)
IDS = np.zeros((12, 16), np.uint8)
IDS[2:6, 3:9], IDS[6:10, 3:9] = 1, 2  # they touch


def saved(pixels: np.ndarray | Image.Image, kind: str, **how: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    content = io.BytesIO()
    image.save(content, kind, **how)
    return content.getvalue()


def png(pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.fixture
def put(tmp_path):
    def write(content: bytes, name: str = "a.png") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def refused(read, path: Path, *words: str) -> None:
    """One sentence that names the file."""
    with pytest.raises(DataError) as error:
        read(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text and text.endswith("."), text
    assert all(word in text for word in words), text


# --- images


RGBA = np.dstack([RGB, ALPHA])
DEEP = (RGB.astype(np.uint16) << 8) + 7
RIGHT = {
    "rgba.png": (saved(RGBA, "PNG"), RGB),
    "la.png": (saved(Image.fromarray(GREY).convert("LA"), "PNG"), np.dstack([GREY] * 3)),
    "rgba.webp": (saved(RGBA, "WEBP", lossless=True, exact=True), RGB),
    "rgba.tif": (saved(RGBA, "TIFF"), RGB),
    "rgba_lzw.tif": (saved(RGBA, "TIFF", compression="tiff_lzw"), RGB),
    "alpha.tif": (tif(RGBA, extra=2), RGB),
    "alpha_planes.tif": (tif(RGBA, extra=2, planar=True), RGB),
    "alpha_big_endian.tif": (tif(RGBA, extra=2, order=">"), RGB),
    "alpha_big.tif": (tif(RGBA, extra=2, big=True), RGB),
    "multiplied_alpha.tif": (tif(RGBA, extra=1), RGB),
    "infrared.tif": (tif(RGBA, extra=0), RGB),
    "deep_alpha.tif": (tif(np.dstack([DEEP, ALPHA.astype(np.uint16)]), extra=2), RGB),
    "deep.tif": (tif(DEEP), RGB),
    "deep_big_endian.tif": (tif(DEEP, order=">"), RGB),
    "deep.png": (png(DEEP[..., ::-1]), RGB),
    "grey_deep.tif": (tif(DEEP[..., 0]), np.dstack([GREY] * 3)),
    "white_is_0.tif": (tif(GREY, photometric=0), np.dstack([255 - GREY] * 3)),
    "deep_white_is_0.tif": (tif(65535 - DEEP[..., 0], photometric=0), np.dstack([GREY] * 3)),
    "bits.png": (saved(Image.fromarray(GREY > 127), "PNG"), np.dstack([(GREY > 127) * np.uint8(255)] * 3)),
    "pyramid.tif": (tif(RGB, RGB[::2, ::2], RGB[::4, ::4], subfile=1), RGB),
    "masked.tif": (tif(RGB, GREY, subfile=4), RGB),
    "one_frame.png": (saved(RGB, "PNG", save_all=True), RGB),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_has_one_right_way_is_read_so(name, put):
    content, expected = RIGHT[name]
    path = put(content, name)
    assert np.array_equal(read_image(path), expected)
    assert np.array_equal(read_picture(path).permute(1, 2, 0).numpy(), expected)


PAGES = [Image.fromarray(np.full((12, 16, 3), shade, np.uint8)) for shade in (7, 90, 200)]
REFUSED = {
    "pages.tif": (tif(RGB, RGB), "holds 2 pages or frames"),
    "pages_big_endian.tif": (tif(RGB, GREY, RGB, order=">"), "holds 3 pages"),
    "pages_big.tif": (tif(RGB, RGB, big=True), "holds 2 pages"),
    "animation.png": (saved(PAGES[0], "PNG", save_all=True, append_images=PAGES[1:]), "holds 3 pages or frames"),
    "animation.webp": (saved(PAGES[0], "WEBP", save_all=True, append_images=PAGES[1:]), "holds 3 pages or frames"),
    "animation.gif": (saved(PAGES[0], "GIF", save_all=True, append_images=PAGES[1:]), "holds 3 pages or frames"),
    "signed.tif": (tif(GREY.astype(np.int16)), "values of type int16"),
    "signed_rgb.tif": (tif(RGB.astype(np.int16) - 5), "values of type int16"),
    "signed_8.tif": (tif(GREY.view(np.int8)), "values of type int8"),
    "int32.tif": (tif(GREY.astype(np.int32)), "values of type int32"),
    "uint32.tif": (tif(GREY.astype(np.uint32)), "values of type uint32"),
    "float.tif": (tif(GREY.astype(np.float32)), "values of type float32"),
    "float_rgb.tif": (tif(RGB / np.float32(255)), "values of type float32"),
    "double.tif": (tif(GREY.astype(np.float64)), "values of type float64"),
    "12_of_16.tif": (tif(DEEP >> 4), f"no value above {DEEP.max() >> 4}, which may be fewer bits", "12 to 16"),
    "14_of_16.png": (png(DEEP >> 2), "may be fewer bits", "14 to 16"),
    "8_of_16.tif": (tif(GREY.astype(np.uint16)), "may be fewer bits", "8 to 16"),
    "bands.tif": (tif(np.dstack([RGBA, GREY]), extra=0), "5 bands"),
    "uncalled_bands.tif": (tif(RGBA, photometric=1, extra=0), "4 bands that it does not call colours"),
    "deep_planes.tif": (tif(DEEP, planar=True), "has its colours one after another at 16 bits"),
    "deep_grey_alpha.tif": (tif(DEEP[..., :2], photometric=1, extra=2), "has 16 bits, of which 8 can be read"),
    "nonsense.png": (b"\x89PNG\r\n\x1a\n" + b"x" * 90 + b"IEND\xae\x42\x60\x82", "not an image that can be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_one_right_way_is_refused_by_name(name, put):
    content, *words = REFUSED[name]
    path = put(content, name)
    refused(read_image, path, *words)
    refused(read_picture, path, *words)


def test_the_bits_that_are_used_can_be_said(put):
    path = put(tif(DEEP >> 4))
    assert np.array_equal(read_image(path, 12), RGB) and np.array_equal(read_picture(path, 12).permute(1, 2, 0).numpy(), RGB)
    assert np.array_equal(read_image(path, 16), RGB >> 4) and read_image(put(tif(np.zeros((9, 9), np.uint16)), "black.tif")).max() == 0
    refused(lambda p: read_image(p, 10), path, "which bits = 10 does not allow: 0 to 1023 is")

    with pytest.raises(DataError, match="The PIL image has 16 bits and no value above"):
        read_picture(Image.fromarray(DEEP[..., 0] >> 4))
    assert np.array_equal(read_picture(Image.fromarray(DEEP[..., 0] >> 4), 12)[0].numpy(), GREY)


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_upright(kind, tag, put):
    exif = Image.Exif()
    exif[0x0112] = tag
    blocks = np.kron(RGB[:2, :3], np.ones((16, 16, 1), np.uint8))
    how = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    content = tif(blocks, orientation=tag) if kind == "TIFF" else saved(blocks, kind, exif=exif, **how)
    path = put(content, f"a.{kind.lower()}")
    expected = upright(content).astype(int)
    assert orientation(path) == tag and read_image(path).shape == expected.shape
    assert np.abs(read_image(path) - expected).max() <= (9 if kind == "JPEG" else 0)
    for stored in (IDS, IDS.astype(np.uint16), IDS.astype(np.float32)):
        path = put(tif(stored, orientation=tag), "m.tif")
        assert np.array_equal(read_mask(path), upright(tif(IDS, orientation=tag))[..., 0]) and np.array_equal(
            read_labels(path), read_mask(path)
        )


def upright(content: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


# --- masks


MASKS = {
    "u8.png": saved(IDS, "PNG"),
    "u16.png": saved(IDS.astype(np.uint16), "PNG"),
    "u16.tif": tif(IDS.astype(np.uint16)),
    "u32.tif": tif(IDS.astype(np.uint32), order=">"),
    "i16.tif": tif(IDS.astype(np.int16)),
    "i32.tif": tif(IDS.astype(np.int32)),
    "f32.tif": tif(IDS.astype(np.float32)),
    "f64.tif": tif(IDS.astype(np.float64)),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_masks_values_are_those_of_its_own_depth(name, put):
    path = put(MASKS[name], name)
    assert np.array_equal(read_mask(path), IDS) and np.array_equal(read_labels(path), IDS)


def test_values_above_8_bits_stay_apart(put):
    for dtype, values in ((np.uint16, (256, 512)), (np.uint16, (1, 65535)), (np.uint32, (1, 1 << 31)), (np.float32, (0.25, 0.5))):
        for read in (read_mask, read_labels)[: 1 if dtype == np.float32 else 2]:
            assert np.array_equal(np.unique(read(put(tif(np.array((0, *values), dtype)[IDS])))), (0, *values))


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("channel", range(3))
def test_dark_colours_are_foreground(channel, depth, put):
    colours = np.zeros((*IDS.shape, 3), depth)
    colours[..., channel] = IDS
    for content in (png(colours), tif(colours)):
        assert np.array_equal(read_mask(put(content)) > 0, IDS > 0)
    palette = Image.fromarray(IDS, "P")
    palette.putpalette([0, 0, 0] + [int(at == channel) for at in range(3)] + [9, 9, 9])
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(read_mask(put(saved(palette, kind), f"p.{kind.lower()}")) > 0, IDS > 0)


def test_labels_are_palette_indices_and_colours(put):
    palette = Image.fromarray(IDS, "P")
    palette.putpalette([0, 0, 0, 0, 0, 0, 200, 10, 10])  # 1 is black too
    for kind in ("PNG", "TIFF", "BMP"):
        assert np.array_equal(read_labels(put(saved(palette, kind), f"p.{kind.lower()}")), IDS)
    colours = np.array([(0, 0, 0), (0, 0, 1), (1, 0, 0)], np.uint8)[IDS]
    for content in (saved(colours, "PNG"), saved(colours, "TIFF"), saved(np.dstack([colours, ALPHA]), "PNG")):
        assert np.array_equal(read_labels(put(content)), np.array([0, 1, 65536])[IDS])
    assert np.array_equal(read_labels(put(saved(np.dstack([IDS] * 3), "PNG"))), IDS)
    assert np.array_equal(np.unique(read_labels(put(tif(colours.astype(np.uint16))))), (0, 1, 1 << 32))


def test_what_is_no_mask_is_refused_by_name(put):
    refused(read_mask, put(tif(IDS.astype(np.int16) - 1)), "has the value -1: 0, the background, and larger ones are allowed")
    refused(read_mask, put(tif(np.where(IDS, np.nan, 0).astype(np.float32))), "has the value nan")
    refused(read_mask, put(tif(np.dstack([IDS] * 3).astype(np.float32))), "3 channels of type float32")
    refused(read_labels, put(tif(IDS / np.float32(2))), "has the value 0.5: whole numbers are needed")
    refused(read_labels, put(saved(IDS, "JPEG")), "is a JPEG, which changes values")
    refused(read_mask, put(tif(IDS, IDS)), "2 pages")
    for white in (0, 255):
        colour = np.full((12, 16), white, np.uint8)
        share = "100 % of it is" if white else "none of it is"
        for content in (saved(np.dstack([colour] * 3 + [IDS * 127]), "PNG"), tif(np.dstack([colour] * 3 + [IDS * 127]), extra=2)):
            refused(
                read_mask, put(content), f"has the value {white} everywhere, so that {share} foreground, and an alpha channel that differs"
            )
            refused(read_labels, put(content), "an alpha channel that differs")
    opaque = saved(np.dstack([IDS * 100] * 3 + [np.full_like(IDS, 255)]), "PNG")
    assert np.array_equal(read_mask(put(opaque)), IDS * 100)


# --- damage


def test_a_jpeg_whose_pixels_were_made_up_is_named(put, capfd):
    refused(read_image, CASES / "damaged.jpg", "is damaged (Corrupt JPEG data: 207 extraneous bytes before marker 0xd9)")
    refused(read_picture, CASES / "damaged.jpg", "is damaged")
    whole = saved(np.kron(RGB, np.ones((8, 8, 1), np.uint8)), "JPEG", quality=90, restart_marker_blocks=4)
    assert read_image(put(whole)).shape == (96, 128, 3)
    middle = len(whole) // 2
    for damaged in (whole[:middle] + whole[middle + 60 :], whole[:middle] + bytes(60) + whole[middle + 60 :]):
        refused(read_image, put(damaged), "is damaged (Corrupt JPEG data")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "jpeg"])
def test_a_compressed_tif_that_does_not_decode_is_named(compression, put):
    pixels = np.kron(RGB, np.ones((8, 8, 1), np.uint8)) + RNG.integers(0, 2, (96, 128, 3), np.uint8)
    whole = saved(pixels, "TIFF", compression=compression)
    assert read_image(put(whole)).shape == (96, 128, 3)
    middle = len(whole) // 2
    refused(read_image, put(whole[:middle] + bytes(200) + whole[middle + 200 :]), "is damaged (")


def test_what_others_print_meanwhile_is_not_lost(put, capfd):
    """Other threads write to stderr while this one listens to the decoder."""
    path, done = put(saved(np.kron(RGB, np.ones((64, 64, 1), np.uint8)), "JPEG")), threading.Event()

    def chatter() -> None:
        for number in range(300):
            os.write(2, f"line {number}\n".encode())
        done.set()

    threading.Thread(target=chatter).start()
    while not done.is_set():
        read_image(path)
    assert capfd.readouterr().err.splitlines() == [f"line {number}" for number in range(300)]


def test_a_name_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "a.png").touch()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.png")).touch()
    with pytest.raises(DataError, match=r"The name of the file '.*b\\udcff\.png' is not UTF-8: rename it\."):
        image_files(tmp_path)
