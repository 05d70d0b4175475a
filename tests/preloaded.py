"""What nearly every rank of a test imports: loaded once, in the process that ranks are forked from."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"  # as open_world says where the ranks are CPUs

import deepspeed  # noqa: F401
import peft  # noqa: F401
import timm  # noqa: F401
import torch

import retrieval_train.engine.sharded
import retrieval_train.engine.stepper
import retrieval_train.world  # noqa: F401

torch.set_num_threads(1)
