"""Record a training: progress, curves and previews for people; metrics.jsonl for programs."""

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
from stages.curves.drawing import draw_curves, read_metrics
from stages.sharding import own_share
from stages.state import Progress, has_state
from unclip.errors import UserError, quantity, reason
from unclip.images import save_png
from unclip.store.files import write_atomically
from unclip.store.tensors import not_finite


class Log:
    """The log of one training.

    On a terminal it shows a progress bar, elsewhere it prints plain lines. It writes figures to metrics.jsonl, and
    draws curves and previews beside that file.
    """

    def __init__(self, path: Path, stage: Any, config: Any, progress: Progress, examples: Any):
        self.path = path
        self.stage = stage
        self.config = config
        self.progress = progress
        self.logged_step = progress.step
        self.logged_seconds = progress.seconds
        self.bar = None
        self.board = None
        if runtime.is_main():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._drop_lines_after(progress.step)
            millions = sum(p.numel() for p in stage.model.parameters()) / 1e6
            resumed = f", going on from step {progress.step}" if progress.step else ""
            warming = ", all of them warm-up" if config.warmup >= config.steps else ""
            runtime.print0(
                f"{stage.name}: {millions:.2f}M parameters, {examples}, {quantity(config.steps, 'step')} of "
                f"{config.batch_size} on {next(stage.model.parameters()).device}{warming}{resumed}"
            )
            if sys.stderr.isatty():
                self.bar = tqdm(total=config.steps, initial=progress.step, desc=stage.name, unit="step")
            if config.tensorboard:
                from torch.utils.tensorboard import SummaryWriter  # slow to import

                # Hide the steps that an interrupted run logged after its last saved state.
                self.board = SummaryWriter(path.with_name("tensorboard"), purge_step=progress.step + 1)

    def _drop_lines_after(self, step: int) -> None:
        """Drop the lines that an interrupted run wrote after its last saved state: they will be written again.

        Broken lines are moved to another file. Nothing depends on a log, so a damaged one stops no training.
        """
        if not self.path.exists():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        steps = [_logged_step(line) for line in lines]
        # An unfinished last line is no damage: the program was killed while it wrote.
        broken = [line for line, line_step in zip(lines[:-1], steps, strict=False) if line_step is None]
        if broken:
            damaged_path = self.path.with_name("metrics-damaged.jsonl")
            write_atomically(damaged_path, b"".join(broken))
            runtime.print0(f"{self.path} is damaged: {len(broken)} of its lines are moved to {damaged_path.name}")
        valid = [
            line for line, line_step in zip(lines, steps, strict=True) if line_step is not None and line_step <= step
        ]
        write_atomically(self.path, b"".join(valid))

    def record_step(self, figures: dict[str, float | Tensor]) -> None:
        """Record the figures of a step. At intervals, and at every saved state, log their means since the last line.

        Raises UserError if a figure is not finite.
        """
        recent = self.progress.recent
        step = self.progress.step
        recent.append(figures)
        if self.bar is not None:
            self.bar.update()
        if not self.is_due(step):
            return
        self.check_finite({})
        values = {name: [float(figures[name]) for figures in recent if name in figures] for name in figures}
        rank_means = [sum(series) / len(series) for series in values.values()]
        device = next(self.stage.model.parameters()).device
        means = dict(zip(figures, runtime.mean_over_ranks(rank_means, device), strict=True))
        images = (step - self.logged_step) * self.config.batch_size
        rate = images / max(self.progress.seconds - self.logged_seconds, 1e-9)
        seconds_left = int((self.config.steps - step) * self.config.batch_size / rate)
        self.logged_step = step
        self.logged_seconds = self.progress.seconds
        recent.clear()
        self._write({**means, "lr": figures["lr"], "images_per_second": rate})
        text = ", ".join(f"{name} {mean:.4g}" for name, mean in means.items() if name not in ("grad_norm", "lr"))
        self._print(f"{text}, {rate:.0f} images/s, {seconds_left // 60}:{seconds_left % 60:02d} left")

    def is_due(self, step: int) -> bool:
        """True for a step that writes a line."""
        intervals = (self.config.log_every, self.config.evaluate_every, self.config.save_every)
        return step == self.config.steps or not all(step % interval for interval in intervals)

    def average_over_ranks(self) -> None:
        """Replace the figures since the last line by their means over all ranks.

        A saved state holds them, and another number of ranks may go on from it.
        """
        device = next(self.stage.model.parameters()).device
        for figures in self.progress.recent:
            rank_values = [float(value) for value in figures.values()]
            figures.update(zip(figures, runtime.mean_over_ranks(rank_values, device), strict=True))

    def check_finite(self, tensors: dict[str, Tensor]) -> None:
        """Raise UserError for a figure since the last line, or one of the tensors to be saved, that is not finite.

        It is enough to check before something is saved, so no step has to wait for the device.
        """
        last_step = self.progress.step
        first_step = last_step + 1 - len(self.progress.recent)
        for step, figures in enumerate(self.progress.recent, first_step):
            for name, value in figures.items():
                if not math.isfinite(value):
                    raise UserError(self._diverged(name.replace("grad_norm", "gradient norm"), float(value), step))
        name = not_finite({name: own_share(tensor) for name, tensor in tensors.items()})
        names = runtime.gather_values(name) if tensors else []
        if name := next(filter(None, names), None):
            raise UserError(self._diverged(name, "not finite", last_step))

    def _diverged(self, term: str, value: float | str, step: int) -> str:
        """Return the message that a number is not finite, and how to go on."""
        lower_rate = (self.progress.rates[-1][1] if self.progress.rates else self.config.lr) / 10
        lower_rates = f"--train.lr {lower_rate:.3g}"
        if self.config.muon_lr:
            lower_rates += f" --train.muon-lr {self.config.muon_lr / 10:.3g}"
        advice = f"nothing is saved yet: start anew with a lower learning rate, such as {lower_rates}"
        if has_state(self.path.with_name("state.safetensors")):
            advice = (
                "the last saved state is good: give the same command again with --resume-with and a lower learning "
                f"rate, such as {lower_rate:.3g}"
            )
        return f"{self.stage.name}: the {term} is {value} at step {step}; {advice}"

    def record_validation(self, figures: dict[str, float]) -> None:
        """Log validation figures, and draw the curves anew."""
        self._write({f"validation/{name}": value for name, value in figures.items()})
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self._print(f"validation: {text}", permanent=True)
        self._draw_curves()

    def _draw_curves(self) -> None:
        """Draw curves.png. Nothing depends on it, so a failure stops no training."""
        name = self.stage.name
        try:
            draw_curves(self.path.with_name("curves.png"), {name: read_metrics(self.path)}, name)
        except Exception as error:  # the drawing library's or the disk's
            self._print(f"curves.png is not drawn ({reason(error)})", permanent=True)

    def save_preview(self, picture: Image.Image) -> None:
        save_png(self.path.with_name(f"preview-{self.progress.step:06d}.png"), picture)
        if self.board is not None:
            pixels = np.asarray(picture.convert("RGB"))
            self.board.add_image("preview", pixels, self.progress.step, dataformats="HWC")

    def _print(self, message: str, permanent: bool = False) -> None:
        """Print a line; where there is a bar, show the message beside it unless it is to stay."""
        if self.bar is not None and not permanent:
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


def _logged_step(line: bytes) -> int | None:
    """Return the step of a line of metrics.jsonl, or None for a broken line."""
    try:
        figures = json.loads(line)
        return figures["step"] if line.endswith(b"\n") and isinstance(figures["step"], int) else None
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
