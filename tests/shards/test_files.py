"""Bytes of files and URLs, tries that fail, what messages may say, and tars read in place."""

from __future__ import annotations

import io
import os
import random
import tarfile
import tracemalloc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from shards import files
from shards.errors import ShardError
from shards.files import below, open_binary, open_part, parent, place_path, read_bytes, shown
from shards.inputs.listing import is_image, list_folders, walk_files
from shards.inputs.members import Member, open_plain, walk_members
from shards.inputs.store import TarStore, open_store
from tests.shards.conftest import Run
from tests.shards.sourcing import Server, serve

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files in folders, some with names that a URL has to escape."""
    for name in (
        "cat/1.jpg",
        "cat/2.jpg",
        "dog/a #1?%41.jpg",
        "dog/notes.txt",
        "top.jpg",
        ".hidden/1.jpg",
        "cat/.x.jpg",
    ):
        (tmp_path / "served" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "served" / name).write_bytes(CONTENT)
    return tmp_path / "served"


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A web server of that folder; nobody waits long for another try."""
    monkeypatch.setattr(files, "FIRST_PAUSE_S", 0.001)
    with serve(folder) as server:
        yield server


def test_a_part_is_the_same_from_a_file_and_from_two_kinds_of_url(folder: Path, server: Server) -> None:
    path = folder / "cat/1.jpg"
    for place in (str(path), f"file://{path}", f"{server.url}/cat/1.jpg"):
        assert read_bytes(place) == CONTENT
        assert read_bytes(place, at=300, num_bytes=77) == CONTENT[300:377]
        with pytest.raises(OSError, match=r"77 bytes|77 were expected"):
            read_bytes(place, at=len(CONTENT) - 5, num_bytes=77)
        with pytest.raises(FileNotFoundError):
            read_bytes(place.replace("1.jpg", "9.jpg"))


def test_a_server_that_fails_for_a_while_is_asked_again(server: Server) -> None:
    server.failures["/cat/1.jpg"] = 2
    assert read_bytes(f"{server.url}/cat/1.jpg") == CONTENT
    assert server.asked["/cat/1.jpg"] == 3


def test_a_server_that_keeps_failing_is_named_with_its_answer(server: Server) -> None:
    server.failures["/cat/1.jpg"] = 99
    with pytest.raises(OSError, match="HTTP 503"):
        read_bytes(f"{server.url}/cat/1.jpg?signature=secret")
    assert server.asked["/cat/1.jpg"] == files.TRIES


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_not_tried_again(server: Server, status: int) -> None:
    server.status = status
    server.failures["/cat/1.jpg"] = 99
    with pytest.raises(OSError, match=r"HTTP 4\d\d|No such file"):
        read_bytes(f"{server.url}/cat/1.jpg")
    assert server.asked["/cat/1.jpg"] == 1


def test_a_server_that_fails_while_it_is_asked_for_the_size_is_not_said_to_have_no_such_file(server: Server) -> None:
    url = f"{server.url}/cat/1.jpg"
    server.failures["/cat/1.jpg"] = 3  # the size is asked for twice a try
    with open_binary(url, in_place=True) as file:
        assert file.read(9) == CONTENT[:9]
    server.failures["/cat/1.jpg"] = 99
    with pytest.raises(OSError, match="HTTP 503"), open_binary(url, in_place=True):
        pass
    with pytest.raises(FileNotFoundError), open_binary(f"{server.url}/none.jpg", in_place=True):
        pass


def test_a_server_that_is_not_there_is_an_unreadable_file(server: Server) -> None:
    with pytest.raises(OSError, match="Connect"):
        read_bytes("http://127.0.0.1:9/1.jpg?signature=secret")


def test_a_server_without_ranges_is_said_to_be_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FIRST_PAUSE_S", 0.001)
    with serve(folder, has_ranges=False) as server:
        url = f"{server.url}/cat/1.jpg"
        assert read_bytes(url) == CONTENT
        with pytest.raises(OSError, match="gave 10240 bytes from 0 on, 10 were expected; it serves whole files only"):
            read_bytes(url, at=0, num_bytes=10)
        with open_binary(url) as file:
            assert file.read() == CONTENT


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/key?X-Amz-Signature=secret", r"^s3://bucket/key: needs s3fs: pip install s3fs$"),
        ("gs://bucket/key", r"^gs://bucket/key: needs gcsfs: pip install gcsfs$"),
        ("nothing://bucket/key", r"^nothing://bucket/key: Protocol not known: nothing$"),
    ],
)
def test_what_a_url_needs_is_named(url: str, message: str) -> None:
    if find_spec("s3fs" if url.startswith("s3") else "gcsfs"):
        pytest.skip("the package is there")
    with pytest.raises(ShardError, match=message):
        read_bytes(url)


