"""Say what training takes, before it is started: parameters, operations, memory, days, and what breaks first.

    python -m stages.plan                                               # preset quick on two CPU cores
    python -m stages.plan --preset base --device 4090
    python -m stages.plan --preset paper --images 650M --gpus 256 --device h100
    python -m stages.plan --preset base --also fast_decoder upsampler
    python -m stages.plan --preset base --images 3M --epochs 10 --size 64 --decoder.model.width 128

The models are counted without memory (stages/plan/counting.py); nothing is computed. Options of a part are its
trainer's, after the part's name: --clip.model.vision.width, --prior.model.layers and so on. The assumed
devices are in stages/plan/machine.py; --mfu, --disk, --ram and --loader describe what is around them. Not counted:
validation, previews, and what Muon computes.
"""

from collections.abc import Sequence

from unclip.cli.run import run


def main(argv: Sequence[str] | None = None) -> None:
    from stages.plan.plan_options import check_planned, plan_presets
    from stages.plan.plan_report import plan
    from unclip.cli.options import find_options, parse_run
    from unclip.registry import PARTS

    kinds = find_options(argv, {part: [f"{part}.kind"] for part in PARTS})
    presets = plan_presets(kinds)
    options = parse_run(presets, __doc__, argv)
    check_planned(options, presets[options.preset])
    print(plan(options))


if __name__ == "__main__":
    run(main)
