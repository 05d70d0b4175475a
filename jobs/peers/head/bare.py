"""No head: the three matrix products in float32 that a step cannot do without, and nothing else.

Logits E W^T, the gradient by the centres G^T E, the gradient by the embeddings G W: 6 B C D floating-point operations.
"""

from __future__ import annotations

from typing import Any

from jobs.peers.head.task import Step, Task, embeddings, fill_centres


def build(task: Task, world: Any) -> Step:
    import torch

    centre_CD = torch.empty(len(task.mine), task.dim)
    fill_centres(centre_CD, task)
    emb_BD = world.gather(embeddings(task).detach(), task.counts)

    def step() -> float:
        logit_BC = emb_BD @ centre_CD.T
        grad_CD = logit_BC.T @ emb_BD
        grad_BD = logit_BC @ centre_CD
        return float(grad_CD[0, 0] + grad_BD[0, 0])

    return step
