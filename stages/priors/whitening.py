"""Train a prior on whitened embeddings: along the principal components, each with variance 1.

Embeddings are rotated to the axes of the components, which leaves lengths and cosines as they are. The prior's own
scaler then gives every axis variance 1.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from stages.embed import EmbeddedImages
from stages.inputs import Inputs
from unclip.clip import TextFeatures
from unclip.prior.principal_components import PrincipalComponents
from unclip.settings import PriorSettings


def rotated_inputs(inputs: Inputs, axes: Tensor) -> Inputs:
    """The inputs with image and text embeddings rotated to the axes (D, D), one per column."""

    def rotate(images: EmbeddedImages) -> EmbeddedImages:
        embeddings = images.embeddings @ axes
        return replace(images, embeddings=embeddings, text_embeddings=images.text_embeddings @ axes)

    return replace(
        inputs,
        train=rotate(inputs.train),
        validation=rotate(inputs.validation),
        class_embeddings=inputs.class_embeddings @ axes,
    )


def principal_axes(inputs: Inputs) -> Tensor:
    """The directions of the training images' principal components (D, D), one per column."""
    components = PrincipalComponents(inputs.clip.embed_dim)
    components.fit(inputs.train.embeddings, 1.0)
    return components.directions


class WhitenedPrior(nn.Module):
    """A prior that was trained on rotated embeddings, for callers whose embeddings are not."""

    axes: Tensor

    def __init__(self, prior: nn.Module, axes: Tensor):
        super().__init__()
        self.prior = prior
        self.register_buffer("axes", axes)

    def draw_embeddings(self, text: TextFeatures, seeds: Sequence[int], settings: PriorSettings) -> Tensor:
        rotated = replace(text, embedding=text.embedding @ self.axes)
        return self.prior.draw_embeddings(rotated, seeds, settings) @ self.axes.T