def test_messages_keep_no_secrets() -> None:
    assert shown("https://me:pw@host/a.jpg?sig=1") == "https://host/a.jpg"
    assert shown("403, message='no', url='https://h/a?X-Amz-Signature=1'") == "403, message='no', url='https://h/a'"
    assert shown(Path("odd?name@home/a.csv")) == "odd?name@home/a.csv"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://u:p@ss@h/x", "https://h/x"),
        ("https://u:a/b@h/x", "https://h/x"),
        ("https://u:a?b#c@h/x", "https://h/x"),
        ("https://h/x#token=abc", "https://h/x"),
        ("https://h/x#a?b=1", "https://h/x"),
        ("https://h:8080/cat@2x.jpg", "https://h:8080/cat@2x.jpg"),
        ("http://u@[::1]:80/x@y", "http://[::1]:80/x@y"),
        ("s3://bucket/cat@2x.jpg", "s3://bucket/cat@2x.jpg"),
        ("zip://a.png::https://u:p@h/b.zip?sig=1", "zip://a.png::https://h/b.zip"),
    ],
)
def test_no_spelling_of_a_url_brings_its_secrets_into_a_message(url: str, said: str) -> None:
    assert shown(f"at '{url}' and {url} too") == f"at '{said}' and {said} too"


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(21 * 10**9)
    with pytest.raises(OSError, match=r"2\.1e\+10 bytes, larger than an image can be"):
        read_bytes(str(path))
    with pytest.raises(OSError, match=r"5\.0e\+09 bytes, larger than an image can be"):
        read_bytes(str(path), at=7, num_bytes=5 * 10**9)
    assert read_bytes(str(path), at=2 * 10**10, num_bytes=3) == bytes(3)


@pytest.mark.parametrize(("name", "reason"), [("a\0b", "holds a NUL"), (f"x/{'é' * 150}/y", "more than 255 bytes, éé")])
def test_a_path_that_no_file_can_have_is_refused_by_the_command_line(run: Run, name: str, reason: str) -> None:
    ran = run("make", "folder", "release", "--out", name)
    assert ran.code == 2
    assert "argument --out: " in ran.err
    assert reason in ran.err


def test_urls_stay_urls_and_paths_paths() -> None:
    assert place_path("s3://bucket//a") == "s3://bucket//a"
    assert place_path("photos//a") == Path("photos/a")
    assert below("https://h/photos/?sas=1", "a #1?.jpg") == "https://h/photos/a%20%231%3F.jpg?sas=1"
    assert below("s3://bucket/photos", "a b.jpg") == "s3://bucket/photos/a b.jpg"
    assert parent("https://h/x/t.csv?sas=1") == "https://h/x?sas=1"


def test_a_url_in_place_is_a_file_like_any_other(folder: Path, server: Server) -> None:
    for place in (folder / "cat/1.jpg", f"{server.url}/cat/1.jpg"):
        with open_binary(place, in_place=True) as file:
            assert file.seek(0, os.SEEK_END) == len(CONTENT)
            for at, count in ((9000, 3000), (0, 10), (250, 0), (20000, 5)):
                file.seek(at)
                assert file.read(count) == CONTENT[at : at + count]
    with open_part(str(folder / "cat/1.jpg"), 100, 50) as part:
        assert part.read() == CONTENT[100:150]


def test_folders_are_listed_alike_here_and_behind_urls(folder: Path, server: Server) -> None:
    wanted = ["cat/1.jpg", "cat/2.jpg", "dog/a #1?%41.jpg", "top.jpg"]
    for root in (folder, f"file://{folder}", server.url, f"{server.url}/"):
        entries = list(walk_files(root, is_image))
        assert sorted(entry.path for entry in entries) == wanted
        assert {read_bytes(entry.place) for entry in entries} == {CONTENT}
        assert list_folders(root) == ["cat", "dog"]
    by_path = {entry.path: entry for entry in walk_files(folder, is_image)}
    for entry in walk_files(f"file://{folder}", is_image):
        assert (entry.num_bytes, entry.changed_at) == by_path[entry.path][2:]
    with pytest.raises(ShardError, match=r"/none: no such folder$"):
        list(walk_files(f"{server.url}/none?sig=1", is_image))
    server.failures["/dog/"] = 99
    with pytest.raises(ShardError, match=r":\d+: cannot be listed \(HTTP 503"):
        list(walk_files(server.url, is_image))


