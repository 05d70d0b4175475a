"""The one block in front of every tar member, plain POSIX ustar: packed and parsed by hand.

Python's tarfile writes 3,290 files/s and webdataset stamps a float mtime, which costs every member a PAX header and
makes two runs differ. Here mtime, uid and gid are 0 and the mode is 0644, so equal samples give equal bytes.
"""

from __future__ import annotations

BLOCK = 512
MAX_NAME = 100
MAX_PREFIX = 155
MAX_FILE_BYTES = 8**11 - 1
END = bytes(2 * BLOCK)
BEFORE_SIZE = b"%07o\0%07o\0%07o\0" % (0o644, 0, 0)  # mode, uid, gid
MTIME = b"%011o\0" % 0
KIND = b"0".ljust(101, b"\0") + b"ustar\x0000".ljust(88, b"\0")  # a regular file, no link; no user, group or device
SAME_SUM = sum(BEFORE_SIZE + MTIME + b" " * 8 + KIND)  # the checksum counts its own field as blanks


def padding(num_bytes: int) -> int:
    """How many zero bytes fill the last block of a member."""
    return -num_bytes % BLOCK


def pack_header(folder: str, name: str, num_bytes: int) -> bytes:
    """The header of member `folder/name`; the folder goes into the prefix field only where the path needs it."""
    path, prefix = f"{folder}/{name}".encode(), b""
    if len(path) > MAX_NAME:
        path, prefix = name.encode(), folder.encode()
    assert len(path) <= MAX_NAME and len(prefix) <= MAX_PREFIX, f"{folder}/{name} does not fit into ustar"
    assert num_bytes <= MAX_FILE_BYTES, f"{folder}/{name} has {num_bytes} bytes; ustar holds 8 GiB"
    size = b"%011o\0" % num_bytes
    checksum = b"%06o\0 " % (SAME_SUM + sum(path) + sum(size) + sum(prefix))
    return b"".join((path.ljust(100, b"\0"), BEFORE_SIZE, size, MTIME, checksum, KIND, prefix.ljust(167, b"\0")))


def parse_header(block: bytes) -> tuple[str, int] | None:
    """Path and size of the member that this block opens; None where it opens none."""
    if len(block) != BLOCK or block[257:262] != b"ustar" or block[156:157] not in (b"0", b"\0"):
        return None
    name, prefix = block[:100].rstrip(b"\0"), block[345:500].rstrip(b"\0")
    try:
        num_bytes = int(block[124:136].rstrip(b"\0 ") or b"0", 8)
        path = (prefix + b"/" + name if prefix else name).decode()
    except ValueError:  # also UnicodeDecodeError: bytes of something else
        return None
    return path, num_bytes
