"""Edit images through CLIP's embedding space: plain functions over a pipeline.

Sections and figures that the functions name are those of Ramesh et al. 2022 (arXiv 2204.06125).

Images are PIL images, files, or uint8 arrays (H, W), (H, W, C) or (N, H, W, C), of any size; one, or a list. Functions
that draw several images for each image or caption return an `Output`, those of one image or caption in a row; functions
that draw a path return uint8 (N, K, H, W, C). A result depends on its own image, its seed and the settings alone.
Settings are those of `unclip.settings.SamplingOptions`. Every function raises UserError for an argument that it cannot
use.
"""

from unclip.edit.blending import blend
from unclip.edit.defaults import DEFAULTS
from unclip.edit.image_inputs import prepare_images, prepare_mask
from unclip.edit.image_to_image import image_to_image
from unclip.edit.interpolation import slerp
from unclip.edit.inversion import Latent, invert, reconstruct
from unclip.edit.mixing import mix
from unclip.edit.painting import inpaint
from unclip.edit.probing import Corrupted, corrupt, principal_axes, probe
from unclip.edit.text_change import Space, change, text_difference
from unclip.edit.variation import vary

__all__ = [
    "DEFAULTS",
    "Corrupted",
    "Latent",
    "Space",
    "blend",
    "change",
    "corrupt",
    "image_to_image",
    "inpaint",
    "invert",
    "mix",
    "prepare_images",
    "prepare_mask",
    "principal_axes",
    "probe",
    "reconstruct",
    "slerp",
    "text_difference",
    "vary",
]
