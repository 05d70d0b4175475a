"""A sample's key: `<domain>/<stem>`, safe in a tar, in a URL and for webdataset, which cuts names at their first dot.

Everything but A-Z a-z 0-9 _ and - is percent-encoded, so the folder structure of the raw release survives in the stem
(`cat%2Fhouse%2F12`). A stem that would not fit into ustar, or that two files share (`a.jpg` and `a.png`), ends in a
hash of the whole path; the path itself stands in the sample's json.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
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


def name_samples(records: Sequence[Record]) -> list[str]:
    """One unique key a record, in the records' order; the same whatever that order is."""
    stems = [encode(stem_of(record.source)) for record in records]
    shared = Counter(zip((record.domain for record in records), stems, strict=True))
    keys = []
    for record, stem in zip(records, stems, strict=True):
        if len(stem) > MAX_STEM or shared[record.domain, stem] > 1:
            stem = shorten(stem, record.source, MAX_STEM)
        keys.append(f"{encode_domain(record.domain)}/{stem}")
    return keys


def stem_of(source: str) -> str:
    """The path without its extension."""
    path = PurePosixPath(source)
    return str(path.with_suffix("")) if path.suffix else source


def encode_domain(domain: str) -> str:
    """The folder that a domain's samples have inside the tars."""
    encoded = encode(domain)
    return encoded if len(encoded) <= MAX_PREFIX else shorten(encoded, domain, MAX_PREFIX)


def shorten(encoded: str, whole: str, limit: int) -> str:
    """The start of the encoded text and 16 hex digits of the whole; 8 would collide at a million cut stems."""
    digest = hashlib.blake2b(whole.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return CUT_ESCAPE.sub("", encoded[: limit - len(digest) - 1]) + "-" + digest
