"""Tars of others, without a sidecar: what a config says of them, and what is known of them before they are read.

Nothing says where in such a tar a sample lies or how many there are. So they are streamed from front to back
(foreign_tars.py), an epoch is as long as `samples` says, and a run that stops does not go on with the same samples.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from retrieval_train.config import FileName, Section, place
from retrieval_train.rundir import sampled_digest
from shards.files import is_url, shown

WILD = frozenset("*?[")


class ForeignConfig(Section):
    """Tars without a sidecar, in place of data.mixture."""

    allow_pipe: bool = Field(default=False, json_schema_extra=place())
    """Whether urls may say `pipe:COMMAND`, which runs a shell command whose output is the tar."""
    urls: tuple[str, ...]
    """The tars: paths with braces (train-{000..127}.tar) or wildcards, or URLs that fsspec opens. A tar that is named
    twice is read twice as often."""
    classes: Path
    """Text file with one class a line, `domain/label` or `label`. The first line is class 0."""
    domain: FileName
    """Domain of classes and samples that name none."""
    label: str | None = None
    """Field of each sample's .json that has its label; null: the .cls member, or where there is none the .json's
    `label`. It is a name from `classes`, or the number of its line, counted from 0, if no class is named by a number."""
    samples: int | None = Field(default=None, ge=1)
    """Samples of an epoch; null: as many as the sizes.json beside the tars says."""
    shuffle: int = Field(default=1000, ge=0)
    """Samples that each worker holds, as bytes, to draw the next one from; 0: as they lie in the tar."""

    @field_validator("urls", mode="before")
    @classmethod
    def _one_or_many(cls, urls: Any) -> Any:
        return (urls,) if isinstance(urls, str) else urls

    @field_validator("urls")
    @classmethod
    def _are_safe(cls, urls: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not urls:
            raise ValueError("names no tar; say for example data.foreign.urls=[tars/train-{000..127}.tar]")
        for url in expanded(urls):
            if is_pipe(url) and not info.data.get("allow_pipe"):
                raise ValueError(
                    f"'{shown(url)}' runs a shell command; say data.foreign.allow_pipe=true if you trust it, or give a path "
                    "or a URL that fsspec opens (s3://, gs://, https://)"
                )
        return urls

    @cached_property
    def tars(self) -> tuple[str, ...]:
        """Every tar, in the order of `urls`; a pattern that matches nothing stays as it is."""
        found: list[str] = []
        for url in expanded(self.urls):
            is_pattern = is_local(url) and WILD & set(url) and not Path(url).exists()
            found += (is_pattern and sorted(glob.glob(url))) or [url]
        return tuple(found)

    def num_samples(self) -> int:
        """Of an epoch. Raises ValueError where nobody says how many there are."""
        if self.samples is not None:
            return self.samples
        if not all(map(is_local, self.tars)):
            raise ValueError("is needed where tars are not local files: how many samples are an epoch?")
        sizes: dict[str, Any] = {}
        for folder in sorted({Path(tar).parent for tar in self.tars}):
            if (folder / "sizes.json").is_file():
                said = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
                sizes |= {str(folder / name): size for name, size in said.items()}
        unknown = [tar for tar in self.tars if not isinstance(sizes.get(str(Path(tar))), int)]
        if unknown:
            raise ValueError(f"is needed, since no sizes.json beside {unknown[0]} says how many samples it has")
        return sum(sizes[str(Path(tar))] for tar in self.tars)

    def class_list(self) -> ClassList:
        """Raises ValueError that names the line."""
        return read_classes(self.classes, self.domain)

    def digest(self) -> str:
        """Of the tars' names and, where they are local, sizes."""
        lines = [f"{tar}\t{Path(tar).stat().st_size if is_local(tar) else '-'}\n" for tar in self.tars]
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

    def digests(self) -> dict[str, str]:
        """By the config's key, what this leads to."""
        return {"data.foreign": self.digest(), "data.foreign.classes": sampled_digest(self.classes)}

    def problems(self, *, batch: int, order: str, cache_gb: float, domains: Sequence[str]) -> list[tuple[str, str]]:
        """What does not fit the tars that lie there or the rest of `data`: (key, what to do). Reads no tar."""
        found: list[tuple[str, str]] = []
        missing = [tar for tar in self.tars if is_local(tar) and not Path(tar).is_file()]
        if missing:
            count = f"{len(missing)} of {len(self.tars)} tars are not there, the first is"
            text = f"{count if len(self.tars) > 1 else 'no such tar:'} {missing[0]}; fix data.foreign.urls"
            found.append(("data.foreign.urls", text))
        else:
            try:
                if (samples := self.num_samples()) < batch:
                    text = f"{batch} rows, but an epoch has only {samples}; take a smaller batch"
                    found.append(("data.batch", text))
            except ValueError as error:
                found.append(("data.foreign.samples", str(error)))
        try:
            known = self.class_list().domains
            for name in sorted(set(domains) - set(known)):
                text = f"no class of data.foreign.classes is of this domain; there are: {', '.join(known)}"
                found.append((f"data.augment_by_domain.{name}", text))
        except ValueError as error:
            found.append(("data.foreign.classes", str(error)))
        if order != "mixed":
            text = f"'{order}' deals samples by number, and tars without a sidecar have none; take mixed, or {WAY_OUT}"
            found.append(("data.order.name", text))
        if cache_gb:
            text = f"keeps images by number, and tars without a sidecar have none; set it to 0, or {WAY_OUT}"
            found.append(("data.cache_gb", text))
        return found


