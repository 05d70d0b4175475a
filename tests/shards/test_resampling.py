"""Whether reduced images look as Pillow makes them, which is slower."""

from __future__ import annotations

import io

import numpy as np
import pytest
import skimage.data
from PIL import Image
from skimage.metrics import structural_similarity
from sklearn.datasets import load_sample_image

from shards.images.imaging import Look, prepare
from tests.shards.test_imaging import opened, save, show

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "china.jpg", "flower.jpg")


def photo(name: str) -> Image.Image:
    """A photo that comes with scikit-image or scikit-learn, as it is."""
    return Image.fromarray(load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)())


def similarity(data: bytes, short_side: int) -> float:
    """SSIM of what prepare makes with what Pillow makes by decoding all, resizing and encoding."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = short_side / min(image.size)
    size = round(image.width * scale), round(image.height * scale)
    theirs = save(image.resize(size, Image.Resampling.BICUBIC), quality=90)
    ours = prepare(data, Look(short_side=short_side))[0]
    return float(structural_similarity(show(theirs), show(ours), channel_axis=2, data_range=255))


@pytest.mark.parametrize("name", PHOTOS)
def test_photos_look_as_pillow_makes_them(name: str) -> None:
    data = save(photo(name), quality=93)
    assert similarity(data, 256) > 0.98
    assert similarity(data, 200) > 0.98
    assert similarity(data, min(photo(name).size) * 10 // 28) > 0.96  # decoded at 1/2
    assert similarity(save(photo(name), "PNG"), 256) > 0.999


def test_a_scaled_decode_of_a_large_photo_looks_as_pillow_makes_it() -> None:
    large = photo("flower.jpg").resize((3201, 2135), Image.Resampling.BICUBIC)
    for short_side in (1067, 600, 200):  # at 1, 1/2, 1/8
        assert similarity(save(large, quality=90), short_side) > 0.98


def test_a_reduced_crop_lies_where_the_box_lies() -> None:
    """The scaled decode knows only every 2nd, 4th, 8th pixel; what lies between shows as a shift."""
    image = photo("flower.jpg").resize((2001, 1335), Image.Resampling.BICUBIC)
    data = save(image, quality=95)
    for left, top in ((0, 0), (401, 203), (407, 206)):
        area = (left, top, left + 1203, top + 1001)
        look = Look(crop=True, max_side=100, format="png")
        expected = Image.open(io.BytesIO(data)).crop(area).resize((100, 83), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(opened(data, look, area)) - np.asarray(expected).astype(int)).mean() < 1.2
