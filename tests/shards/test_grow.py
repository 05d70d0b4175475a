"""Sets that grow, join and change their shards: merge, append, reshard."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from shards.checking.origin import find_parts
from shards.making import append
from shards.manifest import Manifest, Sample
from tests.shards.conftest import Run, files_of, picture, write_release


def samples_of(manifest: Manifest) -> dict[str, Sample]:
    """Every sample by its key."""
    samples = [manifest.read(shard, row) for shard in manifest.shards for row in range(shard.samples)]
    assert len({sample.key for sample in samples}) == len(samples)
    return {sample.key: sample for sample in samples}


def check_ids(manifest: Manifest) -> None:
    """The ids in the sidecars name what the jsons say."""
    for shard in manifest.shards:
        for at, row in enumerate(manifest.sidecar(shard)):
            meta = manifest.read(shard, at).meta
            assert manifest.domains[row["domain"]] == meta["domain"]
            assert manifest.classes.ids[meta["domain"], meta["label"]] == row["label"]
            assert manifest.groups[row["group"]] == ((meta["domain"], meta["group"]) if meta["group"] else ("", ""))


@pytest.fixture
def birds(run: Run, tmp_path: Path) -> Manifest:
    """A second set, with groups, and with a class that sorts before all classes of the first."""
    release = write_release(tmp_path / "birds_release", {"auk": 5, "cat": 3, "tit": 4, "wren": 6})
    lines = ["image,label,group,domain"]
    for path in sorted(release.rglob("*.jpg")):
        lines.append(f"{path.relative_to(release)},{path.parent.name},{path.parent.name[0]},birds")
    (release / "table.csv").write_text("\n".join(lines))
    assert run("make", "table", release / "table.csv", "--out", tmp_path / "birds", "--shard-samples", 5).code == 0
    return Manifest.load(tmp_path / "birds")


def test_a_merged_set_has_every_sample_and_no_new_bytes(
    run: Run, pets: Manifest, birds: Manifest, tmp_path: Path
) -> None:
    ran = run("merge", pets.folder, birds.folder, "--out", tmp_path / "all")
    assert ran.code == 0, ran.err
    merged = Manifest.load(tmp_path / "all")
    assert samples_of(merged) == samples_of(pets) | samples_of(birds)
    assert merged.domains == ("birds", "pets")
    assert len(merged.classes) == 9  # birds/cat and pets/cat are two
    check_ids(merged)
    assert run("check", merged.folder).code == 0
    inodes = {os.stat(m.folder / shard.file).st_ino for m in (pets, birds) for shard in m.shards}
    assert {os.stat(merged.folder / shard.file).st_ino for shard in merged.shards} == inodes
    assert "already there" not in ran.out
    again = run("merge", pets.folder, birds.folder, "--out", tmp_path / "all")
    assert again.code == 0
    assert Manifest.load(tmp_path / "all").digest == merged.digest


def test_sets_that_share_a_sample_are_not_merged(run: Run, pets: Manifest, tmp_path: Path) -> None:
    shutil.copytree(pets.folder, tmp_path / "copy")
    ran = run("merge", pets.folder, tmp_path / "copy", "--out", tmp_path / "all")
    assert ran.code == 2
    assert "19 samples are in two of the sets by their keys (pets/" in ran.err
    assert not (tmp_path / "all").exists()


def test_append_adds_what_is_new_in_the_folder_and_moves_nothing(run: Run, release: Path, tmp_path: Path) -> None:
    out = tmp_path / "pets"
    assert run("make", "folder", release, "--out", out, "--shard-samples", 4).code == 0
    before = Manifest.load(out)
    old = samples_of(before)
    splits = dict(zip(before.classes.labels, (before.classes.table > 0).argmax(0).tolist(), strict=True))
    for label in ("cat", "owl", "fox"):
        (release / label / "new.jpg").write_bytes(picture(hash(label) % 1000 + 5000))
    for n in range(6):
        (release / "ant").mkdir(exist_ok=True)
        (release / "ant" / f"{n}.jpg").write_bytes(picture(7000 + n))
    ran = run("append", out)
    assert ran.code == 0, ran.err
    assert "9 new images" in ran.out
    after = Manifest.load(out)
    new = samples_of(after)
    assert old.items() <= new.items()
    assert len(new) == len(old) + 9
    check_ids(after)
    assert run("check", out).code == 0
    for label in ("cat", "owl", "fox"):
        added = new[f"pets/{label}%2Fnew"].meta
        assert added["split"] == ("train", "dev", "test")[splits[label]]
        assert added["role"] == ("train" if added["split"] == "train" else "index")
    assert {shard.sha256 for shard in before.shards} <= {shard.sha256 for shard in after.shards}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets", "release"]

    assert "0 new images" in run("append", out).out
    made = run("make", "folder", release, "--out", out, "--shard-samples", 4)
    assert (made.code, "already there" in made.out) == (0, True), made.err


def test_append_takes_the_look_of_the_set_for_another_source(run: Run, release: Path, tmp_path: Path) -> None:
    out = tmp_path / "pets"
    assert run("make", "folder", release, "--out", out, "--max-side", 20, "--domain", "pets").code == 0
    more = write_release(tmp_path / "more", {"yak": 4, "zebu": 5})
    ran = run("append", out, "folder", more, "--domain", "cattle", "--train-only")
    assert ran.code == 0, ran.err
    grown = Manifest.load(out)
    assert grown.domains == ("cattle", "pets")
    assert grown.about["appended"][0]["config"]["max_side"] == 20
    assert run("check", out).code == 0
    check_ids(grown)


def test_append_knows_an_image_that_a_new_neighbour_gave_another_key(run: Run, release: Path, tmp_path: Path) -> None:
    out = tmp_path / "pets"
    assert run("make", "folder", release, "--out", out).code == 0
    (release / "cat/0.png").write_bytes(picture(9000, kind="PNG"))
    ran = run("append", out)
    assert "1 new images" in ran.out, ran.err
    sources = [sample.meta["source"] for sample in samples_of(Manifest.load(out)).values()]
    assert sorted(sources).count("cat/0.jpg") == 1
    assert "cat/0.png" in sources


def test_a_set_made_anew_has_the_same_samples_in_other_shards(run: Run, pets: Manifest, tmp_path: Path) -> None:
    ran = run("reshard", pets.folder, "--out", tmp_path / "large", "--seed", 9)
    assert ran.code == 0, ran.err
    large = Manifest.load(tmp_path / "large")
    assert samples_of(large) == samples_of(pets)
    assert len(large.shards) < len(pets.shards)
    check_ids(large)
    assert run("check", large.folder).code == 0

    back = run("reshard", large.folder, "--out", tmp_path / "again/pets", "--shard-samples", 4)
    assert back.code == 0, back.err
    tars = {name: data for name, data in files_of(tmp_path / "again/pets").items() if name.endswith((".tar", ".npy"))}
    assert tars == {name: data for name, data in files_of(pets.folder).items() if name.endswith((".tar", ".npy"))}


def test_a_set_made_anew_can_drop_samples_and_shrink_images(run: Run, pets: Manifest, tmp_path: Path) -> None:
    keys = sorted(samples_of(pets))
    trained = [key for key in keys if samples_of(pets)[key].meta["split"] == "train"]
    (tmp_path / "drop.csv").write_text("key\n" + trained[0] + "\n")
    ran = run("reshard", pets.folder, "--out", tmp_path / "s", "--drop", tmp_path / "drop.csv", "--max-side", 10)
    assert ran.code == 0, ran.err
    small = samples_of(Manifest.load(tmp_path / "s"))
    assert sorted(small) == [key for key in keys if key != trained[0]]
    assert run("check", tmp_path / "s").code == 0


def count_samples(folder: Path) -> int:
    """Of a set."""
    return sum(shard.samples for shard in Manifest.load(folder).shards)


def splits_of(folder: Path) -> dict[str, str]:
    """Split by label."""
    return {sample.meta["label"]: sample.meta["split"] for sample in samples_of(Manifest.load(folder)).values()}


def test_classes_keep_their_fold(run: Run, tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", {f"c{n:02}": 3 for n in range(12)})
    out = tmp_path / "set"
    assert run("make", "folder", release, "--out", out, "--folds", 3, "--fold", 0).code == 0
    before = splits_of(out)
    write_release(tmp_path / "release", {f"d{n:02}": 4 + n for n in range(6)})
    for n in range(12):
        for view in range(n):
            (release / f"c{n:02}" / f"new{view}.jpg").write_bytes(picture(3000 + 100 * n + view))
    ran = run("append", out)
    assert ran.code == 0, ran.err
    after = splits_of(out)
    assert before.items() <= after.items()
    assert {after[f"d{n:02}"] for n in range(6)} == {"train", "dev"}
    assert run("check", out).code == 0


def test_caps_and_numbers_of_classes_count_what_is_there(run: Run, tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", {f"c{n}": 6 for n in range(8)})
    out = tmp_path / "set"
    assert run("make", "folder", release, "--out", out, "--cap-images", 3, "--num-classes", 5).code == 0
    assert count_samples(out) == 15
    ran = run("append", out)
    assert (ran.code, "0 new images" in ran.out) == (0, True), ran.err
    write_release(tmp_path / "release", {f"d{n}": 6 for n in range(3)})
    assert "0 new images" in run("append", out, "--max-skipped", "5%", "--workers", 1).out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release", "set"]


def test_a_renamed_set_knows_its_images(run: Run, release: Path, pets: Manifest, tmp_path: Path) -> None:
    renamed = pets.folder.rename(tmp_path / "animals")
    assert "0 new images" in run("append", renamed).out
    (release / "cat/new.jpg").write_bytes(picture(4000))
    assert "1 new images" in run("append", renamed).out
    assert Manifest.load(renamed).domains == ("pets",)
    assert "0 new images" in run("append", renamed).out


def test_another_folder_with_the_same_options_is_another_source(
    run: Run, release: Path, pets: Manifest, tmp_path: Path
) -> None:
    more = write_release(tmp_path / "more", {"yak": 4, "zebu": 5})
    assert run("append", pets.folder, "folder", more).code == 0
    grown = Manifest.load(pets.folder)
    assert grown.about["fingerprint"] == pets.about["fingerprint"]
    assert grown.about["appended"][0]["given"] == {"root": str(more)}
    assert "base" not in grown.about["appended"][0]["config"]
    assert grown.about["appended"][0]["config"] == pets.about["config"]
    assert len(list(find_parts(grown))) == 2


@pytest.mark.parametrize("moment", ["before", "after"])
def test_an_append_that_was_stopped_goes_on(
    run: Run, release: Path, pets: Manifest, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    (release / "cat/new.jpg").write_bytes(picture(4000))

    def stop(*words: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(append, "merge_sets" if moment == "before" else "discard", stop)
        ran = run("append", pets.folder)
    assert (ran.code, "repeat the command to go on" in ran.err) == (130, True)
    assert pets.folder.with_name("pets.new").is_dir()
    assert f"{int(moment == 'before')} new images" in run("append", pets.folder).out
    assert count_samples(pets.folder) == 20
    assert sorted(path.name for path in pets.folder.parent.iterdir()) == ["pets", "release"]


def test_what_an_append_left_is_not_taken_for_a_set_that_changed_since(
    run: Run, release: Path, pets: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (release / "cat/new.jpg").write_bytes(picture(4000))

    def stop(*words: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(append, "merge_sets", stop)
        assert run("append", pets.folder).code == 130
    assert run("make", "folder", release, "--out", pets.folder, "--force", "--seed", 3).code == 0
    ran = run("append", pets.folder)
    assert (ran.code, "0 new images" in ran.out) == (0, True), ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets", "release"]


def test_queries_find_what_the_set_has(run: Run, tmp_path: Path) -> None:
    lines = [f"{label}/{n}.jpg,{label},{'train' if label < 'c' else 'dev'}" for label in "abcd" for n in range(4)]
    release = write_release(tmp_path / "release", dict.fromkeys("abcd", 8))
    (release / "t.csv").write_text("\n".join(["image,label,split", *lines]))
    out = tmp_path / "set"
    assert run("make", "table", release / "t.csv", "--out", out).code == 0
    (release / "a/5.jpg").write_bytes(b"no image")
    (release / "t.csv").write_text("image,label,split\nc/4.jpg,c,dev_query\nd/4.jpg,d,dev_query\na/5.jpg,a,train\n")
    ran = run("append", out, "table", release / "t.csv", "--max-skipped", "50%")
    assert "2 new images" in ran.out, ran.err
    grown = Manifest.load(out)
    assert grown.about["skipped"] == 1
    assert "a/5.jpg" in (out / "skipped.csv").read_text()
    (release / "new").mkdir()
    (release / "new/4.jpg").write_bytes(picture(9))
    (release / "t.csv").write_text("image,label,split\nnew/4.jpg,new,dev_query\n")
    ran = run("append", out, "table", release / "t.csv")
    assert (ran.code, "1 queries have no index image of their class (set/new/4.jpg)" in ran.err) == (2, True)


def test_another_image_of_the_same_stem_is_new(run: Run, release: Path, pets: Manifest, tmp_path: Path) -> None:
    more = tmp_path / "more"
    (more / "cat").mkdir(parents=True)
    (more / "cat/0.png").write_bytes(picture(9000, kind="PNG"))
    ran = run("append", pets.folder, "folder", more)
    assert "1 new images" in ran.out, ran.err
    sources = {sample.meta["source"] for sample in samples_of(Manifest.load(pets.folder)).values()}
    assert {"cat/0.png", "cat/0.jpg"} <= sources
    assert "0 new images" in run("append", pets.folder, "folder", more).out


def test_append_takes_links_and_the_folder_it_is_in(
    run: Run, release: Path, pets: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(pets.folder)
    (release / "cat/new.jpg").write_bytes(picture(4000))
    assert "1 new images" in run("append", tmp_path / "link").out
    assert (tmp_path / "link").is_symlink()
    assert count_samples(pets.folder) == 20
    monkeypatch.chdir(pets.folder)
    assert "0 new images" in run("append", ".").out
    ran = run("append", "--workers", 2, pets.folder)
    assert (ran.code, "the set comes first: shards append DIR" in ran.err) == (2, True)


@pytest.mark.parametrize("name", ["config", "fingerprint", "given", "skipped"])
def test_a_damaged_manifest_is_no_crash(run: Run, pets: Manifest, birds: Manifest, tmp_path: Path, name: str) -> None:
    path = pets.folder / "manifest.json"
    about = json.loads(path.read_text())
    about.pop(name)
    path.write_text(json.dumps(about | ({"skipped": "x"} if name == "skipped" else {})))
    for words in (["append", pets.folder], ["merge", birds.folder, pets.folder, "--out", tmp_path / "all"]):
        ran = run(*words)
        assert (ran.code, f"damaged: no usable {name};" in ran.err) == (2, True), ran.err


def test_a_merge_keeps_the_lists_of_what_was_skipped(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        release = write_release(tmp_path / f"{name}_release", dict.fromkeys("abcde", 4))
        (release / "a/broken.jpg").write_bytes(b"no image")
        assert run("make", "folder", release, "--out", tmp_path / name, "--max-skipped", "10%").code == 0
    assert run("merge", tmp_path / "one", tmp_path / "two", "--out", tmp_path / "both").code == 0
    lines = (tmp_path / "both/skipped.csv").read_text().splitlines()
    assert [line.rpartition(",")[0] for line in lines[1:]] == ["one,a,a/broken.jpg", "two,a,a/broken.jpg"]
    assert Manifest.load(tmp_path / "both").about["skipped"] == 2
    assert run("append", tmp_path / "one", "--max-skipped", "10%").code == 0
    assert Manifest.load(tmp_path / "one").about["skipped"] == 1


def test_a_merge_does_not_clear_the_beginning_of_another_set(
    run: Run, pets: Manifest, birds: Manifest, tmp_path: Path
) -> None:
    partial = tmp_path / "all.partial"
    partial.mkdir()
    (partial / "plan.json").write_text("{}")
    words = ("merge", pets.folder, birds.folder, "--out", tmp_path / "all")
    ran = run(*words)
    assert (ran.code, "all.partial holds the beginning of another set" in ran.err) == (2, True)
    assert (partial / "plan.json").exists()
    assert run(*words, "--force").code == 0


def test_what_starts_with_a_dash_in_a_file_is_no_option(run: Run, tmp_path: Path) -> None:
    (tmp_path / "order.yaml").write_text("source: folder\nroot: -x\n")
    ran = run("make", tmp_path / "order.yaml", "--out", tmp_path / "set")
    assert (ran.code, "root  '-x' would be taken for an option; write ./-x" in ran.err) == (2, True)
