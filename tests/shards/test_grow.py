"""Sets that grow, join and change their shards: merge, append, reshard."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

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
