from unclip.clip.model import CLIP, CLIPConfig
from unclip.clip.preprocess import Preprocess, PreprocessConfig
from unclip.clip.pretrained import load_clip
from unclip.clip.text import TextConfig
from unclip.clip.tokenizer import Tokenizer
from unclip.clip.vision import VisionConfig

__all__ = [
    "CLIP",
    "CLIPConfig",
    "Preprocess",
    "PreprocessConfig",
    "TextConfig",
    "Tokenizer",
    "VisionConfig",
    "load_clip",
]
