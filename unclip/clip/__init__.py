from unclip.clip.model import CLIP, CLIPConfig
from unclip.clip.pretrained import Preprocess, load_clip
from unclip.clip.text import TextConfig
from unclip.clip.tokenizer import Tokenizer
from unclip.clip.vision import VisionConfig

__all__ = ["CLIP", "CLIPConfig", "Preprocess", "TextConfig", "Tokenizer", "VisionConfig", "load_clip"]
