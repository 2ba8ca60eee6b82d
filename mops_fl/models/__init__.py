"""The frozen backbone, the trainable prompts and the gate, and their forward pass."""

from mops_fl.models.backbone import Backbone, load_backbone
from mops_fl.models.mixture import Batch, Mixture, collate
from mops_fl.models.source import check_backbone, describe, injection_layer
from mops_fl.models.trainable import Trainable, initial_tensors

__all__ = [
    "Backbone",
    "Batch",
    "Mixture",
    "Trainable",
    "check_backbone",
    "collate",
    "describe",
    "initial_tensors",
    "injection_layer",
    "load_backbone",
]
