"""Class centres held against each other and against the images of their classes: which classes are close, which images are
far from their own.

Of a class's sub-centres the *dominant* one is the one that most of its images are nearest to; images that lie far from it are
suspected to be mislabelled (Deng et al., Sub-center ArcFace, ECCV 2020, section 3.4: more than 75 degrees).

Legend: N images of a rank, P (image, class) pairs of a rank, Q queries, C classes, K sub-centres, D dimensions, M neighbours.
All vectors have length 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from retrieval_train.world import World

BIN_DEGREES = 2
_ROWS = 1024  # queries at once
_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}  # of their cosines with a block of classes


class Far(NamedTuple):
    """An image that lies far from its class."""

    angle: float
    """Degrees between it and its class's dominant sub-centre."""
    number: int
    """Of the sample."""
    own: int
    """Its class."""
    nearest: int
    """The nearest other class; -1 where there is none."""
    cosine: float
    """With that class's nearest sub-centre."""


@dataclass(frozen=True, eq=False)
class Fit:
    """How images lie around the centres of their classes; the same on every rank."""

    images_CK: Any
    """How many images are nearest to each sub-centre of their class."""
    typical_C: Any
    """The image nearest to the dominant sub-centre, by sample number; -1 for a class without images."""
    angles: Any
    """Images by the angle to their dominant sub-centre, in bins of BIN_DEGREES."""
    mean_angle: float
    """NaN where there are no images."""
    far: list[Far]
    """Those beyond the threshold, the farthest first."""

    @property
    def images_C(self) -> Any:
        return self.images_CK.sum(1)

    @property
    def dominant_share_C(self) -> Any:
        """Share of a class's images on its dominant sub-centre; NaN without images."""
        with np.errstate(invalid="ignore"):
            return self.images_CK.max(1) / self.images_C


def fit(
    vector_ND: Tensor,
    number_N: Any,
    pairs: tuple[Any, Any],
    centre_CKD: Tensor,
    world: World,
    *,
    threshold_degrees: float,
) -> Fit:
    """Each rank brings some images: their vectors and sample numbers, and (place among them, class) of every label.

    Collective.
    """
    num_classes, num_sub = centre_CKD.shape[:2]
    place_P, class_P = (torch.as_tensor(column, dtype=torch.int64, device=world.device) for column in pairs)
    cosine_PK = _cosines(vector_ND, place_P, class_P, centre_CKD)
    slot_P = class_P * num_sub + cosine_PK.argmax(1)
    images_CK = world.sum(torch.bincount(slot_P, minlength=num_classes * num_sub)).view(num_classes, num_sub)
    cosine_P = cosine_PK.gather(1, images_CK.argmax(1)[class_P][:, None])[:, 0]
    angle_P = torch.rad2deg(torch.arccos(cosine_P.double().clamp(-1, 1)))
    number_P = torch.as_tensor(number_N, dtype=torch.int64, device=world.device)[place_P]
    bins = 180 // BIN_DEGREES
    angles = world.sum(torch.bincount((angle_P / BIN_DEGREES).long().clamp(max=bins - 1), minlength=bins))
    total = world.sum(torch.stack([angle_P.sum(), angle_P.new_tensor(float(len(angle_P)))]))
    is_far_P = angle_P > threshold_degrees
    far = _far(vector_ND[place_P[is_far_P]], number_P[is_far_P], class_P[is_far_P], angle_P[is_far_P], centre_CKD)
    every = [one for some in world.every(far) for one in some]
    return Fit(
        images_CK.cpu().numpy(),
        _typical(cosine_P, number_P, class_P, num_classes, world).cpu().numpy(),
        angles.cpu().numpy(),
        float(total[0] / total[1]),
        sorted(every, key=lambda one: (-one.angle, one.number, one.own)),
    )


