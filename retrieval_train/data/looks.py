"""How training images look: which augmentation a domain has, and one view or two of every image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from retrieval_train.data.augment.augment import Augment
from retrieval_train.data.decode import MinSide
from retrieval_train.data.order.permutation import mixed
from retrieval_train.data.view import View


@dataclass(frozen=True)
class Looks:
    augment: Augment
    by_domain: Mapping[str, Augment] = field(default_factory=dict)
    strong: Augment | None = None
    """Of a second view."""
    view: View = field(default_factory=View)
    """How an image becomes the network's square where nothing about it is random."""

    @property
    def num_views(self) -> int:
        return 2 if self.strong else 1

    def views(self, image_CHW: Tensor, image_px: int, *, domain: str, seed: int) -> list[Tensor]:
        """One view, or two, (3, image_px, image_px) each."""
        return [
            look.apply(image_CHW, image_px, seed=its_seed, view=self.view)
            for look, its_seed in self._looks(domain, seed)
        ]

    def min_side_for(self, image_px: int, *, domain: str, seed: int) -> MinSide:
        """What decoding must leave of an image for the draws of this seed."""
        sides = [look.min_side_for(image_px, seed=s, view=self.view) for look, s in self._looks(domain, seed)]
        if len(sides) == 1:
            return sides[0]
        return lambda height, width: max(side(height, width) if callable(side) else side for side in sides)

    def min_side(self, image_px: int) -> int:
        """What decoding must leave of any image, whatever is drawn: for one that is kept for many seeds."""
        looks = [self.augment, *self.by_domain.values(), *([self.strong] if self.strong else [])]
        return max(look.min_side(image_px, view=self.view) for look in looks)

    def _looks(self, domain: str, seed: int) -> list[tuple[Augment, int]]:
        first = (self.by_domain.get(domain, self.augment), seed)
        return [first, (self.strong, mixed(seed, 2) >> 1)] if self.strong else [first]
