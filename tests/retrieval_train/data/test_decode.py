"""Decoding: the fast way gives what Pillow gives, and everything else goes Pillow's way."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from retrieval_train.data import decode as module
from retrieval_train.data.decode import decode
from retrieval_train.data.view import View
from tests.retrieval_train.data.pictures import as_tensor, encode, mean_difference, photo


def by_pillow(image: bytes) -> torch.Tensor:
    return as_tensor(ImageOps.exif_transpose(Image.open(io.BytesIO(image))))


def is_fast(image: bytes) -> bool:
    return module._decode_jpeg(image, 0) is not None


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"subsampling": "4:4:4", "quality": 95}),
        ("RGB", {"progressive": True}),
        ("L", {}),
        ("RGB", {"icc_profile": b"\0" * 200, "comment": b"x" * 70}),
    ],
    ids=["usual", "444", "progressive", "grey", "profile"],
)
@pytest.mark.parametrize("size", [(320, 240), (33, 57), (1, 1), (8, 5)])
def test_a_jpeg_is_decoded_to_the_pixels_that_pillow_gives(
    mode: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    image = encode(photo(*size).convert(mode), **options)
    assert is_fast(image)
    assert torch.equal(decode(image, key="k"), by_pillow(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("min_side", [0, 100])
def test_exif_orientations_are_those_of_pillow(orientation: int, min_side: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = encode(photo(301, 200), exif=exif)
    assert is_fast(image)
    expected = by_pillow(image)
    found = decode(image, key="k", min_side=min_side)
    if min_side:
        assert sorted(found.shape[1:]) == [100, 151]
        expected = View().apply(expected, 64)
        assert mean_difference(View().apply(found, 64), expected) < 5 < mean_difference(expected.flip(2), expected)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("order", [b"II", b"MM"])
def test_exif_of_either_byte_order_is_read(order: bytes) -> None:
    little = order == b"II"
    number = lambda value, size: value.to_bytes(size, "little" if little else "big")  # noqa: E731
    entry = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(6, 2) + b"\0\0"
    exif = b"Exif\0\0" + order + number(42, 2) + number(8, 4) + number(1, 2) + entry + b"\0\0\0\0"
    jpeg = encode(photo(40, 20))
    image = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    assert is_fast(image) and decode(image, key="k").shape == (3, 40, 20)
    assert torch.equal(decode(image, key="k"), by_pillow(image))


def test_an_orientation_that_only_xmp_tells_is_honoured() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    image = encode(photo(40, 20), xmp=xmp)
    assert not is_fast(image)
    assert decode(image, key="k").shape == (3, 40, 20)


@pytest.mark.parametrize("size", [(640, 480), (479, 641), (1024, 97), (17, 16)])
@pytest.mark.parametrize("min_side", [0, 1, 13, 97, 120, 121, 240, 241, 479, 480, 481, 5000])
def test_the_decoded_size_is_the_smallest_that_suffices(size: tuple[int, int], min_side: int) -> None:
    shorter = min(decode(encode(photo(*size)), key="k", min_side=min_side).shape[1:])
    whole = min(size)
    sizes = [-(-whole // factor) for factor in (8, 4, 2)]
    assert shorter == next((side for side in sizes if 0 < min_side <= side), whole)


def test_a_function_that_asks_for_pixels_is_given_the_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    asked = []

    def half(height: int, width: int) -> int:
        asked.append((height, width))
        return 24

    image = decode(encode(photo(64, 48), exif=exif), key="k", min_side=half)
    assert asked == [(64, 48)]
    assert image.shape == (3, 32, 24)


@pytest.mark.parametrize(("sharpness", "levels"), [(1.0, 6.0), (1.3, 3.0), (2.0, 1.5)])
def test_a_scaled_decode_is_close_to_a_full_one(sharpness: float, levels: float) -> None:
    image = encode(photo(512, 512), quality=92)
    for px in (60, 96, 127):
        whole = View().apply(decode(image, key="k"), px)
        scaled = View().apply(decode(image, key="k", min_side=int(sharpness * px)), px)
        assert 0 < mean_difference(whole, scaled) < levels


def test_pixels_lie_together_in_memory() -> None:
    image_CHW = decode(encode(photo()), key="k")
    assert image_CHW.permute(1, 2, 0).is_contiguous()
    assert image_CHW.dtype == torch.uint8


def test_what_is_transparent_is_white_and_16_bits_are_scaled() -> None:
    clear = photo(20, 10).convert("RGBA")
    clear.putalpha(0)
    for form in ("PNG", "WEBP"):
        assert (decode(encode(clear, form), key="k") == 255).all()
    palette = photo(20, 10).quantize(16)
    palette.info["transparency"] = 0
    found = decode(encode(palette, "PNG", transparency=0), key="k")
    assert (found[:, torch.from_numpy(np.array(palette)) == 0] == 255).all()
    deep = Image.fromarray(np.linspace(0, 60000, 200, dtype=np.uint16).reshape(10, 20))
    found = decode(encode(deep, "PNG"), key="k")
    assert (int(found.min()), int(found.max())) == (0, 255)


def test_cmyk_goes_the_way_of_pillow() -> None:
    image = encode(photo(40, 20).convert("CMYK"))
    assert not is_fast(image)
    assert torch.equal(decode(image, key="k", min_side=5), by_pillow(image))


def test_what_is_no_whole_image_is_named() -> None:
    jpeg = encode(photo(64, 48))
    for broken in (b"", b"\xff", b"\xff\xd8\xff", b"hello" * 100, jpeg[:1500], jpeg[2:], b"\xff\xd8" + b"\xff" * 5000):
        with pytest.raises(ValueError, match=r"'set/a b' does not decode"):
            decode(broken, key="set/a b")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_any_beginning_of_a_file_and_any_changed_byte_decodes_or_is_named() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    jpeg = encode(photo(24, 16), exif=exif, quality=30)
    rng = np.random.default_rng(0)
    for at in rng.choice(len(jpeg), 200):
        for broken in (jpeg[:at], jpeg[:at] + bytes([rng.integers(256)]) + jpeg[at + 1 :]):
            try:
                assert decode(broken, key="here").dtype == torch.uint8
            except ValueError as error:
                assert "'here'" in str(error)


def test_bytes_after_the_end_are_no_damage() -> None:
    jpeg = encode(photo(64, 48))
    assert torch.equal(decode(jpeg + b"\0" * 100, key="k"), decode(jpeg, key="k"))


def test_the_fast_way_imports_no_pillow() -> None:
    code = (
        "import sys; from retrieval_train.data.decode import decode; decode(sys.stdin.buffer.read(), key='k');"
        "print('PIL' in sys.modules, 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=encode(photo()), capture_output=True, check=True)
    assert done.stdout.split() == [b"False", b"False"]
