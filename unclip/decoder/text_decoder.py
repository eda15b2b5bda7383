"""A decoder that reads the caption's text embedding in place of an image embedding: no prior has a say."""

from torch import Tensor

from unclip.clip.text_features import TextFeatures
from unclip.decoder.condition import Condition
from unclip.decoder.diffusion_decoder import DiffusionDecoder


class TextDecoder(DiffusionDecoder):
    """Ramesh et al. 2022, section 5.1, compare unCLIP with such a decoder, trained on text embeddings."""

    def condition(self, embeddings: Tensor, drop: Tensor, text: TextFeatures) -> Condition:
        """Read B captions; the image embeddings (B, D) are ignored. Empty captions drop their embedding too."""
        return super().condition(text.embedding, drop | text.empty, text)
