"""What a sub-network costs, as a sum: something once, and something for every layer it keeps.

    ms = fixed + sum over kept layers of (layer + f(heads) + g(neurons) + wave * waves(neurons))

``f`` and ``g`` start at 0, never fall, and are straight between their nodes. Neurons count in whole panels, since a
kernel computes a panel as one; and in whole waves, a panel for each thread, since the last wave takes as long with one
panel as with all. All layers of an encoder have the same sizes, so they share one ``f`` and one ``g``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dynabert.profile.damage import check_count, check_curve, check_number

Numbers = npt.NDArray[np.float64]
Counts = npt.NDArray[np.integer[Any]]

# How much a bend of f or g weighs against the residuals. Steady times deserve their bends, restless ones must not make
# any up; so the times themselves decide, by parts of them that a fit to the others predicts best.
SMOOTHNESS = (0.03, 0.1, 0.3, 1.0, 3.0)
PARTS = 5
LARGEST_HONEST_RESIDUAL = 0.03  # relative; a sample that is further off counts less, since it was likely disturbed
ROBUST_ROUNDS = 6


@dataclass(frozen=True)
class LayerCosts:
    """The fitted sum of one batch size, sequence length and dtype; all in milliseconds.

    Raises ``ValueError`` for a value that no fit gives, naming the field.

    ``fixed_ms``: embeddings, pooler, classifier and the call. ``layer_ms``: a kept layer with the fewest heads and
    neurons. ``head_ms`` and ``neuron_ms``: what is added at each node, rising from 0. ``neuron_step``: neurons in a
    panel. ``wave_ms``: for each wave of ``wave_step`` neurons begun; 0 for one thread, whose waves are its panels.
    """

    fixed_ms: float
    layer_ms: float
    head_nodes: tuple[int, ...]
    head_ms: tuple[float, ...]
    neuron_nodes: tuple[int, ...]
    neuron_ms: tuple[float, ...]
    neuron_step: int
    wave_step: int = 1
    wave_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fixed_ms", "layer_ms", "wave_ms"):
            check_number(name, getattr(self, name))
        for name in ("neuron_step", "wave_step"):
            check_count(name, getattr(self, name))
        check_curve("head", self.head_nodes, self.head_ms)
        check_curve("neuron", self.neuron_nodes, self.neuron_ms)

    def predict(self, heads: Counts, neurons: Counts) -> Numbers:
        """(N,) milliseconds of N sub-networks; ``heads``, ``neurons``: (N, L), 0 where a layer is skipped."""
        kept = np.asarray(heads) > 0
        per_layer = (
            self.layer_ms
            + np.interp(heads, self.head_nodes, self.head_ms)
            + np.interp(whole_panels(neurons, self.neuron_step), self.neuron_nodes, self.neuron_ms)
            + self.wave_ms * (whole_panels(neurons, self.wave_step) // self.wave_step)
        )
        total: Numbers = self.fixed_ms + np.where(kept, per_layer, 0.0).sum(axis=1)
        return total


def whole_panels(neurons: Counts, step: int) -> Counts:
    """Neurons that a kernel computes for these: the next multiple of the panel."""
    rounded: Counts = -(-np.asarray(neurons) // step) * step
    return rounded


def head_nodes(heads: int) -> tuple[int, ...]:
    """Where ``f`` may bend: at every count up to 16 heads, else at 12 of them."""
    if heads <= 16:
        return tuple(range(1, heads + 1))
    return tuple(sorted({round(value) for value in np.linspace(1, heads, 12)}))


def neuron_nodes(neurons: int, step: int) -> tuple[int, ...]:
    """Where ``g`` may bend: one panel, a sixteenth, and every eighth of the neurons, in whole panels."""
    shares = (1 / 16, *(eighth / 8 for eighth in range(1, 9)))
    panels = {1, *(max(1, round(share * neurons / step)) for share in shares), -(-neurons // step)}
    return tuple(panel * step for panel in sorted(panels) if panel * step < neurons + step)


def fit_costs(
    heads: Counts, neurons: Counts, ms: Numbers, *, max_heads: int, max_neurons: int, step: int, threads: int = 1
) -> LayerCosts:
    """The sum that comes closest to measured times, each error relative to its time.

    Least squares in which no part is negative, so that more heads or neurons never cost less; bends of ``f`` and ``g``
    are held small where the measurements do not ask for them; samples far off count less.

    Args:
        heads, neurons: (N, L) counts of the measured sub-networks, 0 where a layer is skipped.
        ms: (N,) their times, above 0.
        max_heads, max_neurons: of the widest layer.
        step: neurons in a panel.
        threads: panels in a wave.
    """
    at_heads, at_neurons = head_nodes(max_heads), neuron_nodes(max_neurons, step)
    wave = step * threads
    waves = whole_panels(neurons, wave) // wave if threads > 1 else np.zeros_like(neurons)
    design, bends = _design(heads, whole_panels(neurons, step), waves, ms, at_heads, at_neurons)
    found = _robust(design, bends * _best_smoothness(design, bends))
    return LayerCosts(
        fixed_ms=float(found[0]),
        layer_ms=float(found[1]),
        head_nodes=at_heads,
        head_ms=(0.0, *np.cumsum(found[2 : 1 + len(at_heads)]).tolist()),
        neuron_nodes=at_neurons,
        neuron_ms=(0.0, *np.cumsum(found[1 + len(at_heads) : -1]).tolist()),
        neuron_step=step,
        wave_step=wave,
        wave_ms=float(found[-1]),
    )


def _design(
    heads: Counts,
    neurons: Counts,
    waves: Counts,
    ms: Numbers,
    at_heads: tuple[int, ...],
    at_neurons: tuple[int, ...],
) -> tuple[Numbers, Numbers]:
    """The rows that are to become 1, one for each time, and those that are to become 0, one for each possible bend.

    Columns: the fixed part, a kept layer, each step of ``f``, each step of ``g``, a wave.
    """
    kept = np.asarray(heads) > 0
    layers = kept.sum(axis=1)
    columns = [np.ones((len(ms), 1)), layers[:, None].astype(np.float64)]
    size = 2 + len(at_heads) - 1 + len(at_neurons) - 1 + 1
    # A bend weighs what it adds to a layer, against a layer's share of a middling network.
    layer_share = float(np.median(ms)) / max(1.0, float(np.median(layers)))
    bends = []
    first = 2
    for nodes, counts in ((at_heads, np.asarray(heads)), (at_neurons, neurons)):
        widths = np.diff(nodes).astype(np.float64)
        ramps = np.clip((counts[..., None] - np.array(nodes[:-1])) / widths, 0.0, 1.0)
        columns.append((ramps * kept[..., None]).sum(axis=1))
        for index in range(len(widths) - 1):
            bend = np.zeros(size)
            bend[first + index] = -widths.mean() / widths[index] / layer_share
            bend[first + index + 1] = widths.mean() / widths[index + 1] / layer_share
            bends.append(bend)
        first += len(widths)
    columns.append(waves.sum(axis=1, keepdims=True).astype(np.float64))
    return np.concatenate(columns, axis=1) / ms[:, None], np.array(bends).reshape(-1, size)


def _best_smoothness(design: Numbers, bends: Numbers) -> float:
    """The one whose fits to four fifths of the times predict the last fifth best, over all five."""
    if len(design) < 2:  # a network of one sub-network
        return SMOOTHNESS[-1]
    errors = []
    for smoothness in SMOOTHNESS:
        off = []
        for part in range(min(PARTS, len(design))):
            left_out = np.arange(len(design)) % PARTS == part
            found = _robust(design[~left_out], bends * smoothness)
            off.append(np.abs(design[left_out] @ found - 1.0))
        errors.append(float(np.concatenate(off).mean()))
    return SMOOTHNESS[int(np.argmin(errors))]


def _robust(design: Numbers, bends: Numbers) -> Numbers:
    """Least squares where a row that is far off counts less: Huber's weights, squares up to a residual that is still
    believed and absolute values beyond it."""
    weights = np.ones(len(design))
    found = np.zeros(design.shape[1])
    for _ in range(ROBUST_ROUNDS):
        rows = np.concatenate([design * weights[:, None], bends])
        found = nonnegative_least_squares(rows, np.concatenate([weights, np.zeros(len(bends))]))
        off = np.abs(design @ found - 1.0)
        limit = max(LARGEST_HONEST_RESIDUAL, 1.5 * float(np.median(off)))
        weights = np.sqrt(np.minimum(1.0, limit / np.maximum(off, 1e-12)))
        if (weights == 1.0).all():
            break
    return found


def nonnegative_least_squares(rows: Numbers, wanted: Numbers) -> Numbers:
    """The x >= 0 that makes ``|rows x - wanted|`` least: columns join one by one, and leave where they would be
    negative (Lawson and Hanson, Solving Least Squares Problems, chapter 23)."""
    scale = np.linalg.norm(rows, axis=0)
    scaled = rows / np.where(scale > 0.0, scale, 1.0)
    count = rows.shape[1]
    x, free = np.zeros(count), np.zeros(count, dtype=bool)
    tolerance = 1e-10 * max(1.0, float(np.abs(scaled.T @ wanted).max()))
    for _ in range(5 * count):
        gradient = scaled.T @ (wanted - scaled @ x)
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= tolerance:
            break
        free[best] = True
        while True:
            trial = np.zeros(count)
            trial[free] = np.linalg.lstsq(scaled[:, free], wanted, rcond=None)[0]
            bad = free & (trial <= 0.0)
            if not bad.any():
                x = trial
                break
            # Go towards the trial until the first column reaches 0; that one leaves.
            step = float(np.min(x[bad] / np.maximum(x[bad] - trial[bad], 1e-300)))
            x = x + step * (trial - x)
            leaving = bad & (x <= 1e-14)
            if not leaving.any():
                leaving = bad
            x[leaving] = 0.0
            free &= ~leaving
    result: Numbers = x / np.where(scale > 0.0, scale, 1.0)
    return result
