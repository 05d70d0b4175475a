"""A sample's key: `<domain>/<stem>`, safe in a tar, in a URL and for webdataset, which cuts names at their first dot.

Everything but A-Z a-z 0-9 _ and - is percent-encoded, so the folder structure of the raw release survives in the stem
(`cat%2Fhouse%2F12`). A stem that would not fit into ustar, or that two files share (`a.jpg` and `a.png`), ends in a
hash of the whole path; the path itself stands in the sample's json.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import PurePosixPath

from shards.record import Record
from shards.ustar import MAX_NAME, MAX_PREFIX

MAX_STEM = MAX_NAME - len(".json.gz")  # the longest extension we leave room for
UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
CUT_ESCAPE = re.compile(r"%[0-9A-F]?$")


def encode(text: str) -> str:
    """Percent-encode every byte of the UTF-8 text outside A-Z a-z 0-9 _ -."""
    raw = text.encode("utf-8", "surrogateescape")  # file names need not be UTF-8
    return UNSAFE.sub(lambda byte: b"%%%02X" % byte.group()[0], raw).decode()


def key_hash(key: str) -> int:
    """First 8 bytes, little-endian, of blake2b(key): what the sidecar stores of a key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=64).digest()[:8], "little")


def hash_8(text: str) -> int:
    """8 bytes of blake2b: what all draws come from."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def draw(name: tuple[str, ...]) -> float:
    """A number in [0, 1) that depends on the name only."""
    return hash_8("\0".join(name)) / 2**64


def key_of(record: Record, *, is_shared: bool) -> str:
    """The key that the record's sample gets; `is_shared` where another record would get the same one."""
    if record.key and not is_shared:
        return f"{encode_domain(record.domain)}/{record.key.rpartition('/')[2]}"  # the domain may have a new name
    stem = encode(stem_of(record.source))
    if len(stem) > MAX_STEM or is_shared:
        stem = shorten(stem, record.source, MAX_STEM)
    return f"{encode_domain(record.domain)}/{stem}"


def stem_of(source: str) -> str:
    """The path without its extension, which is what pathlib takes for it: `.hidden` and `a.` have none."""
    ended = f"{source}/"
    if "//" in ended or "./" in ended:  # pathlib leaves out empty parts and dots
        path = PurePosixPath(source)
        return str(path.with_suffix("")) if path.suffix else source
    start, dot = source.rfind("/") + 1, source.rfind(".")
    return source[:dot] if start < dot < len(source) - 1 else source


@cache
def encode_domain(domain: str) -> str:
    """The folder that a domain's samples have inside the tars."""
    encoded = encode(domain)
    return encoded if len(encoded) <= MAX_PREFIX else shorten(encoded, domain, MAX_PREFIX)


def shorten(encoded: str, whole: str, limit: int) -> str:
    """The start of the encoded text and 16 hex digits of the whole; 8 would collide at a million cut stems."""
    digest = hashlib.blake2b(whole.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return CUT_ESCAPE.sub("", encoded[: limit - len(digest) - 1]) + "-" + digest
