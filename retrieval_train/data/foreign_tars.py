"""Tars without a sidecar, streamed from front to back by webdataset: samples out of tars, without end.

Every worker of every rank has a stream of its own: the tars are shuffled anew for each pass, and each stream takes its
share of them, or of their samples where there are fewer tars than streams.

webdataset splits a tar into members and groups them to samples. Only images, .cls and .json are read, and nothing of a
sample is ever run or unpickled.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from retrieval_train.data.foreign import ClassList, ForeignConfig, is_local, is_pipe
from shards.files import Part, shown, size_of
from shards.manifest import ShardError

log = logging.getLogger(__name__)

IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2"))
MOST_EMPTY = 64  # tars one after the other that give no sample at all
PIECE_BYTES = 2**23  # of a URL in one request
DRAIN_BYTES = 2**20


@dataclass(frozen=True)
class Found:
    """A sample as it lies in a tar."""

    tar: str
    place: int
    """Number in the tar, -1 for the tar itself."""
    key: str
    image: bytes = b""
    class_id: int = -1
    fault: str = ""
    """Why it is of no use; empty: it has an image and a label."""


@dataclass(frozen=True)
class Tars:
    """The endless streams of one rank, one a worker."""

    config: ForeignConfig
    classes: ClassList
    seed: tuple[int, int]
    """The run's seed and the step that the streams begin with."""
    first_stream: int
    """Of this rank's first worker."""
    num_streams: int
    """Of all workers of all ranks."""

    def found(self, worker: int) -> Iterator[Found]:
        """What this worker reads, shuffled, without end. Raises ShardError when the tars give nothing."""
        number = self.first_stream + worker
        stream: Iterator[Found] = self._in_sequence(number)
        if self.config.shuffle:
            rng = random.Random(repr((*self.seed, "samples", number)))
            stream = webdataset.shuffle(self.config.shuffle, rng=rng)(stream)
        return stream

    def passes(self, number: int) -> Iterator[list[tuple[int, int, int]]]:
        """(tar, share, shares) of every pass of stream `number`: it takes samples share, share + shares, … of the tar.

        Together the streams take every sample once a pass. Where several share a tar, shares rotate with each visit, so
        that a tar with fewer samples than shares starves none of them.
        """
        num_tars, streams = len(self.config.tars), self.num_streams
        visits: Counter[int] = Counter()
        for pass_number in range(2**62):
            tars = list(range(num_tars))
            random.Random(repr((*self.seed, "tars", pass_number))).shuffle(tars)
            if num_tars >= streams:
                yield [(tar, 0, 1) for tar in tars[number::streams]]
                continue
            slot, place = number % num_tars, number // num_tars
            shares = len(range(slot, streams, num_tars))
            yield [(tars[slot], (place + visits[tars[slot]]) % shares, shares)]
            visits[tars[slot]] += 1

    def _in_sequence(self, number: int) -> Iterator[Found]:
        told: set[str] = set()
        empty = 0
        for tar, share, shares in (piece for pieces in self.passes(number) for piece in pieces):
            url, is_empty = self.config.tars[tar], True
            for found in read_tar(url, self.config.label, self.classes):
                is_empty &= found.place < 0
                if found.place < 0 and url not in told:  # the tar itself
                    told.add(url)
                    log.warning("%s: %s; what could not be read of it is left out", shown(url), found.fault)
                if found.place < 0 or found.place % shares == share:
                    yield found
            empty = empty + 1 if is_empty else 0
            if is_empty and url not in told:
                told.add(url)
                log.warning("%s: no sample in it; a sample is <key>.jpg with <key>.cls or <key>.json", shown(url))
            if empty >= MOST_EMPTY:
                raise ShardError(
                    f"data.foreign: {MOST_EMPTY} tars in a row give no sample, the last is {shown(url)}; a sample is "
                    "<key>.jpg (.png, .webp, …) with <key>.cls or <key>.json beside it. The log says what each tar has"
                )


def read_tar(url: str, field_name: str | None, classes: ClassList) -> Iterator[Found]:
    """The samples of one tar, and behind them what was wrong with the tar itself."""
    wanted = IMAGES | {"json"} | ({"cls"} if field_name is None else set())
    faults: list[str] = []

    def go_on(error: Exception) -> bool:
        faults.append(_said(error))
        return True

    try:
        with _opened(url) as stream:
            source = [{"url": url, "stream": stream}]
            is_wanted = {"select_files": lambda name: _suffix(name) in wanted}
            members = tar_file_expander(source, handler=go_on, **is_wanted)
            for place, parts in enumerate(group_by_keys(members, handler=go_on)):
                yield _as_found(url, place, parts, field_name, classes)
            while is_pipe(url) and stream.read(DRAIN_BYTES):
                pass  # a command whose last bytes nobody takes would end as a failure
    except (OSError, ValueError) as error:  # of the command or server, so behind whatever else was wrong
        faults.insert(0, _said(error))
    if faults:
        yield Found(url, -1, "", fault=f"broken tar: {faults[0]}")


def _as_found(url: str, place: int, parts: Mapping[str, Any], field_name: str | None, classes: ClassList) -> Found:
    key = str(parts["__key__"])
    images = [name for name in parts if name in IMAGES]
    try:
        if len(images) != 1:
            raise ValueError(f"several images: {', '.join(images)}" if images else "no image")
        return Found(url, place, key, parts[images[0]], class_of(parts, field_name, classes))
    except (ValueError, RecursionError) as error:  # what json and unicode raise is a ValueError
        return Found(url, place, key, fault=f"'{key}': {error}")


def class_of(parts: Mapping[str, Any], field_name: str | None, classes: ClassList) -> int:
    """The class of a sample by its .cls or .json. Raises ValueError that says what is missing."""
    fields = json.loads(parts["json"]) if "json" in parts else {}
    if not isinstance(fields, dict):
        raise ValueError("its .json is not an object")
    domain = fields.get("domain")
    if "cls" in parts:
        label: Any = parts["cls"].decode().strip()
    else:
        label = fields.get(field_name or "label")
    if isinstance(label, bool) or not isinstance(label, (str, int)) or label == "":
        what = f"no '{field_name}' in its .json" if field_name else "neither a .cls nor a 'label' in its .json"
        raise ValueError(f"no label: {what}" if label in (None, "") else f"its label {str(label)[:40]} is no text")
    return classes.find(str(label), domain if isinstance(domain, str) and domain else None)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[Any]:
    """A tar as a stream. The end of a `pipe:` raises OSError when its command failed."""
    if is_pipe(url):
        stream: Any = webdataset.gopen(f"pipe:{url[len('pipe:') :]}")
    elif is_local(url):
        stream = open(url, "rb")
    else:
        stream = io.BufferedReader(Part(url, 0, size_of(url)), PIECE_BYTES)
    with contextlib.closing(stream):
        yield stream


def _suffix(name: str) -> str:
    """As webdataset cuts it: behind the first dot of the file's name."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def _said(error: Exception) -> str:
    """webdataset appends what it was reading to the arguments of an error."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, OSError) and (code := re.search(r"exit (-?\d+) \(read\)", str(error))):
        return f"its command ended with {code[1]}"
    return shown(str(error.args[0]).partition(" @ <")[0]) if error.args else type(error).__name__
