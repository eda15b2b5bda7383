"""Train the decoder that reads text embeddings: batches and loss are those of the other."""

from dataclasses import dataclass
from typing import ClassVar

from stages.decoder import DecoderRun, DecoderStage
from unclip.decoder.diffusion_decoder import DiffusionDecoder
from unclip.decoder.text_decoder import TextDecoder
from unclip.fields import bounded


@dataclass(frozen=True)
class TextDecoderRun(DecoderRun):
    kind: str = bounded("text", affects_weights=False)
    """Kind of the decoder, of those in unclip/registry.py."""
    drop_image: float = bounded(0.0, 0, 0.99)
    """Share of the text embeddings that are replaced by the learned null, beside those of dropped captions."""
    drop_text: float = bounded(0.1, 0, 0.99)
    """Share of the captions that are replaced by the learned null, with their embeddings, for guidance."""
    drops: ClassVar[tuple[str, ...]] = ("drop_text",)
    """See `DecoderRun`."""


class TextDecoderStage(DecoderStage):
    model_class: ClassVar[type[DiffusionDecoder]] = TextDecoder

    def fit_buffers(self) -> None:
        """Fit the scaling of the text embeddings that the decoder reads."""
        self.model.network.image_condition.scaler.fit(self.inputs.train.text_embeddings)
