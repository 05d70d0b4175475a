"""Bytes of local paths and of URLs alike. Local paths never touch fsspec, which takes 0.2 s to import."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from shards.errors import ShardError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from fsspec import AbstractFileSystem

T = TypeVar("T")
URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
IN_TEXT = re.compile(r"([a-z][a-z0-9+.-]*://)((?:(?!::[a-z][a-z0-9+.-]*://)[^\s'\"])*)", re.IGNORECASE)
"""A URL in a text; of a chain (zip://a.png::https://host/b.zip) each link."""
SECRET = re.compile(
    r"key|token|auth|secret|(?<![a-z])sig(?![a-z])|signature|credential|password|expires", re.IGNORECASE
)
"""In the name of a parameter: its value is nobody else's business."""
WEB = ("http", "https")
TRIES, FIRST_PAUSE_S = 4, 0.5
CONNECT_S, SILENCE_S = 30, 60  # how long a web server may take
GONE = (404, 410)
WORTH_ANOTHER_TRY = (408, 425, 429)  # of the HTTP errors below 500
PIECE_BYTES = 2**20  # of what is read in place
MAX_BYTES = 2**31  # of a file that is read whole
MAX_PART = 255  # bytes of a name, in all common file systems


def is_url(path: str | Path) -> bool:
    """Whether fsspec has to open it."""
    return URL.match(str(path)) is not None


def shown(text: object) -> str:
    """For messages: URLs in the text lose user, password, query and fragment, any of which may be a secret."""
    return IN_TEXT.sub(lambda url: url[1] + re.split(r"[?#]", without_user(url[2]))[0], str(text))


def without_user(url: str) -> str:
    """`host/path` from `user:password@host/path`, also where the password holds an unescaped @ / ? or #."""
    authority = re.split(r"[/?#]", url)[0]
    _, at, host = authority.rpartition("@")
    if not at and re.search(r":[^:\d\]]", authority):  # not a port, so the password goes on behind the /
        return url.rpartition("@")[2]
    return host + url[len(authority) :]


def without_secrets(query: str) -> str:
    """The query without the parameters that are secret by their name."""
    return "&".join(part for part in query.split("&") if not SECRET.search(unquote(part.partition("=")[0])))


def place_path(text: str) -> Path | str:
    """Type of an option that takes a path or a URL; a Path would fold the `//` of a URL."""
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} holds a NUL, which no path can")
    if is_url(text):
        return text
    too_long = [part for part in text.split("/") if len(os.fsencode(part)) > MAX_PART]
    if too_long:
        raise argparse.ArgumentTypeError(f"a name of more than {MAX_PART} bytes, {too_long[0][:40]}…: no file has one")
    return Path(text)


def path_of(place: str | Path) -> PurePosixPath:
    """The path part of a URL, whose name and suffix a query must not hide; a local path as it is."""
    return PurePosixPath(urlsplit(str(place)).path if is_url(place) else place)


def below(url: str, path: str) -> str:
    """The URL of a file below the one given, which keeps its query."""
    parts = urlsplit(url)
    path = quote(path, errors="surrogateescape") if parts.scheme.lower() in WEB else path
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}"))


def parent(place: str | Path) -> str | Path:
    """The folder that a file or URL lies in."""
    if isinstance(place, Path):
        return place.parent
    parts = urlsplit(place)
    return urlunsplit(parts._replace(path=parts.path.rpartition("/")[0]))


def read_bytes(path: str, *, at: int = 0, num_bytes: int | None = None) -> bytes:
    """The file's bytes from `at` on, all or exactly `num_bytes`; OSError where there are fewer.

    A URL is tried 4 times with growing pauses, unless the error says that no try can help.
    """
    if is_url(path):
        return with_retries(lambda: read_remote(path, at, num_bytes))
    try:
        with open(path, "rb", buffering=0) as file:
            wanted = os.fstat(file.fileno()).st_size if num_bytes is None else num_bytes
            if wanted > MAX_BYTES:
                raise OSError(f"{wanted:.1e} bytes, larger than an image can be")
            if at:
                file.seek(at)
            data = file.read() if num_bytes is None else file.read(num_bytes)
    except ValueError as error:  # a NUL in the name
        raise OSError(str(error)) from error
    if num_bytes is not None and len(data) != num_bytes:
        raise OSError(f"{path} ends at byte {at + len(data)}, {num_bytes} bytes from {at} on were expected")
    return data


