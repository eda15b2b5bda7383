"""CLIP and the prior, each alone, on the embeddings of the test images."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from stages.clip import caption_recall
from stages.embed import EmbeddedImages
from stages.evaluation.attributes import has_attributes, told_apart
from stages.evaluation.metrics import distance_of_draws, mean, modality_gap, same_group_cosine, share, share_of_gap
from stages.evaluation.reference import Section
from stages.prior import pair_cosines
from unclip import UnCLIP

GUIDANCE = (1.0, 1.5, 2.0, 4.0)
BATCH = 500


def clip_section(pipe: UnCLIP, embedded: EmbeddedImages, seed: int) -> Section:
    """Zero-shot accuracy, caption retrieval, attributes, and the modality gap."""
    test, embeddings = embedded.data, embedded.embeddings
    prompts = [pipe.encode_text(captions).mean(dim=0).cpu() for captions in test.class_prompts]
    ensemble = F.normalize(torch.stack(prompts), dim=-1)  # Radford et al. 2021, section 3.1.4
    plain = pipe.encode_text(test.class_captions).cpu()
    right = (embeddings @ ensemble.T).argmax(dim=1) == test.labels
    own_captions = embedded.text_embeddings[test.draw(torch.arange(len(test)), torch.Generator().manual_seed(seed))]
    figures = {
        "zero_shot": share(right),
        "zero_shot_plain_caption": share((embeddings @ plain.T).argmax(dim=1) == test.labels),
        "zero_shot_by_class": {name: share(right[test.labels == c]) for c, name in enumerate(test.classes)},
        "recall": caption_recall(embeddings, test, lambda ids: embedded.text_embeddings[ids]),
        "modality_gap": modality_gap(embeddings, own_captions),
        "images": len(test),
    }
    if has_attributes(test):
        figures["attributes"] = told_apart(pipe, test, embeddings)
    return Section(figures)


def prior_section(pipe: UnCLIP, embedded: EmbeddedImages, samples: int, seed: int) -> Section:
    """Cosines to the true embedding, with their ceiling and floors; and how far the draws of a caption spread."""
    test, own = embedded.data, pipe.sampling.prior
    count = min(samples, len(test))
    settings = dict.fromkeys([*((1, scale) for scale in GUIDANCE), (own.num_candidates, own.guidance)])
    rows = []
    for draws, scale in settings:
        cosines = pair_cosines(pipe.prior, embedded, count, replace(own, num_candidates=draws, guidance=scale))
        row = {
            "prior_num_candidates": draws,
            "prior_guidance": scale,
            **{name: mean(values) for name, values in cosines.items()},
        }
        row["gap_closed"] = share_of_gap(cosines["sample"], cosines["text"], cosines["ceiling"])
        rows.append(row | {"distance": distance_of_draws(cosines["sample"], cosines["redrawn"], cosines["ceiling"])})
    classes = len(test.classes)
    n = max(2, count // classes)
    drawn = pipe.embed(test.class_captions, n, seed, prior_num_candidates=1, batch_size=BATCH).cpu()
    same_caption = torch.arange(classes).repeat_interleave(n)
    spread_of_draws = mean(1 - same_group_cosine(drawn, same_caption))
    spread_of_real = mean(1 - same_group_cosine(embedded.embeddings, test.labels))
    return Section({"cosines": rows, "spread_of_draws": spread_of_draws, "spread_of_real": spread_of_real})
