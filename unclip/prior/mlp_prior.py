"""The diffusion prior whose network is an MLP in place of the transformer. It is sampled in the same way."""

from dataclasses import dataclass
from typing import ClassVar

from unclip.diffusion.process import ProcessConfig
from unclip.fields import flattened, from_data
from unclip.prior.diffusion_prior import DiffusionPrior
from unclip.prior.mlp_model import MLPConfig, ResidualMLP


@dataclass(frozen=True)
class MLPPriorConfig:
    network: MLPConfig = flattened(MLPConfig())
    diffusion: ProcessConfig = flattened(ProcessConfig(prediction="x0"))
    num_classes: int = from_data(0, 0, 65_536)
    """Number of classes in the data, whose captions the reranker compares a candidate with; 0 where there are none."""


class MLPPrior(DiffusionPrior):
    config_class: ClassVar[type] = MLPPriorConfig
    network_class: ClassVar[type] = ResidualMLP