def test_walking_holds_the_names_of_one_folder_only(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"c{number}").mkdir()
        for view in range(200):
            (tmp_path / f"c{number}/{view:050d}.jpg").touch()
    tracemalloc.start()
    try:
        assert sum(1 for _ in walk_files(tmp_path, is_image)) == 6000
        assert tracemalloc.get_traced_memory()[1] < 120_000  # all names alone would be 600 kB
    finally:
        tracemalloc.stop()


FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_found_where_tarfile_finds_them(tmp_path: Path, form: str) -> None:
    draw = random.Random(7)
    names = [f"{'folder/' * draw.randrange(12)}{number}.jpg" for number in range(60)]
    names += [] if form == "ustar" else ["x" * 130 + ".jpg", "deep/" * 60 + "blåbær.png"]
    with tarfile.open(tmp_path / "t.tar", "w", format=FORMATS[form]) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = draw.choice([0, 1, 511, 512, 513, 3000])
            info.mtime = 1.5 if form == "pax" else 1
            tar.addfile(info, io.BytesIO(draw.randbytes(info.size)))
            folder = tarfile.TarInfo(f"dir{len(name)}")
            folder.type, folder.size = tarfile.DIRTYPE, 0
            tar.addfile(folder)
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    with tarfile.open(tmp_path / "t.tar") as tar:
        expected = [Member(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    with open_plain(tmp_path / "t.tar") as file:
        assert list(walk_members(file, "t.tar")) == expected
    assert [member.name for member in expected] == names


def test_a_size_in_a_pax_header_wins_and_binary_sizes_are_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.pax_headers = 3, {"size": "3"}
        tar.addfile(info, io.BytesIO(b"abc"))
    data = bytearray((tmp_path / "t.tar").read_bytes())
    block = data[1024:1536]
    block[124:136] = b"\x80" + bytes(10) + b"\x07"  # 7, as GNU writes large numbers
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with_pax = bytes(data[:1024] + block + data[1536:])
    assert list(walk_members(io.BytesIO(with_pax), "t.tar")) == [Member("a.jpg", 1536, 3)]
    assert list(walk_members(io.BytesIO(with_pax[1024:]), "t.tar")) == [Member("a.jpg", 512, 7)]


def make_tar(*sizes: int) -> bytes:
    """A tar with files of these sizes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size, info.mtime = size, 1.5
            tar.addfile(info, io.BytesIO(bytes(size)))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.tar: not a readable tar .it is empty"),
        (b"not a tar", "t.tar: not a readable tar .no header at byte 0"),
        (make_tar(700, 9000)[:8000], "t.tar: ends in the middle of '1.jpg'"),
        (make_tar(700, 9000)[:4000], "t.tar: ends in the middle of a header; copy"),
        (make_tar(700)[:1024] + b"\1" * 5000, "t.tar: not a readable tar .no header at byte 1024"),
        (make_tar(700).replace(b"13 mtime", b"xx mtime"), "damaged PAX header"),
        (b"\x1f\x8b" + bytes(600), "t.tar: compressed; unpack it"),
    ],
)
def test_a_damaged_tar_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.tar").write_bytes(content)
    with pytest.raises(ShardError, match=message), open_plain(tmp_path / "t.tar") as file:
        list(walk_members(file, "t.tar"))


def test_no_damage_makes_the_walk_crash_or_hang(tmp_path: Path) -> None:
    whole, draw = make_tar(100, 2000, 0, 513), random.Random(3)
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(len(whole) // 2)] = draw.choice((0, 48, 55, 128, 255, draw.randrange(256)))
        try:
            found = list(walk_members(io.BytesIO(damaged), "t.tar"))
        except ShardError:
            continue
        assert all(0 <= member.at <= member.at + member.num_bytes <= len(whole) for member in found)


def test_a_tar_behind_a_url_is_read_in_place(tmp_path: Path, server: Server, folder: Path) -> None:
    (folder / "t.tar").write_bytes(make_tar(100, 2000, 40))
    here, there = TarStore(folder / "t.tar"), open_store(f"{server.url}/t.tar?signature=secret")
    assert isinstance(there, TarStore)
    assert there.members == here.members
    found = there.find("1.jpg")
    assert (found.num_bytes, found.place.read()) == (2000, bytes(2000))
    assert there.place.endswith("?signature=secret")
