"""Interfaces of a pipeline's parts. A new kind fulfils one of these protocols and has a row in `unclip.registry`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from unclip.clip.text_features import TextFeatures
from unclip.diffusion.guidance import OnStep
from unclip.diffusion.process import Process
from unclip.diffusion.samplers import Denoise
from unclip.settings import DecoderSettings, PriorSettings

if TYPE_CHECKING:
    from unclip.prior.reranking import Reranker


class PartModel(Protocol):
    """Common to all parts: a torch.nn.Module that is built from its config, `Model(config)`.

    Weights are saved by its state dict, and the config as JSON, so the two are all that opening a part needs.
    """

    config_class: ClassVar[type]
    """The frozen dataclass of its config, whose fields have defaults."""
    config: Any


class Prior(PartModel, Protocol):
    """Caption -> image embedding.

    A class may name settings in `reads: ClassVar[tuple[str, ...]]`, those that few kinds read; see `PriorSettings`.
    In `ignores`, of the same type, it may name settings that most kinds read and it does not.
    """

    def draw_embeddings(self, text: TextFeatures, seeds: Sequence[int], settings: PriorSettings) -> Tensor:
        """Draw one unit image embedding (N, D) for each of N captions; row i depends on caption i and seeds[i] only."""


@runtime_checkable
class MapsText(Protocol):
    """A prior with a linear map from text embeddings to image embeddings, along which `unclip.edit.change` moves."""

    def map_text(self, text: Tensor) -> Tensor:
        """Image embeddings (N, D), not of unit norm, predicted from text embeddings (N, D) by a linear map."""


@runtime_checkable
class HasReranker(Protocol):
    """A prior that knows the captions of the classes, so that images of another class can be drawn anew.

    It keeps the candidate that its reranker's `keep` chooses; its first candidate is the same however many are drawn.
    """

    reranker: "Reranker"


class Decoder(PartModel, Protocol):
    """Image embedding and caption -> pixels."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that are drawn."""

    def draw_noise(self, seeds: Sequence[int]) -> Tensor:
        """The noise (N, C, H, W) that the samples of N seeds start from."""

    def draw_images(
        self,
        embeddings: Tensor | None,
        text: TextFeatures,
        seeds: Sequence[int],
        settings: DecoderSettings,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draw images (N, C, H, W) in [-1, 1] from unit image embeddings (N, D) and N captions.

        Args:
            embeddings: None to leave them out.
            noise: what to start from, in place of the seeds' own.
            on_step: called with (level, x_t, predicted x0) at each step.
        """


@runtime_checkable
class CanDenoise(Protocol):
    """A decoder by diffusion whose process and denoiser can be used apart, as `unclip.edit.corrupt` does."""

    @property
    def process(self) -> Process:
        """The process that it was trained on."""

    def denoiser(self, embeddings: Tensor | None, text: TextFeatures, settings: DecoderSettings) -> Denoise:
        """denoise(x, level), guided as the settings say, given unit image embeddings (N, D) and N captions."""


@runtime_checkable
class CanInvert(Protocol):
    """A decoder that finds the noise of an image: what `unclip.edit.invert` needs."""

    def invert_images(
        self, images: Tensor, embeddings: Tensor | None, text: TextFeatures, settings: DecoderSettings
    ) -> Tensor:
        """The noise (N, C, H, W) that `draw_images` turns into images (N, C, H, W) in [-1, 1]."""


@runtime_checkable
class CanInpaint(Protocol):
    """A decoder that paints a part of an image: what `unclip.edit.inpaint` needs."""

    def inpaint_images(
        self,
        images: Tensor,
        mask: Tensor,
        embeddings: Tensor | None,
        text: TextFeatures,
        seeds: Sequence[int],
        settings: DecoderSettings,
    ) -> Tensor:
        """Images (N, C, H, W) in [-1, 1], painted where mask (N, 1, H, W) is True."""


class ImagePart(PartModel, Protocol):
    """A part that comes after the decoder, such as an upsampler: images -> images. A pipeline applies it if present."""

    def process_images(
        self, images: Tensor, embeddings: Tensor | None, text: TextFeatures, seeds: Sequence[int], settings: Any
    ) -> Tensor:
        """New images (N, C, H', W') in [-1, 1] for the decoder's (N, C, H, W); row i depends on row i only.

        Args:
            settings: the field of `Sampling` with the part's name; None if there is none.
        """
