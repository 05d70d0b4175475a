"""Which images are taken, which are refused, and what re-encoding does."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shards.imaging import prepare
from shards.record import Unreadable
from tests.shards.conftest import picture


@pytest.mark.parametrize(
    ("kind", "extension"),
    [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"), ("TIFF", "tif")],
)
def test_an_image_passes_through_with_the_extension_of_what_it_is(kind: str, extension: str) -> None:
    data = picture(1, kind=kind)
    assert prepare(data) == (data, extension)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.55, 0.8, 0.97])
def test_a_truncated_image_is_found(kind: str, share: float) -> None:
    data = picture(2, kind=kind, size=(300, 200))
    with pytest.raises(Unreadable):
        prepare(data[: int(len(data) * share)])


def test_a_jpeg_whose_end_is_zeros_is_found() -> None:
    """What a copy leaves that reserved the space and was cut off; Pillow decodes it without a word."""
    data = picture(3, size=(300, 200))
    half = len(data) // 2
    with pytest.raises(Unreadable, match="truncated"):
        prepare(data[:half] + bytes(len(data) - half))


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(Unreadable, match="12000 x 12000 pixels, more than 100 megapixels"):
        prepare(bomb)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "the file is empty"), (b"hello", "not an image"), (picture(1, kind="PPM"), "PPM images are not taken")],
)
def test_what_is_no_image_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        prepare(data)


def test_a_small_upright_jpeg_is_not_encoded_twice() -> None:
    data = picture(4)
    assert prepare(data, max_side=64) == (data, "jpg")


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("JPEG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "1")]
)
def test_a_large_image_becomes_a_smaller_rgb_jpeg(kind: str, mode: str) -> None:
    data, extension = prepare(picture(5, kind=kind, mode=mode, size=(400, 300)), max_side=100)
    image = Image.open(io.BytesIO(data))
    assert (extension, image.format, image.size, image.mode) == ("jpg", "JPEG", (100, 75), "RGB")


def test_exif_rotation_is_applied_and_transparency_becomes_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(stream, "JPEG", exif=exif)
    turned = Image.open(io.BytesIO(prepare(stream.getvalue(), max_side=100)[0]))
    assert turned.size == (40, 60)
    assert not turned.getexif()

    stream = io.BytesIO()
    Image.new("RGBA", (60, 40), (0, 0, 0, 0)).save(stream, "PNG")
    flat = np.asarray(Image.open(io.BytesIO(prepare(stream.getvalue(), max_side=100)[0])))
    assert flat.min() > 250


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, "PNG")
    shown = np.asarray(Image.open(io.BytesIO(prepare(stream.getvalue(), max_side=64)[0])))[..., 0].astype(float)
    assert np.abs(shown - ramp / 257).max() < 6
