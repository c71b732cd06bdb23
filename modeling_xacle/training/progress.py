"""Reports a run's progress: the package's log on stderr, and lines instead of bars if there is no terminal."""

import logging
import os
import sys
import time
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as transformers_logging

logger = transformers_logging.get_logger(__name__)

SECONDS_BETWEEN_LINES = 30


class _AboveBars(logging.Handler):
    """Writes to stderr without breaking progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def log_to_stderr() -> None:
    """Show the package's log: level info and above in the first process, warnings in the others."""
    package = logging.getLogger(__name__.split(".")[0])
    package.addHandler(_AboveBars())
    package.setLevel(logging.WARNING if int(os.environ.get("RANK", 0)) else logging.INFO)


class ProgressLines(TrainerCallback):
    """
    Logs from time to time how far a run is, and a line for every evaluation.

    Args:
        seconds (`float`): Least time between two lines about steps.
    """

    def __init__(self, seconds: float = SECONDS_BETWEEN_LINES):
        self.seconds = seconds
        self.told, self.loss, self.batches = time.monotonic(), "", 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock, at the step where the run starts: a resumed run starts at a later one."""
        self.began = self.told = time.monotonic()
        self.first_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Keeps the training loss since the last log, if `logs` holds it."""
        if logs and "loss" in logs:
            self.loss = f", loss {logs['loss']:.4g}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Logs the step and the time left, estimated from the steps so far, evaluations included."""
        each = (time.monotonic() - self.began) / (state.global_step - self.first_step)
        left = timedelta(seconds=round(each * (state.max_steps - state.global_step)))
        self.tell(
            state, f"step {state.global_step} of {state.max_steps} (epoch {state.epoch:.2f}){self.loss}, {left} left"
        )

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Counts a finished batch of an evaluation."""
        self.batches += 1
        self.tell(state, f"validation: batch {self.batches} of {len(eval_dataloader)}")

    def tell(self, state: TrainerState, line: str) -> None:
        """Log a line, unless the last one is too recent."""
        if state.is_world_process_zero and time.monotonic() - self.told >= self.seconds:
            logger.info(line)
            self.told = time.monotonic()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Logs the `metrics`, which have the prefix `eval_`, without times and rates."""
        self.batches = 0
        if state.is_world_process_zero:
            shown = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
            found = [
                f"{name} {value:.4g}"
                for name, value in shown.items()
                if name != "epoch" and not name.endswith(("runtime", "per_second", "preparation_time"))
            ]
            logger.info(f"validation at step {state.global_step}: {', '.join(found)}")
