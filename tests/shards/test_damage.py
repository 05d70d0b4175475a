"""Which image files are refused and why: truncated, damaged, bombs, other formats, garbage."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.images.imaging import Look, prepare
from shards.record import Unreadable
from tests.shards.conftest import picture

STRUCTURE = Look(verify="structure")
BOTH = pytest.mark.parametrize("look", [Look(), STRUCTURE], ids=["pixels", "structure"])
REENCODED = Look(max_side=50)


def chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *, depth: int = 8, colours: int = 2) -> bytes:
    """A PNG that states a size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def scan_of(data: bytes) -> int:
    """Where a JPEG's compressed data begin."""
    return data.index(b"\xff\xda") + 14


@BOTH
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.55, 0.8, 0.97])
def test_a_truncated_image_is_found(kind: str, share: float, look: Look) -> None:
    data = picture(2, kind=kind, size=(300, 200))
    with pytest.raises(Unreadable):
        prepare(data[: int(len(data) * share)], look)


@BOTH
def test_a_jpeg_that_ends_in_zeros_or_with_its_thumbnail_is_found(look: Look) -> None:
    """What a copy leaves that reserved the space and was cut off; Pillow decodes it without a word."""
    thumbnail = picture(1, size=(16, 12))
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture(3, size=(300, 200)))).save(stream, "JPEG", exif=b"Exif\0\0II*\0" + thumbnail)
    data = stream.getvalue()
    half = len(data) // 2
    for cut in (data[:half], data[:half] + bytes(half)):
        with pytest.raises(Unreadable, match="truncated: the JPEG has no end"):
            prepare(cut, look)


@pytest.mark.parametrize("look", [Look(), REENCODED], ids=["pixels", "reencoded"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_cut_jpeg_that_was_given_an_end_is_found_by_its_pixels(
    mode: str, options: dict[str, bool], look: Look
) -> None:
    stream = io.BytesIO()
    Image.open(io.BytesIO(picture(3, kind="PNG", size=(300, 200)))).convert(mode).save(stream, "JPEG", **options)
    data = stream.getvalue()
    patched = data[: scan_of(data) + (len(data) - scan_of(data)) // 2] + b"\xff\xd9"
    assert prepare(data, look)
    assert prepare(patched, STRUCTURE)[0] == patched
    with pytest.raises(Unreadable, match=r"damaged|cannot be decoded"):
        prepare(patched, look)


def test_a_changed_byte_is_found_where_it_puts_the_decoder_out_of_step() -> None:
    """Where the rest still decodes, as most often, nobody can know; what is refused is truly another picture."""
    rng = random.Random(1)
    data = picture(4, size=(300, 200))
    shown = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
    num_found = 0
    for _ in range(200):
        changed = bytearray(data)
        at = rng.randrange(scan_of(data), len(data) - 2)
        changed[at] ^= 1 << rng.randrange(8)
        try:
            prepare(bytes(changed))
        except Unreadable:
            num_found += 1
            try:
                other = np.asarray(Image.open(io.BytesIO(changed)).convert("L")).astype(int)
            except OSError:
                continue
            assert np.abs(other - shown).max() > 0
    assert num_found >= 10


def test_a_changed_byte_in_a_png_is_always_found_even_by_its_structure() -> None:
    data = picture(4, kind="PNG")
    for at in range(8, len(data)):
        changed = bytearray(data)
        changed[at] ^= 4
        with pytest.raises(Unreadable):
            prepare(bytes(changed), STRUCTURE)


def test_a_jpeg_with_harmless_oddities_is_taken() -> None:
    data = picture(5, size=(300, 200))
    oddities = {
        "zeros before the end": data[:-2] + bytes(40) + b"\xff\xd9",
        "bytes after the end": data + b"further data, as phones append",
        "an unknown JFIF version": data.replace(b"JFIF\0\x01\x01", b"JFIF\0\x03\x01"),
        "fill bytes before a marker": data[:2] + b"\xff\xff" + data[2:],
    }
    for name, odd in oddities.items():
        for look in (Look(), STRUCTURE):
            assert prepare(odd, look)[0] == odd, name
        assert prepare(odd, REENCODED)[1] == "jpg", name
    with pytest.raises(Unreadable, match=r"damaged: .* extraneous bytes"):
        prepare(data[:-2] + b"\x35" * 40 + b"\xff\xd9")


@BOTH
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(50_000, 50_000), "50000 x 50000 pixels, more than 100 megapixels"),
        (png(2**31 - 1, 2**31 - 1), "more than 100 megapixels"),
        (b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + b"\0\0\0;", "65000 x 65000 pixels"),
        (b"BM" + struct.pack("<IIIIiiHHI", 54, 0, 54, 40, 30_000, -30_000, 1, 8, 1) + bytes(24), "30000 x 30000"),
        (png(0, 5), r"cannot be decoded \(0 x 5 pixels\)"),
    ],
)
def test_a_bomb_is_refused_by_its_header(data: bytes, reason: str, look: Look) -> None:
    with pytest.raises(Unreadable, match=reason):
        prepare(data, look)


