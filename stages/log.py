"""What a training tells: to people a bar on a terminal or plain lines, to programs metrics.jsonl."""

import json
import math
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from stages import runtime
from stages.state import Progress
from unclip.errors import UserError
from unclip.files import write_atomically


class Log:
    """Progress for people (a bar on a terminal, plain lines elsewhere) and for programs (metrics.jsonl)."""

    def __init__(self, path: Path, stage: Any, config: Any, progress: Progress):
        self.path, self.stage, self.config, self.progress = path, stage, config, progress
        self.recent: list[dict[str, float | Tensor]] = []
        self.mark = (progress.step, progress.seconds)
        self.bar = None
        if runtime.is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_lines_after(progress.step)
            millions = sum(p.numel() for p in stage.model.parameters()) / 1e6
            going_on = f", going on from step {progress.step}" if progress.step else ""
            runtime.print0(
                f"{stage.name}: {millions:.2f}M parameters, {stage.size} examples, {config.steps} steps of "
                f"{config.batch_size} on {next(stage.model.parameters()).device}{going_on}"
            )
            if sys.stderr.isatty():
                self.bar = tqdm(total=config.steps, initial=progress.step, desc=stage.name, unit="step")

    def _drop_lines_after(self, step: int) -> None:
        """Lines that an interrupted run wrote after its last saved state will be written again."""
        if self.path.exists():
            whole = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            write_atomically(self.path, "".join(line for line in whole if json.loads(line)["step"] <= step))

    def step(self, figures: dict[str, float | Tensor]) -> None:
        """Take note of a step. At intervals, and wherever the state is saved, log the means since the last time.

        Raises UserError if the loss is no longer finite.
        """
        self.recent.append(figures)
        if self.bar is not None:
            self.bar.update()
        step = self.progress.step
        due = (self.config.log_every, self.config.evaluate_every, self.config.save_every)
        if all(step % every for every in due) and step != self.config.steps:
            return
        own = [sum(float(figures[k]) for figures in self.recent) / len(self.recent) for k in figures]
        device = next(self.stage.model.parameters()).device
        means = dict(zip(figures, runtime.mean_over_ranks(own, device), strict=True))
        if not math.isfinite(means["loss"]):
            raise UserError(f"{self.stage.name}: the loss is {means['loss']} near step {step}; try a lower --train.lr")
        images = (step - self.mark[0]) * self.config.batch_size
        rate = images / (self.progress.seconds - self.mark[1])
        left = (self.config.steps - step) * self.config.batch_size / rate
        self.recent, self.mark = [], (step, self.progress.seconds)
        self._write({**means, "lr": figures["lr"], "images_per_second": rate})
        told = ", ".join(f"{k} {v:.4g}" for k, v in means.items() if k not in ("grad_norm", "lr"))
        self._say(f"{told}, {rate:.0f} images/s, {int(left) // 60}:{int(left) % 60:02d} left")

    def validation(self, figures: dict[str, float]) -> None:
        self._write({f"validation/{key}": value for key, value in figures.items()})
        self._say("validation: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()), keep=True)

    def _say(self, message: str, keep: bool = False) -> None:
        if self.bar is not None and not keep:
            self.bar.set_postfix_str(message)
        elif runtime.is_main():
            tqdm.write(f"{self.stage.name} {self.progress.step}/{self.config.steps}: {message}", file=sys.stderr)

    def _write(self, figures: dict[str, float]) -> None:
        if runtime.is_main():
            line = {"step": self.progress.step, "seconds": round(self.progress.seconds, 2), **figures}
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
