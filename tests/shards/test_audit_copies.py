"""The parts that find copies, each against a slow twin or an edit that anyone would call a copy."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.audit import confirm, phash, pixels, traits
from shards.audit.copies import EXACT, NEAR, Bundle, components, find_candidates, find_exact
from shards.audit.drops import Drops
from shards.audit.findings import pair_findings
from shards.audit.hamming import near_pairs
from shards.audit.images import IMAGE, Images
from shards.audit.meetings import arrange
from shards.audit.relations import KIND, RELATIONS
from shards.record import Unreadable
from tests.shards.test_audit import draw, encode


def related_hashes(seed: int, count: int) -> np.ndarray:
    """Hashes of which many differ in few bits, some in none, and some are almost all zero."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, np.uint64)
    hashes[count // 4 :] = hashes[rng.integers(0, count // 4 + 1, count - count // 4)]
    for _ in range(7):
        flipped = rng.integers(0, count, count // 2)
        hashes[flipped] ^= np.uint64(1) << rng.integers(0, 64, len(flipped)).astype(np.uint64)
    hashes[: count // 8] &= np.uint64(0x11)
    return hashes


@pytest.mark.parametrize("most_bits", [0, 1, 3, 4, 6, 8, 11, 16])
def test_near_pairs_are_those_of_the_loop_over_all_pairs(most_bits: int) -> None:
    for count in (0, 1, 2, 257):
        hashes = related_hashes(most_bits, count)
        listed = [
            (one, other, (int(hashes[one]) ^ int(hashes[other])).bit_count())
            for one, other in itertools.combinations(range(count), 2)
        ]
        pairs, bits = near_pairs(hashes, most_bits)
        found = [(*pair, bit) for pair, bit in zip(pairs.tolist(), bits.tolist(), strict=True)]
        assert found == [each for each in listed if each[2] <= most_bits]


def test_blocks_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = related_hashes(5, 300)
    whole = near_pairs(hashes, 8)
    monkeypatch.setattr("shards.audit.hamming.BLOCK", 50)
    assert all(np.array_equal(*two) for two in zip(whole, near_pairs(hashes, 8), strict=True))


def test_candidates_are_all_pairs_of_similar_hashes() -> None:
    hashes = related_hashes(9, 200)
    pairs, bits, num_left_out = find_candidates(hashes, 6)
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    expected = {(one, other) for one, other in np.argwhere(distances <= 6).tolist() if one < other}
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} == expected and len(pairs) == len(expected)
    assert np.array_equal(bits, distances[pairs[:, 0], pairs[:, 1]]) and num_left_out == 0


def test_candidates_of_a_crowd_stay_few_and_connect_all_of_it() -> None:
    hashes = np.array([7] * 5000 + [6] * 3000 + [2**63], np.uint64)
    pairs, bits, _ = find_candidates(hashes, 2)
    assert len(pairs) < 17 * 8000 + 16 * 16 + 1
    assert [len(group) for group in components(pairs[bits == 0])] == [5000, 3000]


def test_too_many_candidates_leave_out_the_least_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.audit.copies.MOST_CANDIDATES", 40)
    hashes = related_hashes(9, 200)
    pairs, bits, num_left_out = find_candidates(hashes, 6)
    monkeypatch.undo()
    _, every, _ = find_candidates(hashes, 6)
    assert num_left_out == len(every) - len(pairs) > 0
    assert sorted(bits)[-1] <= sorted(every)[len(pairs)]


EDITS = {
    "quality 50": lambda image: encode(image, quality=50),
    "quality 20": lambda image: encode(image, quality=20),
    "PNG": lambda image: encode(image, "PNG"),
    "WebP": lambda image: encode(image, "WEBP", quality=70),
    "half": lambda image: encode(image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)),
    "double": lambda image: encode(image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC)),
    "square": lambda image: encode(image.resize((150, 150), Image.Resampling.BICUBIC)),
    "cropped by 2%": lambda image: encode(image.crop((2, 2, image.width - 3, image.height - 2))),
    "darker": lambda image: encode(image.point(lambda level: level * 0.8)),
    "turned and told so": lambda image: encode(image.transpose(Image.Transpose.ROTATE_90), exif=orientation(6)),
}


