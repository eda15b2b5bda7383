from unclip.clip.captions import EncodedCaptions, encode_captions, encode_ids
from unclip.clip.model import CLIP, CLIPConfig
from unclip.clip.preprocess import Preprocess, PreprocessConfig
from unclip.clip.pretrained import load_clip
from unclip.clip.text import TextConfig
from unclip.clip.tokenizer import Tokenizer
from unclip.clip.vision import VisionConfig

__all__ = [
    "CLIP",
    "CLIPConfig",
    "EncodedCaptions",
    "Preprocess",
    "PreprocessConfig",
    "TextConfig",
    "Tokenizer",
    "VisionConfig",
    "encode_captions",
    "encode_ids",
    "load_clip",
]
