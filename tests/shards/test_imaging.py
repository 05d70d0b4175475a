"""What becomes of an image that is fine: nothing by default, else the size, format, colours and rotation asked for."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from shards.errors import ShardError
from shards.images.imaging import Look, move_box, prepare
from shards.record import Box, Unreadable
from tests.shards.conftest import picture

KINDS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


def save(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """An image file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def show(data: bytes, mode: str | None = "RGB") -> np.ndarray:
    """Its pixels as Pillow decodes them, as numbers that can be subtracted."""
    image = Image.open(io.BytesIO(data))
    return np.asarray(image.convert(mode) if mode else image).astype(int)


def opened(data: bytes, look: Look, box: Box | None = None) -> Image.Image:
    """What prepare makes of it."""
    image = Image.open(io.BytesIO(prepare(data, look, box=box)[0]))
    image.load()
    return image


def exif(orientation: int) -> Image.Exif:
    """A block with this rotation."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def smooth(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A picture without edges, which JPEG hardly changes; no two corners alike."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    pixels = np.stack([255 * x, 200 * y, 60 + 90 * x * y], axis=2)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verify", ["pixels", "structure"])
def test_by_default_an_image_keeps_its_bytes_under_the_extension_of_what_it_is(kind: str, verify: str) -> None:
    data = picture(1, kind=kind)
    assert prepare(data, Look(verify=verify)) == (data, KINDS[kind])


@pytest.mark.parametrize(
    "data",
    [
        save(smooth(), exif=exif(6)),
        save(smooth("CMYK")),
        save(smooth("RGBA"), "PNG"),
        save(smooth(), progressive=True),
        save(smooth(), keep_rgb=True),
        save(smooth("L"), restart_marker_blocks=2),
        save(smooth(), "MPO", save_all=True, append_images=[smooth()]),
        save(smooth(), "TIFF", compression="tiff_lzw"),
    ],
)
def test_by_default_nothing_is_turned_or_converted(data: bytes) -> None:
    assert prepare(data)[0] is data
    assert prepare(data, Look(verify="structure"))[0] is data


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("look", [Look(max_side=60), Look(short_side=40), Look(crop=True), Look(max_side=99)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_that_is_as_wanted_is_not_encoded_again(kind: str, look: Look, mode: str) -> None:
    data = picture(4, kind=kind, size=(60, 40), mode=mode)
    assert prepare(data, look) == (data, KINDS[kind])
    assert prepare(data, Look(format=kind.lower())) == (data, KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", ["jpeg", "png", "webp"])
def test_any_format_becomes_the_one_asked_for(kind: str, wanted: str) -> None:
    data = save(smooth(), kind)
    made, extension = prepare(data, Look(format=wanted, quality=95))
    assert (Image.open(io.BytesIO(made)).format, extension) == (wanted.upper(), KINDS[wanted.upper()])
    assert np.abs(show(made) - show(data)).mean() < 4


@pytest.mark.parametrize(
    ("size", "look", "expected"),
    [
        ((400, 300), Look(max_side=100), (100, 75)),
        ((300, 401), Look(max_side=100), (75, 100)),
        ((400, 300), Look(short_side=100), (133, 100)),
        ((301, 400), Look(short_side=100), (100, 133)),
        ((1000, 3), Look(max_side=100), (100, 1)),
        ((1, 1000), Look(max_side=10), (1, 10)),
        ((401, 399), Look(short_side=64), (64, 64)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_sizes_keep_the_proportions_to_the_nearest_pixel(
    kind: str, size: tuple[int, int], look: Look, expected: tuple[int, int]
) -> None:
    made, extension = prepare(picture(5, kind=kind, size=size), look)
    assert (Image.open(io.BytesIO(made)).size, extension) == (expected, "jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_and_then_gone(orientation: int, kind: str) -> None:
    data = save(smooth(), kind, exif=exif(orientation))
    upright = opened(data, Look(format="png"))
    stored = Image.open(io.BytesIO(data))
    expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB")).astype(int)
    assert not upright.getexif() or (orientation == 1 and kind == "PNG")  # which stays as it is
    assert np.abs(np.asarray(upright) - expected).max() <= 2
    small = opened(data, Look(max_side=30))
    assert small.size == ((20, 30) if orientation > 4 else (30, 20))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 2, 6, 8])
def test_a_crop_is_cut_from_the_image_as_stored(kind: str, orientation: int) -> None:
    data = save(smooth(), kind, exif=exif(orientation))
    stored = smooth() if kind != "JPEG" else Image.open(io.BytesIO(save(smooth())))
    part = stored.crop((10, 5, 31, 25))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(save(part, "PNG", exif=exif(orientation)))))
    cut = opened(data, Look(crop=True, format="png"), (10, 5, 31, 25))
    assert np.abs(np.asarray(cut).astype(int) - np.asarray(turned)).max() <= 2


@pytest.mark.parametrize(
    ("box", "margin", "rows", "columns"),
    [
        ((10, 20, 50, 60), 0.0, slice(20, 60), slice(10, 50)),
        ((10, 20, 50, 60), 0.25, slice(10, 70), slice(0, 60)),
        ((10, 20, 50, 60), 9.0, slice(0, 300), slice(0, 400)),
        ((10.5, 20.5, 50.5, 60.5), 0.0, slice(20, 61), slice(10, 51)),
        ((-5, 290, 7, 999), 0.0, slice(290, 300), slice(0, 7)),
        ((399, 299, 400, 300), 0.0, slice(299, 300), slice(399, 400)),
        (None, 0.5, slice(0, 300), slice(0, 400)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "BMP"])
def test_a_crop_is_a_slice_of_the_pixels(
    kind: str, box: Box | None, margin: float, rows: slice, columns: slice
) -> None:
    data = save(smooth(size=(400, 300)), kind)
    cut = opened(data, Look(crop=True, margin=margin, format="png"), box)
    assert np.abs(np.asarray(cut).astype(int) - show(data)[rows, columns]).max() <= 2


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((700, 10, 800, 90), r"the box \(700, 10, 800, 90\) lies outside of the 640 x 480 image"),
        ((-9, -9, 0, 0), "lies outside of the 640 x 480 image"),
        ((10, 10, 10, 90), r"the box \(10, 10, 10, 90\) is empty"),
        ((50, 10, 10, 90), "is empty"),
        ((0, 0, float("nan"), 9), "is empty"),
        ((0, 0, float("inf"), 9), "is empty"),
    ],
)
def test_a_box_without_pixels_is_refused(box: Box, reason: str) -> None:
    data = picture(1, size=(640, 480))
    with pytest.raises(Unreadable, match=reason):
        prepare(data, Look(crop=True), box=box)
    assert prepare(data, box=box)[0] is data


@pytest.mark.parametrize("look", [Look(format="png"), Look(max_side=30, format="png")])
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "CMYK"), ("TIFF", "CMYK"), ("PNG", "P"), ("GIF", "P"), ("TIFF", "YCbCr"), ("PNG", "1"), ("PNG", "L")],
)
def test_colours_are_those_of_pillow(kind: str, mode: str, look: Look) -> None:
    data = save(smooth(mode), kind)
    made = opened(data, look)
    expected = Image.open(io.BytesIO(data)).convert("L" if mode in ("1", "L") else "RGB")
    expected = expected.resize(made.size, Image.Resampling.BICUBIC)
    assert made.mode == ("L" if mode in ("1", "L") else "RGB")
    assert np.abs(np.asarray(made).astype(int) - np.asarray(expected)).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_becomes_white(mode: str) -> None:
    half = Image.new("L", (60, 40), 255)
    half.paste(0, (0, 0, 30, 40))
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (60, 40), "black")
        image.putalpha(half)
        data = save(image, "PNG")
    else:  # one colour stands for transparent
        image = half.point(lambda value: value // 2 + 1).convert(mode)
        clear = image.getpixel((0, 0))
        data = save(image, "PNG", transparency=clear)
    shown = np.asarray(opened(data, Look(format="png")).convert("L"))
    assert shown[:, :30].min() == 255
    assert shown[:, 30:].max() < 200


def test_sixteen_bits_keep_their_scale_and_floats_take_their_own() -> None:
    ramp = np.linspace(1000, 40_000, 64 * 64).reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        shown = np.asarray(opened(save(Image.fromarray(ramp.astype(np.uint16)), kind), Look(format="png")))
        assert np.abs(shown - ramp / 257).max() <= 1
    white = save(Image.fromarray(np.full((8, 8), 65535, np.uint16)), "PNG")
    assert np.asarray(opened(white, Look(format="png"))).min() == 255
    for floats in (ramp.astype(np.float32), ramp.astype(np.int32)):
        shown = np.asarray(opened(save(Image.fromarray(floats), "TIFF"), Look(format="png")))
        assert np.abs(shown - (ramp - 1000) * 255 / 39_000).max() <= 1
    holes = ramp.astype(np.float32)
    holes[0, 0], holes[0, 1] = np.nan, np.inf
    shown = np.asarray(opened(save(Image.fromarray(holes), "TIFF"), Look(format="png")))
    assert (shown[0, 0], shown[0, 1]) == (0, 255)


def test_a_colour_profile_becomes_srgb_and_srgb_itself_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = save(smooth(), icc_profile=srgb)
    assert prepare(data, Look(max_side=60))[0] is data
    swapped = bytearray(srgb.replace(b"sRGB", b"xxxx").replace("sRGB".encode("utf-16-be"), b"xxxxxxxx"))
    red, blue = (swapped.index(tag, 128) for tag in (b"rXYZ", b"bXYZ"))
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"  # red is blue in this space
    for kind in ("JPEG", "PNG"):
        data = save(smooth(), kind, icc_profile=bytes(swapped))
        made = opened(data, Look(format="png"))
        assert "icc_profile" not in made.info
        assert np.abs(np.asarray(made).astype(int) - show(data)[..., ::-1]).mean() < 4
        assert opened(save(smooth(), kind, icc_profile=b"no profile"), Look(max_side=30)).size == (30, 20)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_picture_is_taken(kind: str) -> None:
    first, second = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (60, 40), "blue")
    data = save(first, kind, save_all=True, append_images=[second])
    assert prepare(data)[0] is data
    made = opened(data, Look(format="png"))
    assert getattr(made, "n_frames", 1) == 1
    assert np.abs(np.asarray(made.convert("RGB")).astype(int) - np.array([255, 0, 0])).max() < 5


def test_nothing_but_pixels_is_written() -> None:
    data = save(smooth(), exif=exif(1), comment=b"who was here", dpi=(300, 300))
    for wanted in ("jpeg", "png", "webp"):
        made = opened(data, Look(max_side=30, format=wanted))
        assert not {"exif", "comment", "icc_profile", "dpi", "xmp"} & made.info.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_side": 0}, "max-side 0"),
        ({"short_side": -1}, "short-side -1"),
        ({"max_side": 9, "short_side": 9}, "both given"),
        ({"format": "jpg"}, "unknown format 'jpg'; did you mean jpeg"),
        ({"verify": "all"}, "unknown verify 'all'; there are pixels, structure"),
        ({"quality": 101}, "quality 101"),
        ({"crop": True, "margin": -0.1}, "margin -0.1"),
        ({"margin": 0.1}, "margin 0.1 widens the box of a crop"),
        ({"max_pixels": 0}, "max-pixels 0"),
    ],
)
def test_an_impossible_look_says_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        Look(**options)


DARK = (50, 20, 110, 70)


def drawn(kind: str, orientation: int) -> bytes:
    """A file whose stored pixels are white with a dark rectangle at DARK."""
    image = Image.new("RGB", (200, 120), "white")
    image.paste("black", DARK)
    return save(image, kind, exif=exif(orientation))


def find_dark(image: Image.Image) -> Box:
    """Where it is, to half a pixel or so."""
    dark = np.asarray(image.convert("L")) < 128
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("look", [Look(), Look(format="png"), Look(max_side=90), Look(short_side=61)])
def test_a_box_moves_with_its_object(kind: str, orientation: int, look: Look) -> None:
    data = drawn(kind, orientation)
    stored = prepare(data, look)[0]
    moved = move_box(data, look, DARK)
    image = Image.open(io.BytesIO(data if stored is data else stored))
    if stored is data:
        assert moved == DARK
    else:
        assert np.abs(np.subtract(moved, find_dark(image))).max() <= 1
        assert all(edge == round(edge, 2) for edge in moved)


def test_a_box_stays_as_exact_as_it_is_where_the_bytes_stay() -> None:
    data, box = save(smooth()), (1.23456, 2.0, 30.98765, 9.0)
    for look in (Look(), Look(max_side=60), Look(short_side=999), Look(format="jpeg")):
        assert prepare(data, look)[0] is data
        assert move_box(data, look, box) == box
