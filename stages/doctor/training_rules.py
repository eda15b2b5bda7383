"""Rules on the log and the options of a training: they hold for every part."""

from itertools import pairwise
from statistics import median

from stages.doctor.evidence import Evidence
from stages.doctor.finding import Finding, Rule
from unclip.registry import PARTS

ALL = tuple(PARTS)
CHANCE_SHARE = {"clip": 0.9}
"""Share of the chance loss above which a part has learned next to nothing. Repeated captions keep CLIP's loss far from
0. For the others it is `ERROR_SHARE`."""
ERROR_SHARE = 0.6
"""The committed decoder's loss is 0.14 of the chance loss, the committed prior's 0.07; a decoder that draws blurred
shapes, after 60 steps, has 0.75."""
SPIKE = 0.3
"""A jump of the loss by this share of what the training had gained. Lines of the log are means over many steps, which
vary by a few percent."""
WAVER = 3
"""A jump must also exceed this many times the median rise from line to line before it: in further training the loss may
vary more than it falls."""
RISE = 1.15
"""Growth of the validation loss over its best value. Its batches and noise are the same each time, so that it has no
noise of its own; 15% is beyond the waver of a rate that is still high."""
AVERAGED_SHARE = 0.5
"""Share of the steps that the moving average may span; presets span at most 0.4."""


def breaks_off(evidence: Evidence, part: str) -> Finding | None:
    manifest = evidence.manifests[part]
    if manifest.complete:
        return None
    steps = evidence.train_options(part).get("steps", "unknown")
    return Finding(
        "undertrained",
        f"these weights are of step {manifest.step}, and the training has not reached its last, {steps}",
        "give the training command again: it goes on where it stopped",
    )


def losses(evidence: Evidence, part: str) -> list[float]:
    return [line["loss"] for line in evidence.log(part) if "loss" in line]


def near_chance(evidence: Evidence, part: str) -> Finding | None:
    lines = [line for line in evidence.log(part) if "loss" in line and "chance_loss" in line]
    last = lines[-max(1, len(lines) // 4) :]
    if not last:
        return None
    share = sum(line["loss"] for line in last) / sum(line["chance_loss"] for line in last)
    bound = CHANCE_SHARE.get(part, ERROR_SHARE)
    if share <= bound:
        return None
    if share > 1.5:
        return Finding(
            "diverged",
            f"the loss ends at {share:.1f} times that of a model that ignores its input",
            "train with a lower learning rate: --train.lr and --train.muon-lr divided by 10",
        )
    return Finding(
        "undertrained",
        f"the loss ends at {share:.2f} of that of a model that ignores its input (healthy: below {bound})",
        "train longer (--train.steps), or, if the loss did not fall at all, with another learning rate",
    )


def spikes(evidence: Evidence, part: str) -> Finding | None:
    values = losses(evidence, part)
    if len(values) < 6:
        return None
    gained = values[0] - min(values)
    for i in range(3, len(values)):
        rises = [second - first for first, second in pairwise(values[:i]) if second > first]
        usual = WAVER * median(rises) if rises else 0.0
        jump = values[i] - median(values[max(0, i - 3) : i])
        if gained > 0 and jump > max(SPIKE * gained, usual, 0.1 * values[i]):
            step = [line["step"] for line in evidence.log(part) if "loss" in line][i]
            return Finding(
                "diverged",
                f"at step {step} the loss jumps by {jump / gained:.0%} of all that was gained (healthy: below "
                f"{SPIKE:.0%}, or what it varies by)",
                "train with half the learning rate, or a longer --train.warmup",
            )
    return None


def validation_rises(evidence: Evidence, part: str) -> Finding | None:
    values = [line["validation/loss"] for line in evidence.log(part) if "validation/loss" in line]
    values = values or [line["validation/distance"] for line in evidence.log(part) if "validation/distance" in line]
    if len(values) < 3 or min(values) <= 0 or values[-1] < RISE * min(values):
        return None
    return Finding(
        "leaking",
        f"the validation loss has risen to {values[-1] / min(values):.2f} times its best (healthy: below {RISE}), so "
        "the part learns its training images by heart",
        "use more images, fewer steps or a smaller model; the weights that were kept are those of the best validation",
    )


def average_too_long(evidence: Evidence, part: str) -> Finding | None:
    options = evidence.train_options(part)
    if not {"ema", "steps"} <= options.keys() or options["ema"] >= 1:
        return None
    spanned = 1 / (1 - options["ema"])
    if spanned <= AVERAGED_SHARE * options["steps"]:
        return None
    return Finding(
        "undertrained",
        f"the moving average spans {spanned:.0f} steps of a run of {options['steps']} (healthy: at most half), so that "
        "weights of its beginning are saved",
        f"train with --train.ema {max(0.0, 1 - 10 / options['steps']):.4g}, or longer",
    )


def rate_rises_long(evidence: Evidence, part: str) -> Finding | None:
    options = evidence.train_options(part)
    if not {"warmup", "steps"} <= options.keys() or options["warmup"] <= options["steps"] / 2:
        return None
    return Finding(
        "undertrained",
        f"the learning rate rises for {options['warmup']} of {options['steps']} steps (healthy: at most half)",
        "train with a shorter --train.warmup",
    )


def rate_ends_early(evidence: Evidence, part: str) -> Finding | None:
    """The cosine spends 7% of the steps below 1% of its peak; a rate that was lowered by hand, many more."""
    rates = [line["lr"] for line in evidence.log(part) if "lr" in line]
    if len(rates) < 8:
        return None
    idle = sum(rate < 0.01 * max(rates) for rate in rates[rates.index(max(rates)) :]) / len(rates)
    if idle <= 0.25:
        return None
    return Finding(
        "undertrained",
        f"in {idle:.0%} of the log the learning rate is below 1% of its peak (healthy: at most 25%)",
        "train on with --init-from in another --out, and without --resume-with",
    )


RULES = (
    Rule("the training has ended", ALL, (), breaks_off),
    Rule("the loss is below chance", ALL, ("log",), near_chance),
    Rule("the loss does not jump", ALL, ("log",), spikes),
    Rule("the validation loss does not rise", ALL, ("log",), validation_rises),
    Rule("the moving average is shorter than the run", ALL, (), average_too_long),
    Rule("the learning rate rises in time", ALL, (), rate_rises_long),
    Rule("the learning rate lasts to the end", ALL, ("log",), rate_ends_early),
)
