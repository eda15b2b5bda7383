"""CLIP alone, on the test images: zero-shot accuracy, caption retrieval, and the modality gap."""

import torch
import torch.nn.functional as F

from stages.clip import caption_recall
from stages.evaluation.attributes import has_attributes, measure_told_apart
from stages.evaluation.metrics import modality_gap, share_with_interval
from stages.evaluation.section import EvaluationContext, Section


def measure_clip(context: EvaluationContext) -> Section:
    """Measure zero-shot accuracy, recall of captions and of images, attributes, and the modality gap."""
    test = context.embedded_test.data
    embeddings = context.embedded_test.embeddings
    text_embeddings = context.embedded_test.text_embeddings
    prompts = [context.pipe.encode_text(captions).mean(dim=0).cpu() for captions in test.class_prompts]
    ensemble = F.normalize(torch.stack(prompts), dim=-1)  # Radford et al. 2021, section 3.1.4
    is_right = (embeddings @ ensemble.T).argmax(dim=1) == test.labels
    is_right_plain = (embeddings @ context.caption_embeddings.T).argmax(dim=1) == test.labels
    caption_ids = test.draw(torch.arange(len(test)), torch.Generator().manual_seed(context.seed))
    figures = {
        "zero_shot": share_with_interval(is_right),
        "zero_shot_plain_caption": share_with_interval(is_right_plain),
        "zero_shot_by_class": {
            name: share_with_interval(is_right[test.labels == label]) for label, name in enumerate(test.classes)
        },
        "recall": caption_recall(embeddings, test, lambda ids: text_embeddings[ids]),
        "modality_gap": modality_gap(embeddings, text_embeddings[caption_ids]),
        "images": len(test),
    }
    if has_attributes(test):
        figures["attributes"] = measure_told_apart(context.pipe, test, embeddings)
    return Section(figures)
