"""Rules on CLIP."""

from stages.doctor.evidence import Evidence
from stages.doctor.finding import Finding, Rule

AT_CHANCE = 0.6
"""Share of pairs in which an image prefers its own caption: 0.5 for a CLIP that knows nothing."""
HEALTHY = 0.9
"""The committed CLIPs reach 0.99; one of 60 steps, from which nothing good can be drawn, stays below."""
LONGEST_MEAN = 0.995
"""Length of the mean of unit embeddings. It leaves 1% of the squared length to tell images apart; the committed CLIPs
leave more than half, one of 60 steps some 4%."""
HIGHEST_SCALE = 99.0
"""The factor on cosines is clamped to 100."""


def tells_captions_apart(evidence: Evidence, part: str) -> Finding | None:
    if not evidence.differ.any():
        return None
    similarity = evidence.embeddings @ evidence.text.embedding.T
    share = (similarity.diagonal()[:, None] > similarity)[evidence.differ].float().mean().item()
    figure = (
        f"an image is closer to its own caption than to another in {share:.0%} of pairs (chance: 50%, healthy: above "
        f"{HEALTHY:.0%})"
    )
    if share < AT_CHANCE:
        return Finding(
            "undertrained",
            f"CLIP is at chance: {figure}",
            "check that captions belong to their images (python -m data.inspect), then train longer",
        )
    if share < HEALTHY:
        return Finding("undertrained", figure, "train longer, on larger batches, or on more images")
    return None


def embeddings_differ(evidence: Evidence, part: str) -> Finding | None:
    length = evidence.embeddings.mean(dim=0).norm().item()
    if length < LONGEST_MEAN:
        return None
    return Finding(
        "collapsed",
        f"all images have nearly the same embedding: the mean is {length:.3f} long (healthy: below {LONGEST_MEAN})",
        "train longer, or with a lower learning rate if the loss has stopped at chance",
    )


def scale_at_bound(evidence: Evidence, part: str) -> Finding | None:
    manifest = evidence.manifests["clip"]
    scale = manifest.figures.get("logit_scale", 0.0)
    if "pretrained" in manifest.training or scale < HIGHEST_SCALE:
        return None
    return Finding(
        "diverged",
        f"the logit scale is at its bound, {scale:.0f} (healthy: below {HIGHEST_SCALE:.0f}), as after training on few "
        "images for long",
        "train for fewer steps, on more images, or with a lower rate",
    )


RULES = (
    Rule("images prefer their captions", ("clip",), ("clip",), tells_captions_apart),
    Rule("embeddings of images differ", ("clip",), ("clip",), embeddings_differ),
    Rule("the logit scale is free", ("clip",), (), scale_at_bound),
)
