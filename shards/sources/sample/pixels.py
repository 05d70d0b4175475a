"""Real pixels that installed packages bring along: photos, handwritten digits, fonts. Found by path, nothing imported.

scikit-learn: two photos and 1,797 scans of digits (UCI optdigits). scikit-image: its bundled photos, only those inside
the wheel. matplotlib: the DejaVu, STIX and Computer Modern fonts.
"""

from __future__ import annotations

import gzip
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards.errors import ShardError

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from PIL import ImageFont

PACKAGES = {"sklearn": "scikit-learn", "skimage": "scikit-image", "matplotlib": "matplotlib"}
INSTALL = " ".join(PACKAGES.values())
# name: (package, path inside it, scale) with a scale where the photo is larger than its detail
PHOTOS = {
    "china": ("sklearn", "datasets/images/china.jpg", 1.0),
    "flower": ("sklearn", "datasets/images/flower.jpg", 1.0),
    "brick": ("skimage", "data/brick.png", 1.0),
    "camera": ("skimage", "data/camera.png", 1.0),
    "cat": ("skimage", "data/chelsea.png", 1.0),
    "coffee": ("skimage", "data/coffee.png", 1.0),
    "coins": ("skimage", "data/coins.png", 1.0),
    "grass": ("skimage", "data/grass.png", 1.0),
    "gravel": ("skimage", "data/gravel.png", 1.0),
    "hubble": ("skimage", "data/hubble_deep_field.jpg", 1.0),
    "tissue": ("skimage", "data/ihc.png", 1.0),
    "moon": ("skimage", "data/moon.png", 1.0),
    "motorcycle": ("skimage", "data/motorcycle_left.png", 1.0),
    "retina": ("skimage", "data/retina.jpg", 0.6),
    "rocket": ("skimage", "data/rocket.jpg", 1.0),
}
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)


def bundled(package: str, path: str) -> Path:
    """A file inside an installed package; ShardError with the pip command where it is not there."""
    spec = importlib.util.find_spec(package)
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    if folder is None or not (folder / path).is_file():
        missing = f"{PACKAGES[package]} is not installed" if folder is None else f"{folder / path} is not there"
        raise ShardError(f"the sample set is made of other packages' pixels, and {missing}: pip install {INSTALL}")
    return folder / path


@cache
def load_photo(name: str) -> PILImage.Image:
    """A photo as RGB."""
    from PIL import Image

    package, path, scale = PHOTOS[name]
    photo = Image.open(bundled(package, path)).convert("RGB")
    size = (round(photo.width * scale), round(photo.height * scale))
    return photo if scale == 1.0 else photo.resize(size, Image.Resampling.LANCZOS)


@cache
def load_font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    """A font of matplotlib's, laid out by Pillow alone so that it looks the same everywhere."""
    from PIL import ImageFont

    path = bundled("matplotlib", f"mpl-data/fonts/ttf/{name}.ttf")
    return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)


@cache
def load_scans() -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits: (N, 8, 8) ink in 0…1, (N,) which digit."""
    with gzip.open(bundled("sklearn", "datasets/data/digits.csv.gz")) as file:
        table = np.loadtxt(file, delimiter=",")
    return table[:, :64].reshape(-1, 8, 8).astype(np.float32) / 16, table[:, 64].astype(int)