def test_a_jpeg_and_a_webp_bomb_are_refused_by_their_headers() -> None:
    data = bytearray(picture(1))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60_000, 50_000)
    with pytest.raises(Unreadable, match="50000 x 60000 pixels"):
        prepare(bytes(data), STRUCTURE)
    webp = b"WEBPVP8X" + struct.pack("<IB", 10, 0) + bytes(3) + (15_999).to_bytes(3, "little") * 2
    with pytest.raises(Unreadable, match="16000 x 16000 pixels"):
        prepare(b"RIFF" + struct.pack("<I", len(webp)) + webp, STRUCTURE)


def test_the_limit_of_pixels_can_be_moved() -> None:
    data = picture(1, size=(100, 80))
    with pytest.raises(Unreadable, match=r"100 x 80 pixels, more than 0\.007999 megapixels"):
        prepare(data, Look(max_pixels=7_999))
    assert prepare(data, Look(max_pixels=8_000))[0] == data
    assert Image.MAX_IMAGE_PIXELS == 89_478_485, "Pillow's own limit is as before"


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    stream = io.BytesIO()
    Image.new("L", (64, 64)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data.rindex(b"\xff\xda")
    with pytest.raises(Unreadable, match="more than 100 scans"):
        prepare(data[:-2] + data[last:-2] * 1000 + data[-2:])


@BOTH
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image"),
        (b"\xff\xd8", "truncated"),
        (b"\xff\xd8\xff\xd9", "holds no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (picture(1, kind="PPM"), "PPM images are not taken; convert it to JPEG, PNG or WebP"),
        (picture(1, kind="JPEG2000"), "JPEG2000 images are not taken"),
        (picture(1, kind="ICO"), "ICO images are not taken"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC images are not taken"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL images are not taken"),
    ],
)
def test_what_is_no_image_of_ours_is_refused_with_the_reason(data: bytes, reason: str, look: Look) -> None:
    with pytest.raises(Unreadable, match=reason):
        prepare(data, look)


LOOKS = (Look(), STRUCTURE, REENCODED, Look(format="webp", crop=True, margin=0.2), Look(short_side=9, format="png"))


def fuzzed(seed: int) -> bytes:
    """An image file of any kind with some of its bytes changed, cut out, repeated or cut off."""
    rng = random.Random(seed)
    kind = rng.choice(["JPEG", "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
    mode = rng.choice(["RGB", "L", "CMYK"] if kind in ("JPEG", "TIFF") else ["RGB", "L"])
    stream = io.BytesIO()
    options = {"progressive": rng.random() < 0.5, "exif": b"Exif\0\0MM\0*" + bytes(20)} if kind == "JPEG" else {}
    Image.open(io.BytesIO(picture(seed, kind="PNG"))).convert(mode).save(stream, kind, **options)
    data = bytearray(stream.getvalue())
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 200))
        how = rng.randrange(5)
        if how <= 1:
            data[at] = rng.randrange(256)
        elif how == 2:
            data[at : at + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(9))
        elif how == 3:
            data[at:at] = data[at : at + rng.randrange(40)]
        elif len(data) > 9:
            del data[max(at, 8) :]
    if kind == "PNG" and rng.random() < 0.7:
        data = mend(data)
    return bytes(data)


def mend(data: bytearray) -> bytearray:
    """The PNG with right checksums, so that the damage reaches the decoder."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return data


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("block", range(8))
def test_whatever_the_bytes_are_an_image_comes_back_or_a_reason(block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        data = fuzzed(seed)
        for look in LOOKS:
            start = time.monotonic()
            try:
                made, extension = prepare(data, look, box=(3, 3, 30, 20))
            except Unreadable as error:
                assert str(error)
                assert " at 0x" not in str(error), "the same for every run"
                continue
            finally:
                assert time.monotonic() - start < 2, f"seed {seed}"
            assert made
            if not look.changes_nothing:
                assert extension in ("jpg", "png", "webp", "bmp", "tif", "gif")
                Image.open(io.BytesIO(made)).load()


def test_looking_at_the_structure_needs_no_imaging_library(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(picture(1))
    (tmp_path / "a.png").write_bytes(picture(1, kind="PNG"))
    program = (
        "import pathlib, sys; from shards.images.imaging import Look, prepare\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir(): prepare(path.read_bytes(), Look(verify='structure'))\n"
        "print(sorted({'PIL', 'cv2', 'simplejpeg'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