def read_remote(url: str, at: int, num_bytes: int | None) -> bytes:
    """One try."""
    system, path = open_system(url)
    end = None if num_bytes is None else at + num_bytes
    data: bytes = system.cat_file(path, start=at or None, end=end)
    if num_bytes is not None and len(data) != num_bytes:
        hint = "; it serves whole files only" if len(data) > num_bytes else ""
        raise OSError(f"{shown(url)} gave {len(data)} bytes from {at} on, {num_bytes} were expected{hint}")
    return data


def with_retries(read: Callable[[], T]) -> T:
    """What `read` gives, after up to 4 tries; OSError with the reason and no secrets."""
    for attempt in range(TRIES):
        try:
            return read()
        except ShardError:
            raise
        except Exception as error:  # every protocol has errors of its own
            cause = cause_of(error)
            if attempt + 1 == TRIES or is_final(cause):
                raise readable(cause) from error
        time.sleep(FIRST_PAUSE_S * 2**attempt)
    raise AssertionError("the last try returns or raises")


def cause_of(error: Exception) -> Exception:
    """What went wrong: when fsspec looks for a web page it calls every trouble `not found`."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def is_final(error: Exception) -> bool:
    """Whether the same request would fail again: no such file, not allowed, or an HTTP error that blames the request."""
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return True
    status = getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in WORTH_ANOTHER_TRY


def readable(error: Exception) -> OSError:
    """An OSError that says what went wrong in words."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in GONE:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if isinstance(status, int):
        return OSError(f"HTTP {status} {getattr(error, 'message', '')}".strip())
    return OSError(shown(error) if type(error) is OSError else shown(f"{type(error).__name__}: {error}"))


def open_system(url: str) -> tuple[AbstractFileSystem, str]:
    """(file system, path in it) of a URL; ShardError that names the missing package."""
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    try:
        system, path = url_to_fs(url, **web_options(url))
    except ImportError as error:
        known = known_implementations.get(url.partition("://")[0].lower(), {})
        package = known.get("class", "fsspec").partition(".")[0]
        needs = error if package == "fsspec" else f"needs {package}: pip install {package}"
        raise ShardError(f"{shown(url)}: {needs}") from error
    except ValueError as error:
        raise ShardError(f"{shown(url)}: {error}") from error
    return system, path


def web_options(url: str) -> dict[str, Any]:
    """For http: give up on a silent server, not on a large file."""
    if not url.lower().startswith(WEB):
        return {}
    import aiohttp

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(None, sock_connect=CONNECT_S, sock_read=SILENCE_S)}}


@contextmanager
def open_binary(path: str | Path, *, in_place: bool = False) -> Iterator[BinaryIO]:
    """A file or URL opened for reading, seekable; OSError where it cannot be.

    A URL is copied to a temporary file first, since no server keeps a connection open for the hours that a make may
    take. `in_place` fetches ranges instead: for what is large and read in parts.
    """
    if not is_url(path):
        with open(path, "rb") as file:
            yield file
    elif in_place:
        with open_part(str(path), 0, size_of(str(path))) as file:
            yield file
    else:
        system, inside = open_system(str(path))
        with tempfile.NamedTemporaryFile() as copy:
            with_retries(lambda: system.get_file(inside, copy.name))
            with open(copy.name, "rb") as file:
                yield file


class Part(io.RawIOBase):
    """A part of a file or URL as a file, read piece by piece, each with retries."""

    def __init__(self, path: str, at: int, num_bytes: int) -> None:
        self._path, self._first, self._size, self._at = path, at, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(min(len(view), self._size - self._at), 0)
        if wanted:
            view[:wanted] = read_bytes(self._path, at=self._first + self._at, num_bytes=wanted)
        self._at += wanted
        return wanted


def open_part(path: str, at: int, num_bytes: int) -> io.BufferedReader:
    """These bytes of a file or URL as a file of their own."""
    return io.BufferedReader(Part(path, at, num_bytes), PIECE_BYTES)


def size_of(url: str) -> int:
    """What the server says; OSError where it does not."""
    system, path = open_system(url)
    size: int | None = with_retries(lambda: system.info(path)).get("size")
    if size is None:
        raise OSError("the server does not say how large the file is")
    return size