def neighbours(centre_CKD: Tensor, world: World, *, num: int) -> tuple[Any, Any]:
    """(classes, cosines), both (C, M), of the `num` nearest other classes, the nearest first; fewer where there are fewer.

    Of two classes those sub-centres count that are closest. Every rank looks at some of the classes. Collective.
    """
    count = len(centre_CKD)
    mine = torch.arange(count * world.rank // world.size, count * (world.rank + 1) // world.size)
    mine = mine.to(centre_CKD.device)
    found = nearest(centre_CKD[mine], mine, centre_CKD, num=num)
    every = world.every(tuple(part.cpu().numpy() for part in found))
    return np.concatenate([one for one, _ in every]), np.concatenate([other for _, other in every])


def nearest(query_QKD: Tensor, own_Q: Tensor, centre_CKD: Tensor, *, num: int) -> tuple[Tensor, Tensor]:
    """(classes, cosines), both (Q, M), of the classes nearest to each query, without its own; by blocks."""
    num = min(num, len(centre_CKD) - 1)
    found = [_nearest(query_QKD[rows], own_Q[rows], centre_CKD, num) for rows in _cut(len(query_QKD), _ROWS)]
    empty = own_Q.new_empty(0, num), centre_CKD.new_empty(0, num)
    return tuple(torch.cat(parts) for parts in zip(empty, *found, strict=True))  # type: ignore[return-value]


def close_pairs(class_CM: Any, cosine_CM: Any, *, num: int) -> list[tuple[int, int, float]]:
    """The pairs of classes with the largest cosines, each pair once: (class, class, cosine)."""
    best: dict[tuple[int, int], float] = {}
    for at in np.argsort(-cosine_CM, axis=None, kind="stable").tolist():
        if len(best) == num:
            break
        one, other = at // class_CM.shape[1], int(class_CM.flat[at])
        best.setdefault((min(one, other), max(one, other)), float(cosine_CM.flat[at]))
    return [(one, other, cosine) for (one, other), cosine in best.items()]


def _nearest(query_QKD: Tensor, own_Q: Tensor, centre_CKD: Tensor, num: int) -> tuple[Tensor, Tensor]:
    rows, each, _ = query_QKD.shape
    cosine_QM, class_QM = query_QKD.new_empty(rows, 0), own_Q.new_empty(rows, 0)
    size = max(1, _BYTES.get(query_QKD.device.type, 16 << 20) // (4 * rows * each * centre_CKD.shape[1]))
    for columns in _cut(len(centre_CKD), size):
        block_bKD = centre_CKD[columns]
        products = query_QKD.flatten(0, 1) @ block_bKD.flatten(0, 1).T
        cosine_Qb = products.view(rows, each, len(block_bKD), -1).amax((1, 3))
        class_Qb = torch.arange(columns.start, columns.stop, device=own_Q.device).expand(rows, -1)
        cosine_Qb = cosine_Qb.masked_fill(class_Qb == own_Q[:, None], -torch.inf)
        cosine_Qn, class_Qn = torch.cat([cosine_QM, cosine_Qb], 1), torch.cat([class_QM, class_Qb], 1)
        cosine_QM, place_QM = cosine_Qn.topk(min(num, cosine_Qn.shape[1]), dim=1)
        class_QM = class_Qn.gather(1, place_QM)
    return class_QM, cosine_QM.clamp(-1, 1)


def _cosines(vector_ND: Tensor, place_P: Tensor, class_P: Tensor, centre_CKD: Tensor) -> Tensor:
    """(P, K): of each pair's image with its class's sub-centres."""
    found = [centre_CKD.new_empty(0, centre_CKD.shape[1])]
    for rows in _cut(len(place_P), _ROWS):
        found.append(torch.einsum("pd,pkd->pk", vector_ND[place_P[rows]], centre_CKD[class_P[rows]]))
    return torch.cat(found)


def _far(vector_QD: Tensor, number_Q: Tensor, own_Q: Tensor, angle_Q: Tensor, centre_CKD: Tensor) -> list[Far]:
    class_Q1, cosine_Q1 = nearest(vector_QD[:, None], own_Q, centre_CKD, num=1)
    if class_Q1.shape[1] == 0:  # there is no other class
        class_Q1, cosine_Q1 = own_Q.new_full((len(own_Q), 1), -1), angle_Q.new_full((len(own_Q), 1), torch.nan)
    columns = (angle_Q, number_Q, own_Q, class_Q1[:, 0], cosine_Q1[:, 0])
    return [Far(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _typical(cosine_P: Tensor, number_P: Tensor, class_P: Tensor, num_classes: int, world: World) -> Tensor:
    """The sample number (C,) of each class's largest cosine; the smallest of equals; -1 for a class without images."""
    best_C = cosine_P.new_full((num_classes,), -2.0).scatter_reduce(0, class_P, cosine_P, "amax")
    best_C = world.max(best_C)
    is_best_P = cosine_P == best_C[class_P]
    none = torch.iinfo(torch.int64).min
    least_C = number_P.new_full((num_classes,), none)
    least_C = least_C.scatter_reduce(0, class_P[is_best_P], -number_P[is_best_P], "amax")
    least_C = world.max(least_C)
    return torch.where(least_C == none, -1, -least_C)


def _cut(count: int, size: int) -> Iterator[slice]:
    ends: Sequence[int] = [*range(0, count, size), count]
    return (slice(start, stop) for start, stop in pairwise(ends))
