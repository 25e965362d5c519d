"""A bar for a stage: examples and tokens a second, the time left, the loss of the largest and the smallest.

Where stderr is no terminal, plain lines say the same, so that the log of a long run shows where it is.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_WRITES = 10.0


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


T = TypeVar("T")


def told(items: Iterable[T], count: int, name: str, say: Callable[[str], None], *, quiet: bool = False) -> Iterator[T]:
    """The items, with a bar where stderr is a terminal, else with a line in every ``SECONDS_BETWEEN_LINES``."""
    bar = tqdm(items, total=count, desc=name, unit=" batches", disable=True if quiet else None)
    began = spoke = time.perf_counter()
    for done, item in enumerate(bar):
        now = time.perf_counter()
        if bar.disable and not quiet and done and now - spoke >= SECONDS_BETWEEN_LINES:
            spoke = now
            left = (count - done) * (now - began) / done
            say(f"{name}: batch {done} of {count}, {left / 60:.1f} min left")
        yield item


class StageClock(TrainerCallback):
    """The seconds that a stage took in all its runs, kept in a file: a run that is killed loses at most what passed
    since a checkpoint, or since the last ``SECONDS_BETWEEN_WRITES`` and the step after them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._began = self._wrote = time.perf_counter()
        try:
            self._before = float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
        except (OSError, ValueError, TypeError, KeyError):  # none yet, or damaged: a time is not worth a refusal
            self._before = 0.0

    def seconds(self) -> float:
        """So far, those of earlier runs added."""
        return self._before + time.perf_counter() - self._began

    def write(self) -> None:
        """Keeps them; a disk that is full is told by the checkpoint that does not fit."""
        self._wrote = time.perf_counter()
        aside = self._path.with_suffix(".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps({"seconds": round(self.seconds(), 1)}) + "\n", encoding="utf-8")
            os.replace(aside, self._path)
        except OSError:
            pass

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and time.perf_counter() - self._wrote >= SECONDS_BETWEEN_WRITES:
            self.write()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self.write()


class StageProgress(TrainerCallback):
    """Takes the place of Trainer's own bar; nothing is shown with ``disable_tqdm``.

    Args:
        name: of the stage.
        say: takes a plain line, where stderr is no terminal; at most one in ``SECONDS_BETWEEN_LINES``.
    """

    def __init__(self, name: str, say: Callable[[str], None] = _to_stderr) -> None:
        self.name, self._say = name, say
        self._bar: Any = None
        self._last = (0.0, 0)
        self._lines: bool = False
        self._shown: dict[str, str] = {}
        self._began = self._spoke = (0.0, 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero:
            self._size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            self._bar = tqdm(
                total=state.max_steps * self._size,
                initial=state.global_step * self._size,
                unit=" examples",
                desc=self.name,
                disable=True if args.disable_tqdm else None,
            )
            self._last = (time.perf_counter(), int(state.num_input_tokens_seen))
            self._lines = self._bar.disable and not args.disable_tqdm
            self._began = self._spoke = (time.perf_counter(), state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is None:
            return
        self._bar.update(self._size)
        if self._lines and time.perf_counter() - self._spoke[0] >= SECONDS_BETWEEN_LINES:
            self._tell(state)

    def _tell(self, state: TrainerState) -> None:
        now, step = time.perf_counter(), state.global_step
        # The rate since the line before, the time left by the rate of all that was done.
        rate = (step - self._spoke[1]) * self._size / max(now - self._spoke[0], 1e-9)
        left = (state.max_steps - step) * (now - self._began[0]) / max(step - self._began[1], 1)
        self._spoke = (now, step)
        facts = ", ".join(f"{name} {value}" for name, value in self._shown.items())
        self._say(
            f"{self.name}: step {step} of {state.max_steps}, {rate:.1f} examples/s, {left / 60:.1f} min left"
            + (f", {facts}" if facts else "")
        )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if self._bar is None or not logs:
            return
        losses = [(name, value) for name, value in logs.items() if name.startswith("loss_")]
        if not losses:
            return
        now, tokens = time.perf_counter(), int(state.num_input_tokens_seen)
        rate = (tokens - self._last[1]) / max(now - self._last[0], 1e-9)
        self._last = (now, tokens)
        shown = {name.removeprefix("loss_"): f"{value:.3f}" for name, value in (losses[0], losses[-1])}
        self._shown = {**shown, "tokens/s": f"{rate:.0f}"}
        self._bar.set_postfix(self._shown, refresh=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            if self._lines and state.global_step > self._spoke[1]:
                self._tell(state)
            self._bar.close()
            self._bar = None
