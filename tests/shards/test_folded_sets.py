"""One set with all folds of a k-fold, and its views: fold k is dev, the others are train."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.checking.problem import Part
from shards.classes import Classes
from shards.cli import main
from shards.manifest import Manifest, Shard, ShardError, content_digest
from shards.record import SPLITS
from tests.shards.conftest import Run, files_of, picture, place, write_release

K = 3
Content = dict[str, tuple[str, str]]
"""(split, role) by key."""


def write_table(root: Path) -> Path:
    """Classes of 2 to 8 images in 6 days that cut across them, and 4 images without a label."""
    release = write_release(root, {f"c{n:02}": 2 + n % 7 for n in range(17)})
    lines = ["image,label,group"]
    for number, path in enumerate(sorted(release.rglob("*.jpg"))):
        lines.append(f"{path.relative_to(release)},{path.parent.name},day{number % 6}")
    for number in range(4):
        (release / f"x{number}.jpg").write_bytes(picture(9000 + number))
        lines.append(f"x{number}.jpg,,day{number}")
    (release / "table.csv").write_text("\n".join(lines))
    return release / "table.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("release") / "pets")


def make(table: Path, out: Path, *words: object) -> Manifest:
    given_words = ["make", "table", table, "--out", out, "--domain", "pets", "--folds", K, "--shard-samples", 6, *words]
    assert main([*map(str, given_words), "--workers", "1"]) == 0
    return Manifest.load(out)


@pytest.fixture(scope="module", params=["class", "group"])
def folded(request: pytest.FixtureRequest, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """By class, and by group: then classes straddle."""
    out = tmp_path_factory.mktemp("sets") / f"by-{request.param}"
    return make(table, out, "--fold-units", request.param)


def content_of(manifest: Manifest) -> Content:
    return {
        manifest.read(shard, row).key: (shard.split, shard.role)
        for shard in manifest.shards
        for row in range(shard.samples)
    }


def count(manifest: Manifest) -> np.ndarray:
    """(3, C): images by split and class, from the sidecars."""
    found = np.zeros((3, len(manifest.classes)), np.int64)
    for shard in manifest.shards:
        labels = manifest.sidecar(shard)["label"]
        found[SPLITS.index(shard.split)] += np.bincount(labels[labels >= 0], minlength=len(manifest.classes))
    return found


def test_every_labelled_image_is_evaluated_once_and_trained_on_otherwise(folded: Manifest) -> None:
    views = [folded.with_fold(fold) for fold in range(K)]
    times: Counter[tuple[str, str]] = Counter()
    for view in views:
        content = content_of(view)
        times.update((key, split) for key, (split, role) in content.items() if role != "distractor")
        assert {key for key, (split, role) in content.items() if role == "distractor"} == {
            f"pets/x{number}" for number in range(4)
        }
        assert np.array_equal(view.classes.table, count(view)), "the table counts what the sidecars have"
        assert not len(view.classes.folds)
    keys = {key for key, _ in times}
    assert all(times[key, "dev"] == 1 and times[key, "train"] == K - 1 for key in keys)
    assert np.array_equal(folded.classes.table, count(folded))
    assert not folded.select("dev", "query"), "without a fold there is nothing to evaluate on"
    assert sum(shard.samples for shard in folded.select("train")) == len(keys)
    assert len({view.digest for view in (*views, folded)}) == K + 1
    is_by_class = folded.about["config"]["fold_units"] == "class"
    assert is_by_class == all((view.classes.table > 0).sum(0).max() == 1 for view in views), "no class straddles"


def test_a_view_is_the_set_that_is_made_for_its_fold(folded: Manifest, table: Path, tmp_path: Path) -> None:
    units = folded.about["config"]["fold_units"]
    for fold in range(K):
        alone = make(table, tmp_path / f"fold{fold}", "--fold-units", units, "--fold", fold)
        view = folded.with_fold(fold)
        assert content_of(view) == content_of(alone)
        assert view.classes.class_names() == alone.classes.class_names()
        assert np.array_equal(view.classes.table, alone.classes.table)


def test_images_with_several_labels_have_folds_by_group(run: Run, table: Path, tmp_path: Path) -> None:
    lines = ["image,labels,group"]
    for number, path in enumerate(sorted(table.parent.rglob("c*/*.jpg"))):
        lines.append(f"{path.relative_to(table.parent)},a{number % 3};b{number % 5},day{number % 6}")
    several = table.parent / "several.csv"
    several.write_text("\n".join(lines))
    words = ("--labels-column", "labels", "--label-separator", ";", "--fold-units", "group")
    one = make(several, tmp_path / "one", *words)
    assert one.is_multi_label and run("check", one.folder).code == 0
    for fold in range(K):
        assert content_of(one.with_fold(fold)) == content_of(
            make(several, tmp_path / str(fold), *words, "--fold", fold)
        )


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(2, 9), min_size=8, max_size=30), folds=st.integers(2, 4))
def test_any_classes_are_placed_as_in_the_sets_of_one_fold(sizes: list[int], folds: int) -> None:
    from shards.making.rules import Rules
    from shards.place import File
    from shards.record import Record

    records = [
        Record("d", f"class{n}", f"class{n}/{view}.jpg", File("nowhere"))
        for n, size in enumerate(sizes)
        for view in range(size)
    ]
    whole = {placed.key: placed.role for placed in place(records, Rules(folds=folds))}
    held_out = [p for fold in range(folds) for p in place(records, Rules(folds=folds, fold=fold)) if p.split == "dev"]
    assert len(held_out) == len(whole) == sum(sizes)
    assert whole == {placed.key: placed.role for placed in held_out}


# --- the set as files


def test_a_set_with_folds_is_sound_and_says_so(folded: Manifest, run: Run, tmp_path: Path) -> None:
    assert folded.num_folds == folded.about["folds"] == K
    assert all(shard.file.startswith(f"fold{shard.fold}-{shard.role}-") for shard in folded.select("train"))
    assert set(folded.about["totals"]) == {"dev", "fold0", "fold1", "fold2"}
    first = folded.select("train")[0]
    meta = folded.read(first, 0).meta
    assert (meta["split"], meta["role"], meta["fold"]) == ("train", first.role, first.fold)
    listed = json.loads((folded.folder / "wids.json").read_text())["shardlist"]
    assert [entry["url"] for entry in listed] == [shard.file for shard in folded.select("train")]
    assert run("check", folded.folder).code == 0
    shown = json.loads(run("show", folded.folder, "--json").out)
    assert shown["folds"] == K
    assert [entry["split"] for entry in shown["counts"]][-2:] == ["fold2", "fold2"]


def test_repair_makes_the_same_bytes_again(folded: Manifest, run: Run, tmp_path: Path) -> None:
    before = files_of(folded.folder)
    broken = Path(shutil.copytree(folded.folder, tmp_path / folded.folder.name))
    (broken / "fold1-index-000000.tar").unlink()
    (broken / "fold0-query-000000.tar.index.npy").write_bytes(b"")
    (broken / "classes.tsv").unlink()
    assert run("check", broken).code == 1
    assert run("check", broken, "--repair").code == 0
    assert files_of(broken) == before


def test_what_is_lost_without_the_source_is_taken_out_of_its_fold(run: Run, tmp_path: Path) -> None:
    table = write_table(tmp_path / "pets")
    manifest = make(table, tmp_path / "set")
    before = manifest.classes.folds
    shutil.rmtree(table.parent)
    shard = next(shard for shard in manifest.shards if shard.part == "fold1" and shard.role == "index")
    row, path = manifest.sidecar(shard)[0], manifest.folder / shard.file
    raw = bytearray(path.read_bytes())
    raw[int(row["image_at"]) : int(row["image_at"]) + 50] = bytes(50)
    path.write_bytes(raw)
    assert run("check", manifest.folder, "--repair").code == 1
    repaired = Manifest.load(manifest.folder)
    assert run("check", manifest.folder).code == 0
    assert repaired.num_folds == K and repaired.about["salvaged"]["lost"] == 1
    lost = before - repaired.classes.folds
    assert lost.sum() == 1 and lost[1, row["label"]] == 1
    assert np.array_equal(repaired.with_fold(1).classes.table, count(repaired.with_fold(1)))


def test_a_sample_of_another_fold_and_wrong_counts_are_found(folded: Manifest, run: Run, tmp_path: Path) -> None:
    from shards.checking.check import inspect_set

    broken = Path(shutil.copytree(folded.folder, tmp_path / "set"))
    about = json.loads((broken / "manifest.json").read_text())
    shard = next(shard for shard in about["shards"] if shard.get("fold") == 1)
    shard["fold"] = 0
    (broken / "manifest.json").write_text(json.dumps(about))
    findings = inspect_set(Manifest.load(broken))
    told = [str(problem) for problem in findings.named()]
    assert any("its json says fold 1" in text for text in told)
    assert any("images in fold0, the shards have" in text for text in told if "classes.tsv" in text), told
    assert {problem.part for problem in findings.named()} == {Part.SAMPLE, Part.LISTS}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": 3}, r"shards\[0\].fold 3 is not possible"),
        ({"fold": None}, r"shards\[0\].fold None is not possible"),
        ({"split": "dev"}, r"shards\[0\].(role|fold)"),
        ({"role": "distractor"}, r"shards\[0\].fold 0 is not possible"),
    ],
)
def test_impossible_folds_in_a_manifest_are_refused(
    folded: Manifest, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    about = json.loads((folded.folder / "manifest.json").read_text())
    about["shards"] = [shard | change for shard in about["shards"] if "fold" in shard]
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    with pytest.raises(ShardError, match=message):
        Manifest.load(tmp_path)


def test_stopped_it_goes_on_and_ends_with_the_same_bytes(
    folded: Manifest, table: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, words = tmp_path / folded.folder.name, ("--fold-units", folded.about["config"]["fold_units"])
    command = ("make", "table", table, "--out", out, "--domain", "pets", "--folds", K, "--shard-samples", 6, *words)

    @contextmanager
    def ctrl_c(_: str) -> Iterator[Callable[[int, int, int], None]]:
        def watch(total: int, images: int, num_bytes: int) -> None:
            if images > total / 2:
                raise KeyboardInterrupt

        yield watch

    with monkeypatch.context() as patched:
        patched.setattr("shards.progress.progress_bar", ctrl_c)
        assert run(*command, "--workers", 1).code != 0
    assert not out.exists()
    ran = run(*command, "--workers", 2)
    assert ran.code == 0 and "shards were finished by an earlier run" in ran.out
    assert files_of(out) == files_of(folded.folder)


def test_no_command_loses_the_folds(folded: Manifest, run: Run, tmp_path: Path) -> None:
    for words in (
        ("append", folded.folder),
        ("merge", folded.folder, "--out", tmp_path / "merged"),
        ("reshard", folded.folder, "--out", tmp_path / "resharded"),
    ):
        ran = run(*words)
        assert ran.code != 0
        assert "has folds" in ran.err and "make" in ran.err and ran.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_copy_in_two_folds_is_a_leak(run: Run, tmp_path: Path) -> None:
    """Whichever of the two is held out, the other is trained on."""
    release = write_release(tmp_path / "pets", {f"c{n}": 4 for n in range(6)})
    shutil.copy(release / "c0/0.jpg", release / "c1/copy.jpg")
    words = ("make", "folder", release, "--out", tmp_path / "set", "--folds", 6)
    assert run(*words).code == 0, "six classes, six folds"
    run("audit", tmp_path / "set")
    findings = (tmp_path / "set.audit/findings.csv").read_text()
    assert "leak" in findings and "two labels" in findings
    dropped = (tmp_path / "set.audit/drop.csv").read_text().splitlines()[1:]
    assert len(dropped) == 1, "one of the two is enough"


def test_too_many_folds_are_refused(run: Run, table: Path, tmp_path: Path) -> None:
    ran = run("make", "table", table, "--out", tmp_path / "set", "--folds", 20)
    assert ran.code != 0 and "--folds 20: fold" in ran.err and "take fewer folds" in ran.err


# --- sets without folds are what they were


def test_the_digest_of_a_set_without_folds_is_what_it_always_was() -> None:
    shards = [
        Shard("dev-query-000000.tar", "dev", "query", 1, 4096, "1" * 64),
        Shard("train-000000.tar", "train", "train", 3, 10240, "2" * 64),
    ]
    digest = content_digest(shards, ["d"], {"classes.tsv": "3" * 64, "groups.tsv": "4" * 64})
    assert digest == "8b39b22c1c62b0d15755501d00ebf1329301a40397c3c322a50972a5c839a00e"
    in_fold = [shards[0], replace(shards[1], fold=0, role="index")]
    assert content_digest(in_fold, ["d"], {"classes.tsv": "3" * 64, "groups.tsv": "4" * 64}) != digest
    classes = Classes.count([("d", "a", None, "train"), ("d", "b", "g", "dev")])
    assert classes.to_text() == "id\tdomain\tlabel\tgroup\ttrain\tdev\ttest\n0\td\ta\t\t1\t0\t0\n1\td\tb\tg\t0\t1\t0\n"


def test_a_fold_of_a_set_that_has_none_is_refused(run: Run, tmp_path: Path, folded: Manifest) -> None:
    release = write_release(tmp_path / "pets", {f"c{n}": 3 for n in range(5)})
    assert run("make", "folder", release, "--out", tmp_path / "plain").code == 0
    plain = Manifest.load(tmp_path / "plain")
    assert "folds" not in plain.about and all("fold" not in shard for shard in plain.about["shards"])
    with pytest.raises(ShardError, match=r"set 'plain' has no folds; make it again with `shards make ... --folds 5`"):
        plain.with_fold(0)
    with pytest.raises(ShardError, match=r"has no fold 3; give 0 to 2"):
        folded.with_fold(3)
