"""What a training tells: to people a bar or plain lines, curves and previews; to programs metrics.jsonl."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from stages import runtime
from stages.curves.__main__ import draw_curves, read_log
from stages.state import Progress, has_state, not_finite
from unclip.errors import UserError, reason
from unclip.images import save_png
from unclip.store.files import write_atomically


class Log:
    """Progress for people (a bar on a terminal, plain lines elsewhere; pictures) and for programs (metrics.jsonl)."""

    def __init__(self, path: Path, stage: Any, config: Any, progress: Progress):
        self.path, self.stage, self.config, self.progress = path, stage, config, progress
        self.mark = (progress.step, progress.seconds)
        self.bar = self.board = None
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
            if config.tensorboard:
                from torch.utils.tensorboard import SummaryWriter  # which is slow to import

                # what an interrupted run logged after its last saved state is not shown
                self.board = SummaryWriter(path.with_name("tensorboard"), purge_step=progress.step + 1)

    def _drop_lines_after(self, step: int) -> None:
        """Lines that an interrupted run wrote after its last saved state will be written again.

        What is broken is set aside: nothing depends on a log, so it stops no training.
        """
        if not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        steps = [_step_of(line) for line in lines]
        # of the last line a part is no damage: the writer was killed
        broken = [line for line, at in zip(lines[:-1], steps, strict=False) if at is None]
        if broken:
            aside = self.path.with_name("metrics-damaged.jsonl")
            write_atomically(aside, b"".join(broken))
            runtime.print0(f"{self.path} is damaged: {len(broken)} of its lines are put into {aside.name}")
        kept = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
        write_atomically(self.path, b"".join(kept))

    def step(self, figures: dict[str, float | Tensor]) -> None:
        """Take note of a step. At intervals, and wherever the state is saved, log the means since the last time.

        Raises UserError if a number is no longer finite.
        """
        recent, step = self.progress.recent, self.progress.step
        recent.append(figures)
        if self.bar is not None:
            self.bar.update()
        due = (self.config.log_every, self.config.evaluate_every, self.config.save_every)
        if all(step % every for every in due) and step != self.config.steps:
            return
        self.check({})
        own = [sum(float(figures[k]) for figures in recent) / len(recent) for k in figures]
        device = next(self.stage.model.parameters()).device
        means = dict(zip(figures, runtime.mean_over_ranks(own, device), strict=True))
        images = (step - self.mark[0]) * self.config.batch_size
        rate = images / max(self.progress.seconds - self.mark[1], 1e-9)
        left = (self.config.steps - step) * self.config.batch_size / rate
        self.mark = (step, self.progress.seconds)
        recent.clear()
        self._write({**means, "lr": figures["lr"], "images_per_second": rate})
        told = ", ".join(f"{k} {v:.4g}" for k, v in means.items() if k not in ("grad_norm", "lr"))
        self._say(f"{told}, {rate:.0f} images/s, {int(left) // 60}:{int(left) % 60:02d} left")

    def settle(self) -> None:
        """Make the figures since the last line the means over all ranks: another number of them may go on from here."""
        device = next(self.stage.model.parameters()).device
        for figures in self.progress.recent:
            own = [float(value) for value in figures.values()]
            figures.update(zip(figures, runtime.mean_over_ranks(own, device), strict=True))

    def check(self, tensors: dict[str, Tensor]) -> None:
        """Raise UserError for a figure since the last line, or a tensor to be saved, that is not finite.

        It suffices to look before something is saved: a step then waits for no device.
        """
        last = self.progress.step
        for step, figures in enumerate(self.progress.recent, last + 1 - len(self.progress.recent)):
            for name, value in figures.items():
                if not math.isfinite(value):
                    raise UserError(self._diverged(name.replace("grad_norm", "gradient norm"), float(value), step))
        if wrong := not_finite(tensors):
            raise UserError(self._diverged(wrong, "not finite", last))

    def _diverged(self, term: str, value: float | str, step: int) -> str:
        lower = (self.progress.rates[-1][1] if self.progress.rates else self.config.lr) / 10
        advice = f"nothing is saved yet: start anew with a lower learning rate, such as --train.lr {lower:.3g}"
        if has_state(self.path.with_name("state.safetensors")):
            advice = (
                "the last saved state is good: give the same command again with --resume-with and a lower learning "
                f"rate, such as {lower:.3g}"
            )
        return f"{self.stage.name}: the {term} is {value} at step {step}; {advice}"

    def validation(self, figures: dict[str, float]) -> None:
        self._write({f"validation/{key}": value for key, value in figures.items()})
        self._say("validation: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()), keep=True)
        self.draw()

    def draw(self) -> None:
        """Draw curves.png anew. Nothing depends on it, so that a failure to do so stops no training."""
        try:
            draw_curves(self.path.with_name("curves.png"), {self.stage.name: read_log(self.path)}, self.stage.name)
        except Exception as error:  # of a drawing library, or of the disk
            self._say(f"curves.png is not drawn ({reason(error)})", keep=True)

    def preview(self, picture: Image.Image) -> None:
        save_png(self.path.with_name(f"preview-{self.progress.step:06d}.png"), picture)
        if self.board is not None:
            pixels = np.asarray(picture.convert("RGB"))
            self.board.add_image("preview", pixels, self.progress.step, dataformats="HWC")

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
            if self.board is not None:
                for name, value in figures.items():
                    self.board.add_scalar(name, value, self.progress.step)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.board is not None:
            self.board.close()


def _step_of(line: bytes) -> int | None:
    """The step that a line of metrics.jsonl is of; None for what is no whole line."""
    try:
        figures = json.loads(line)
        return figures["step"] if line.endswith(b"\n") and isinstance(figures["step"], int) else None
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
