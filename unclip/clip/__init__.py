from unclip.clip.model import CLIP, CLIPConfig
from unclip.clip.preprocess import Preprocess
from unclip.clip.preprocess_config import PreprocessConfig
from unclip.clip.pretrained import load_clip
from unclip.clip.text import TextConfig
from unclip.clip.text_features import TextFeatures, encode_captions, encode_token_ids
from unclip.clip.tokenizer import Tokenizer
from unclip.clip.vision import VisionConfig

__all__ = [
    "CLIP",
    "CLIPConfig",
    "Preprocess",
    "PreprocessConfig",
    "TextConfig",
    "TextFeatures",
    "Tokenizer",
    "VisionConfig",
    "encode_captions",
    "encode_token_ids",
    "load_clip",
]
