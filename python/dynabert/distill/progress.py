"""A bar for a stage: examples and tokens a second, the time left, the loss of the largest and the smallest."""

from __future__ import annotations

import time
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StageProgress(TrainerCallback):
    """Takes the place of Trainer's own bar. Shown where stderr is a terminal and ``disable_tqdm`` is not set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._bar: Any = None
        self._last = (0.0, 0)

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

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._size)

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
        self._bar.set_postfix({**shown, "tokens/s": f"{rate:.0f}"}, refresh=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