WAY_OUT = "make a set of them with `shards make img2dataset`"


@dataclass(frozen=True)
class ClassList:
    """The classes of a text file, in its order."""

    file: Path
    names: tuple[str, ...]
    """`domain/label`."""
    domain: str
    """Of labels that name none."""

    @cached_property
    def domains(self) -> tuple[str, ...]:
        return tuple(sorted({name.partition("/")[0] for name in self.names}))

    def domain_of(self, number: int) -> int:
        """Position of a class's domain in `domains`."""
        return self.domains.index(self.names[number].partition("/")[0])

    @cached_property
    def ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def are_numbers(self) -> bool:
        """Whether a class is named by a number: then a number is a name."""
        return any(is_number(name.partition("/")[2]) for name in self.names)

    def find(self, text: str, domain: str | None = None) -> int:
        """The class that a sample's label means. Raises ValueError when the file has no such class."""
        for name in (f"{domain or self.domain}/{text}", text):
            if name in self.ids:
                return self.ids[name]
        if is_number(text) and not self.are_numbers:
            if int(text) < len(self.names):
                return int(text)
            raise ValueError(f"label {text[:40]}: {self.file} has classes 0 to {len(self.names) - 1}")
        raise ValueError(f"label '{text[:80]}' of domain '{domain or self.domain}' is not in {self.file}")


def read_classes(file: Path, domain: str) -> ClassList:
    """Raises ValueError that names the line."""
    if not file.is_file():
        raise ValueError(f"no file {file}; write one with a class a line, as `domain/label` or `label`")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason} at byte {error.start})") from error
    if not text.strip():
        raise ValueError(f"{file} is empty; write a class a line, as `domain/label` or `label`")
    lines_of: dict[str, int] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        name = line.strip() if "/" in line else f"{domain}/{line.strip()}"
        if name.startswith("/") or name.endswith("/"):
            raise ValueError(f"{file}:{number}: '{line}' is neither `domain/label` nor `label`")
        if name in lines_of:
            raise ValueError(f"{file}:{number}: '{name}' is line {lines_of[name]} already; name each class once")
        lines_of[name] = number
    return ClassList(file, tuple(lines_of), domain)


def expanded(urls: Sequence[str]) -> list[str]:
    """Braces filled in. Raises ValueError for braces that are not closed."""
    import braceexpand

    found: list[str] = []
    for url in urls:
        try:
            found += [one.strip() for one in braceexpand.braceexpand(url)]
        except ValueError as error:
            raise ValueError(f"'{shown(url)}': {error}; write a brace that is part of a name as \\{{") from error
    return found


def is_pipe(url: str) -> bool:
    return url.lower().startswith("pipe:")


def is_local(url: str) -> bool:
    return not is_pipe(url) and not is_url(url)


def is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
