"""Local training, evaluation and pretraining: what a client does, apart from who asks it to."""

from mops_fl.training.trainer import Trainer

__all__ = ["Trainer"]
