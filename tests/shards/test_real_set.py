"""The real multi-domain set, where it is at hand: RETRIEVAL_DATA names a folder with dev.tar."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards.manifest import Manifest
from tests.shards.conftest import Run

TAR = Path(os.environ.get("RETRIEVAL_DATA", "/nowhere")) / "dev.tar"


@pytest.mark.skipif(not TAR.is_file(), reason="RETRIEVAL_DATA names no folder with dev.tar")
def test_the_real_set_is_made_from_its_tar_and_checks(run: Run, tmp_path: Path) -> None:
    ran = run("make", "table", TAR, "--out", tmp_path / "real")
    assert ran.code == 0, ran.err
    manifest = Manifest.load(tmp_path / "real")
    counts = {(shard.split, shard.role): shard.samples for shard in manifest.shards}
    assert counts == {
        ("train", "train"): 6836,
        ("dev", "query"): 421,
        ("dev", "index"): 1147,
        ("dev", "distractor"): 198,
    }
    assert len(manifest.domains) == 13
    assert len(manifest.classes) == 1445
    assert not (manifest.classes.counts("train") & manifest.classes.counts("dev")).any()
    assert (manifest.folder / "skipped.csv").exists() is False
    assert run("check", manifest.folder).code == 0