def orientation(value: int) -> Any:
    """EXIF that says how to show the image."""
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_near(edit: str) -> None:
    for seed in range(8):
        image = draw(seed, (160, 120))
        files = [encode(image), EDITS[edit](image)]
        first, second = traits.read_traits(files)["phash"]
        assert (int(first) ^ int(second)).bit_count() <= 8
        assert confirm.are_alike(*map(confirm.read_picture, files))


def test_other_pictures_are_not_alike() -> None:
    pictures = [confirm.read_picture(encode(draw(seed, (160, 120)))) for seed in range(20)]
    assert not any(confirm.are_alike(*two) for two in itertools.combinations(pictures, 2))


def test_a_small_difference_in_one_place_is_seen_and_so_is_one_in_a_dull_picture() -> None:
    image = draw(0, (160, 120))
    changed = image.copy()
    changed.paste((255, 255, 255), (60, 50, 90, 80))
    dull, other = (each.point(lambda level: 120 + level // 16) for each in (image, changed))
    for two in ((image, changed), (dull, other)):
        assert not confirm.are_alike(*(confirm.read_picture(encode(each)) for each in two))
    assert confirm.are_alike(*(confirm.read_picture(encode(dull, quality=quality)) for quality in (95, 80)))


def test_the_hash_is_the_one_of_the_definition() -> None:
    grey = np.asarray(draw(3, (32, 32)).convert("L"), np.float64)
    place = np.arange(32)
    spectrum = np.array(
        [
            [
                (grey * np.outer(*(np.cos(np.pi * k * (2 * place + 1) / 64) for k in (row, column)))).sum()
                * (0.5**0.5 if row == 0 else 1)
                * (0.5**0.5 if column == 0 else 1)
                for column in range(12)
            ]
            for row in range(12)
        ]
    )
    lowest = sorted((row + column, row, column) for row in range(12) for column in range(12))[1:65]
    levels = np.array([spectrum[row, column] for _, row, column in lowest])
    bits = levels > 0.1 * np.abs(levels).mean()
    value = sum(1 << (16 * (at % 4) + at // 4) for at in range(64) if bits[at])
    assert int(phash.hash_pictures(grey[None])[0]) == value


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_shown_as_pillow_shows_it(value: int) -> None:
    from PIL import ImageOps

    data = encode(draw(1, (80, 64)), exif=orientation(value))
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L"), np.int64)
    ours = pixels.decode(data, least_px=0, is_grey=True)
    assert ours.shape == shown.shape and np.abs(ours - shown).max() <= 4  # of 255; a mirror image is 200 off


def test_modes_become_grey_levels_of_what_is_seen() -> None:
    seen = Image.new("RGBA", (70, 70), (0, 0, 0, 0))
    seen.paste((0, 0, 0, 255), (0, 0, 35, 70))
    deep = Image.fromarray((np.arange(4900).reshape(70, 70) * 13).astype(np.uint16))
    for image, kind, low, high in (
        (seen, "PNG", 0, 255),
        (deep, "PNG", 0, 255),
        (seen.convert("CMYK"), "JPEG", 0, 255),
    ):
        grey = pixels.decode(encode(image, kind), least_px=64, is_grey=True)
        assert grey.shape == (70, 70) and grey.min() <= low + 1 and (kind == "JPEG" or grey.max() >= high - 1)
    assert traits.read_traits([encode(seen, "PNG")])["flags"] == traits.HAS_ALPHA
    with pytest.raises(Unreadable, match="cannot identify"):
        pixels.decode(b"text", least_px=64, is_grey=True)


@pytest.mark.parametrize("quality", [30, 50, 75, 90, 95])
def test_the_quality_of_a_jpeg_is_read_from_its_tables(quality: int) -> None:
    files = [encode(draw(seed), quality=quality) for seed in (1, 2)]
    rows = traits.read_traits([*files, encode(draw(1), quality=quality, subsampling=0), encode(draw(1), "PNG")])
    assert rows["quality"].tolist() == [quality, quality, quality, 0]
    assert rows["encoder"][0] == rows["encoder"][1] != rows["encoder"][2]
    assert rows["width"].tolist() == [96] * 4 and [traits.FORMATS[at] for at in rows["format"]] == [
        *["JPEG"] * 3,
        "PNG",
    ]


def random_images(seed: int, count: int = 120) -> Images:
    """A table of two sets with many copies; no files behind it."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, IMAGE)
    rows["set"] = np.sort(rng.integers(0, 4, count) == 3)
    rows["split"] = rng.choice(3, count, p=(0.5, 0.3, 0.2))
    rows["role"] = np.where(rows["split"] == 0, 0, rng.integers(1, 4, count))
    rows["label"] = np.where(rows["role"] == 3, -1, rng.integers(0, 3, count))
    rows["content"][:, 0] = rng.integers(0, 25, count)
    rows["format"], rows["deviation"] = 1, 50
    return Images((), rows, ("a", "b", "c"), ("d",))


def choose(images: Images, bundles: list[Bundle]) -> list[int]:
    """The images to leave out; keys are positions, as there are no files."""
    drops = Drops(images, arrange(images, bundles), {at: f"{at:04}" for at in range(len(images))}, {})
    drops.choose()
    return sorted(drops.reasons)


def bundles_of(images: Images, seed: int) -> list[Bundle]:
    """The exact ones, and some near ones between them."""
    exact, different = find_exact(images)
    rng = np.random.default_rng(seed)
    groups = {int(bundle.left[0]): bundle.left for bundle in exact}
    two = {tuple(sorted(rng.choice(different, 2, replace=False).tolist())) for _ in range(8)}
    members = [[groups.get(at, np.array([at])) for at in pair] for pair in sorted(two)]
    near = [Bundle(NEAR, left, right, 3) for left, right in members]
    return [*exact, *near]


@pytest.mark.parametrize("seed", range(6))
def test_counts_by_relation_are_those_of_the_loop_over_all_pairs(seed: int) -> None:
    images = random_images(seed)
    bundles = bundles_of(images, seed)
    kinds = np.zeros(len(images), KIND)
    for name in KIND.names or ():
        kinds[name] = images.rows[name]
    expected: dict[tuple[str, str], int] = {}
    for bundle in bundles:
        pairs = (
            itertools.product(bundle.left, bundle.right)
            if len(bundle.right)
            else itertools.combinations(bundle.left, 2)
        )
        for one, other in pairs:
            for relation in RELATIONS:
                if relation.holds(kinds[one], kinds[other]) or relation.holds(kinds[other], kinds[one]):
                    key = bundle.kind, relation.name
                    expected[key] = expected.get(key, 0) + 1
    found = {(one.kind, one.title): one.count for one in pair_findings(arrange(images, bundles))}
    assert found == expected and len(found) > 8 and found[EXACT, "leak"]


@pytest.mark.parametrize("seed", range(6))
def test_after_the_drops_nothing_is_left_but_what_two_sets_share(seed: int) -> None:
    images = random_images(seed)
    bundles = bundles_of(images, seed)
    is_out = np.zeros(len(images), bool)
    is_out[choose(images, bundles)] = True
    assert not is_out[images.rows["set"] == 1].any(), "theirs is not ours to drop"
    rest = [Bundle(one.kind, one.left[~is_out[one.left]], one.right[~is_out[one.right]], one.bits) for one in bundles]
    rest = [
        new for new, old in zip(rest, bundles, strict=True) if len(new.left) and (len(new.right) or not len(old.right))
    ]
    assert {one.title for one in pair_findings(arrange(images, rest))} <= {"shared"}


def test_a_repeat_keeps_the_smallest_key() -> None:
    images = random_images(0)
    images.rows["set"], images.rows["split"], images.rows["role"] = 0, 0, 0
    images.rows["label"] = images.rows["content"][:, 0] % 3
    bundles, different = find_exact(images)
    assert choose(images, bundles) == sorted(set(range(len(images))) - set(different.tolist()))
