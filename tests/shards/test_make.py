"""`shards make`: what ends in the folder, and what never does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shards.making.layout import Sizes
from shards.making.maker import Order, make_set
from shards.making.rules import Rules
from shards.manifest import Manifest
from shards.place import Inline
from shards.record import Record
from tests.shards.conftest import Run, files_of, picture, write_release


def test_the_same_input_gives_the_same_bytes_twice(run: Run, release: Path, tmp_path: Path) -> None:
    for place in ("one", "two"):
        assert run("make", "folder", release, "--out", tmp_path / place / "pets", "--shard-samples", 4).code == 0
    one, two = files_of(tmp_path / "one/pets"), files_of(tmp_path / "two/pets")
    assert len([name for name in one if name.endswith(".tar")]) > 4
    assert one == two


def test_the_order_in_which_a_source_lists_its_images_changes_nothing(tmp_path: Path) -> None:
    records = [Record("pets", f"class{i % 5}", f"{i}.jpg", Inline(picture(i))) for i in range(20)]
    for place, listed in (("one", records), ("two", records[::-1])):
        make_set(Order(out=tmp_path / place / "pets", config={"source": "test"}, given={}), listed)
    assert files_of(tmp_path / "one/pets") == files_of(tmp_path / "two/pets")


def test_another_seed_shuffles_otherwise_and_changes_no_split(run: Run, release: Path, tmp_path: Path) -> None:
    sources = []
    for seed in (0, 1):
        run("make", "folder", release, "--out", tmp_path / f"{seed}", "--domain", "pets", "--seed", seed)
        manifest = Manifest.load(tmp_path / f"{seed}")
        train = manifest.select("train")[0]
        sources.append([manifest.read(train, row).meta["source"] for row in range(train.samples)])
    assert sources[0] != sources[1]
    assert sorted(sources[0]) == sorted(sources[1])


def test_shards_hold_no_more_than_was_asked_for(pets: Manifest, run: Run, release: Path, tmp_path: Path) -> None:
    assert max(shard.samples for shard in pets.shards) == 4
    assert [shard.file for shard in pets.select("train")] == [
        f"train-{n:06d}.tar" for n in range(len(pets.select("train")))
    ]
    images = [picture(i, kind="BMP", size=(600, 400)) for i in range(4)]
    records = [Record("big", f"{i % 2}", f"{i}.bmp", Inline(image)) for i, image in enumerate(images)]
    sizes, rules = Sizes(shard_bytes=1_500_000), Rules(train_only=True)
    order = Order(out=tmp_path / "big", config={"source": "test"}, given={}, rules=rules, sizes=sizes)
    assert [shard.samples for shard in make_set(order, records).manifest.shards] == [2, 2]


def test_making_a_set_again_finds_that_it_is_there(run: Run, release: Path, tmp_path: Path) -> None:
    make = ("make", "folder", release, "--out", tmp_path / "pets")
    assert run(*make).code == 0
    before = (tmp_path / "pets/manifest.json").stat().st_mtime_ns
    again = run(*make)
    assert (again.code, "already there" in again.out) == (0, True)
    assert (tmp_path / "pets/manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("option", "seed was 0 and is 3"),
        ("image", "images changed after it was made"),
        ("more images", "made from other images or labels"),
        ("shard", "train-000000.tar: 7 bytes"),
    ],
)
def test_a_set_that_is_not_the_one_asked_for_is_left_alone(
    run: Run, release: Path, tmp_path: Path, change: str, message: str
) -> None:
    make = ["make", "folder", release, "--out", tmp_path / "pets"]
    assert run(*make).code == 0
    later = time.time() + 60
    if change == "option":
        make += ["--seed", 3]
    elif change == "image":
        os.utime(release / "cat/0.jpg", (later, later))
    elif change == "more images":
        (release / "cat/more.jpg").write_bytes(picture(999))
    else:
        (tmp_path / "pets/train-000000.tar").write_bytes(b"damaged")
    before = files_of(tmp_path / "pets")
    refused = run(*make)
    assert refused.code == 2
    assert message in refused.err
    assert "--force" in refused.err
    assert files_of(tmp_path / "pets") == before
    assert run(*make, "--force").code == 0
    assert run("check", tmp_path / "pets").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets", "release"]


def test_force_never_replaces_a_folder_that_is_no_set(run: Run, release: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("years of work")
    refused = run("make", "folder", release, "--out", tmp_path / "thesis", "--force")
    assert refused.code == 2
    assert f"{tmp_path / 'thesis'} exists and is not a shard set" in refused.err
    assert files_of(tmp_path / "thesis") == {"chapter1.tex": b"years of work"}


def test_unreadable_images_are_left_out_and_listed(run: Run, release: Path, tmp_path: Path) -> None:
    write_release(release / "many", {"a": 10, "b": 10})
    whole = (release / "cat/0.jpg").read_bytes()
    (release / "many/a/cut.jpg").write_bytes(whole[:-150])
    (release / "many/b/text.jpg").write_text("not an image at all")
    ran = run("make", "folder", release, "--out", tmp_path / "pets", "--max-skipped", "10%")
    assert ran.code == 0
    assert "2 images skipped" in ran.out
    skipped = (tmp_path / "pets/skipped.csv").read_text().splitlines()
    assert skipped[0] == "domain,label,source,reason"
    assert skipped[1].startswith("pets,many/a,many/a/cut.jpg,") and "truncated" in skipped[1]
    assert skipped[2] == "pets,many/b,many/b/text.jpg,not an image"
    assert Manifest.load(tmp_path / "pets").about["skipped"] == 2
    assert run("check", tmp_path / "pets").code == 0


def test_too_many_unreadable_images_fail_the_run_and_name_the_first(run: Run, release: Path, tmp_path: Path) -> None:
    (release / "cat/0.jpg").write_bytes(b"")
    (release / "dog/1.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    ran = run("make", "folder", release, "--out", tmp_path / "pets")
    assert ran.code == 2
    assert "2 of 19 images cannot be used, more than --max-skipped 0.01" in ran.err
    assert "pets/cat/0.jpg: the file is empty" in ran.err
    assert "pets/dog/1.jpg: " in ran.err
    assert not (tmp_path / "pets").exists()


def test_what_cannot_stand_without_an_unreadable_image_goes_too(run: Run, tmp_path: Path) -> None:
    """An evaluated class of two, one of them truncated, leaves a query that nothing can be found for."""
    release = write_release(tmp_path / "release", {f"class{n}": 2 for n in range(30)})
    make = ("make", "folder", release, "--domain", "d", "--max-skipped", "10%", "--shard-samples", 3)
    assert run(*make, "--out", tmp_path / "whole").code == 0
    whole = Manifest.load(tmp_path / "whole")
    index, train = (whole.read(whole.select(*place)[0], 0) for place in (("dev", "index"), ("train",)))
    for sample in (index, train):
        (release / sample.meta["source"]).write_bytes(sample.image[:200])

    assert run(*make, "--out", tmp_path / "pets").code == 0
    pets = Manifest.load(tmp_path / "pets")
    assert f"d/{index.meta['label']}" not in pets.classes.class_names()
    assert f"d/{train.meta['label']}" in pets.classes.class_names()
    skipped = (tmp_path / "pets/skipped.csv").read_text()
    assert skipped.count("no readable index image of its class is left") == 1
    assert sum(shard.samples for shard in pets.shards) == 57

    assert run(*make, "--out", tmp_path / "large", "--min-images", 2).code == 0
    large = Manifest.load(tmp_path / "large")
    assert f"d/{train.meta['label']}" not in large.classes.class_names()
    assert (large.about["skipped"], large.about["small"]) == (2, 2)
    for name in ("pets", "large"):
        assert run("check", tmp_path / name).code == 0
    assert places_of(pets).items() <= places_of(whole).items()


def places_of(manifest: Manifest) -> dict[str, tuple[str, str]]:
    """Split and role by key."""
    samples = [(shard, manifest.read(shard, row)) for shard in manifest.shards for row in range(shard.samples)]
    return {sample.key: (shard.split, shard.role) for shard, sample in samples}


def test_an_image_that_is_listed_twice_becomes_one_sample(run: Run, release: Path, tmp_path: Path) -> None:
    lines = ["image,label", *(f"{p.relative_to(release)},{p.parent.name}" for p in sorted(release.rglob("*.jpg")))]
    (release / "table.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    ran = run("make", "table", release / "table.csv", "--out", tmp_path / "pets", "--max-skipped", "10%")
    assert ran.code == 0, ran.err
    assert "listed more than once" in (tmp_path / "pets/skipped.csv").read_text()
    assert sum(shard.samples for shard in Manifest.load(tmp_path / "pets").shards) == 19


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(run: Run, release: Path, tmp_path: Path, workers: int) -> None:
    (release / "cat/6.jpg").write_bytes(b"broken")
    make = ("make", "folder", release, "--shard-samples", 3, "--max-skipped", "10%", "--short-side", 20)
    for count in (1, workers):
        assert run(*make, "--out", tmp_path / str(count) / "pets", "--workers", count).code == 0
    assert files_of(tmp_path / "1/pets") == files_of(tmp_path / str(workers) / "pets")


def test_a_list_of_keys_leaves_samples_out(run: Run, release: Path, tmp_path: Path) -> None:
    (tmp_path / "drop.csv").write_text("key,reason\npets/cat%2F0,blurred\npets/dog%2F1,twice\n")
    ran = run("make", "folder", release, "--out", tmp_path / "pets", "--drop", tmp_path / "drop.csv")
    assert ran.code == 0, ran.err
    keys = places_of(Manifest.load(tmp_path / "pets")).keys()
    assert len(keys) == 17
    assert not {"pets/cat%2F0", "pets/dog%2F1"} & keys


def test_a_file_says_the_same_as_options(run: Run, release: Path, tmp_path: Path) -> None:
    told = tmp_path / "pets.yaml"
    told.write_text(f"source: folder\nroot: {release}\nmin_images: 3\nshard_samples: 4\ntrain_only: true\n")
    assert run("make", told, "--out", tmp_path / "one/pets", "--seed", 5).code == 0
    options = ("--min-images", 3, "--shard-samples", 4, "--train-only", "--seed", 5)
    assert run("make", "folder", release, "--out", tmp_path / "two/pets", *options).code == 0
    assert files_of(tmp_path / "one/pets") == files_of(tmp_path / "two/pets")


def test_all_mistakes_of_a_file_are_named_at_once(run: Run, release: Path, tmp_path: Path) -> None:
    told = tmp_path / "pets.yaml"
    told.write_text(f"source: folder\nroot: {release}\nmin_imags: 3\nverify: never\nmax_skipped: 7\ncrop: maybe\n")
    ran = run("make", told, "--out", tmp_path / "pets")
    assert ran.code == 2
    for message in (
        "pets.yaml: 4 problems",
        "min_imags  unknown key; did you mean min_images?",
        "verify  'never' is not one of pixels, structure",
        "max_skipped  '7' is not a share",
        "crop  'maybe' is not true or false",
    ):
        assert message in ran.err


def test_rules_drop_cap_and_rename(run: Run, tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", {"a": 1, "b": 4, "c": 9, "d": 30, "e": 5})
    rules = ("--min-images", 2, "--max-images", 20, "--cap-images", 5, "--rename-domain", "pets=animals")
    ran = run("make", "folder", release, "--domain", "pets", "--out", tmp_path / "set", "--train-only", *rules)
    assert ran.code == 0, ran.err
    made = Manifest.load(tmp_path / "set")
    assert made.domains == ("animals",)
    assert dict(zip(made.classes.labels, made.classes.counts("train").tolist(), strict=True)) == {
        "b": 4,
        "c": 5,
        "e": 5,
    }
    wrong = run(
        "make", "folder", release, "--out", tmp_path / "no", "--train-only", "--rename-domain", "x=y", *rules[:2]
    )
    assert wrong.code == 2
    assert "--rename-domain x=…: no such domain; there are: no" in wrong.err


def test_images_with_several_labels(run: Run, tmp_path: Path) -> None:
    lines = ["image,labels"]
    for n in range(60):
        (tmp_path / f"{n}.jpg").write_bytes(picture(n))
        lines.append(f"{n}.jpg,tag{n % 3};tag{n % 5};all")
    (tmp_path / "tags.csv").write_text("\n".join(lines) + "\n")
    table = ("make", "table", tmp_path / "tags.csv", "--labels-column", "labels", "--label-separator", ";")
    ran = run(*table, "--out", tmp_path / "set", "--shard-samples", 20)
    assert ran.code == 0, ran.err
    made = Manifest.load(tmp_path / "set")
    assert made.is_multi_label
    names = made.classes.class_names()
    for shard in made.shards:
        assert (made.sidecar(shard)["label"] == -1).all()
        pairs = made.labels(shard)
        for row in range(shard.samples):
            stated = [names[label] for label in pairs["label"][pairs["row"] == row]]
            assert stated == [f"set/{label}" for label in made.read(shard, row).meta["labels"]]
    assert {shard.role for shard in made.shards} == {"train", "query", "index"}
    assert run("check", tmp_path / "set").code == 0
    refused = run(*table, "--out", tmp_path / "no", "--min-images", 2)
    assert "--min-images counts the images of a class, but here images have several labels" in refused.err


def test_a_list_that_knows_none_of_the_samples_is_refused(run: Run, release: Path, tmp_path: Path) -> None:
    """Keys start with the domain, so a list made of a set of another name would quietly leave nothing out."""
    (tmp_path / "drop.csv").write_text("key\nanimals/cat%2F0\n")
    ran = run("make", "folder", release, "--out", tmp_path / "pets", "--drop", tmp_path / "drop.csv")
    assert (ran.code, "--drop: none of its 1 keys is in the input, whose keys are like pets/" in ran.err) == (2, True)


def test_fewer_classes_are_split_as_all_are(run: Run, tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", {f"class{n}": 3 for n in range(120)})
    assert run("make", "folder", release, "--out", tmp_path / "set", "--num-classes", 60).code == 0
    classes = Manifest.load(tmp_path / "set").classes
    assert len(classes) == 60
    assert 4 <= (classes.counts("dev") > 0).sum() <= 22


def test_val_is_what_others_call_dev(run: Run, release: Path, tmp_path: Path) -> None:
    lines = ["image,label,split"]
    for path in sorted(release.rglob("*.jpg")):
        lines.append(f"{path.relative_to(release)},{path.parent.name},{'Val' if path.parent.name > 'fow' else 'train'}")
    (release / "table.csv").write_text("\n".join(lines))
    assert run("make", "table", release / "table.csv", "--out", tmp_path / "set").code == 0
    assert Manifest.load(tmp_path / "set").select("dev", "query")


def test_a_picture_in_a_format_that_is_not_taken_is_named_not_passed_over(
    run: Run, release: Path, tmp_path: Path
) -> None:
    for name in ("new.avif", "phone.heic"):
        (release / "cat" / name).write_bytes(b"\0\0\0\x20ftypavif" + bytes(64))
    (release / "cat/paint.jfif").write_bytes(picture(77))
    ran = run("make", "folder", release, "--out", tmp_path / "pets", "--max-skipped", "20%")
    assert ran.code == 0, ran.err
    skipped = (tmp_path / "pets/skipped.csv").read_text()
    assert "cat/new.avif" in skipped and "cat/phone.heic" in skipped
    assert "pets/cat%2Fpaint" in places_of(Manifest.load(tmp_path / "pets"))
