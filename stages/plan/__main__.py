"""Say what training takes, before it is started: parameters, operations, memory, days, and what breaks first.

    python -m stages.plan                                               # preset quick on two CPU cores
    python -m stages.plan --preset base --device 4090
    python -m stages.plan --preset paper --images 650M --gpus 256 --device h100
    python -m stages.plan --preset base --images 3M --epochs 10 --size 64 --decoder.model.width 128

From closed forms of the configs (stages/plan/costs.py); nothing is built or run. Sizes of the models are options,
named as the trainers': --clip.model.vision.width, --prior.model.layers and so on. What is assumed of the devices is in
stages/plan/machine.py, and of what is around them in --mfu, --disk, --ram and --loader. Not counted: validation,
previews, and what Muon computes.
"""

from collections.abc import Sequence

from unclip.cli.run import run


def main(argv: Sequence[str] | None = None) -> None:
    from stages.plan.report import PlanOptions, plan
    from unclip.cli.options import parse_run
    from unclip.registry import default_kind, find_kind, resolve

    by_part = [resolve(find_kind(part, default_kind(part)).presets) for part in ("clip", "prior", "decoder")]
    presets = {name: PlanOptions.of(*(presets[name] for presets in by_part)) for name in by_part[0]}
    print(plan(parse_run(presets, __doc__, argv)))


if __name__ == "__main__":
    run(main)
