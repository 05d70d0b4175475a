"""Layers that losses train beside the embedder. They are called with (features_NF, emb_ND) and left out of the export.

Legend: N rows of this rank, F features of the backbone, D dimensions of the embedding, Z of a projection, K of a teacher,
M domains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class ProjectAndPredict(nn.Module):
    """SimSiam's: a projection z of the embedding, and what the predictor makes of it: (N, 2 Z), z first."""

    def __init__(self, dim: int, *, projection: int, hidden: int) -> None:
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(dim, projection, bias=False),  # batch norm takes a bias away again
            nn.BatchNorm1d(projection),
            nn.ReLU(),
            nn.Linear(projection, projection, bias=False),
            nn.BatchNorm1d(projection, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(projection, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, projection),
        )

    def forward(self, features_NF: Tensor, emb_ND: Tensor) -> Tensor:
        z_NZ = self.projector(emb_ND)
        return torch.cat([z_NZ, self.predictor(z_NZ)], dim=1)


class Teachers(nn.Module):
    """One linear layer a domain on features of length 1: (N, M K), the domains side by side."""

    def __init__(self, num_features: int, *, num_domains: int, dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(num_features, num_domains * dim)  # M layers in one: each has F inputs

    def forward(self, features_NF: Tensor, emb_ND: Tensor) -> Tensor:
        teacher_NX: Tensor = self.projection(functional.normalize(features_NF, dim=-1))
        return teacher_NX
