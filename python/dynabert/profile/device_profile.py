"""The latency of every sub-network on one device, from a file: predictions, their error, and where they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from dynabert.configuration import Subnet
from dynabert.profile.additive_model import LayerCosts, Numbers
from dynabert.profile.damage import check_count, check_number, check_text, naming
from dynabert.profile.device_facts import Device, DeviceFacts
from dynabert.profile.encoder_shape import EncoderShape

if TYPE_CHECKING:
    from dynabert.configuration import ElasticBertConfig

FORMAT = 2  # 1: several sets of fields, by the version of this package


@dataclass(frozen=True)
class ErrorStatement:
    """How far predictions were from random sub-networks that the fit had not seen, relative to their measured times.

    ``networks``: how many, of which ``uniform`` have the same width in each layer; the others differ layer by layer.
    ``mean`` and ``worst``: against their times in the same rounds as the fitted ones. ``mean_later`` and
    ``worst_later``: of ``later_networks`` of them, timed again when the dtype was done; the machine then took ``drift``
    times as long for an anchor sub-network. Nothing is divided out of any of them. None: not measured.
    """

    networks: int
    uniform: int
    mean: float | None
    worst: float | None
    later_networks: int = 0
    mean_later: float | None = None
    worst_later: float | None = None
    drift: float | None = None

    def __post_init__(self) -> None:
        for name in ("networks", "uniform", "later_networks"):
            check_count(f"error: {name}", getattr(self, name), 0)
        for name in ("mean", "worst", "mean_later", "worst_later", "drift"):
            if getattr(self, name) is not None:
                check_number(f"error: {name}", getattr(self, name))


@dataclass(frozen=True)
class ProfiledCell:
    """One dtype, batch size and sequence length: its fitted costs, their error, and how they were measured.

    ``samples``: timed passes the fit rests on; ``disturbed``: the share of all passes that other work held up.
    """

    dtype: str
    batch_size: int
    seq_length: int
    costs: LayerCosts
    error: ErrorStatement
    fitted_networks: int
    samples: int
    disturbed: float

    def __post_init__(self) -> None:
        check_text("dtype", self.dtype)
        for name in ("batch_size", "seq_length"):
            check_count(name, getattr(self, name))
        for name in ("fitted_networks", "samples"):
            check_count(name, getattr(self, name), 0)
        check_number("disturbed", self.disturbed)


@dataclass(frozen=True)
class DeviceProfile:
    """Latency of every sub-network of one encoder on one device.

    A time is that of the model's own forward pass on packed random tokens, in milliseconds: embeddings, layers, pooler
    and classifier, weights and on a GPU graphs as `InferenceEngine` serves them. Tokenising and packing are not in it.
    Between measured batch sizes and sequence lengths a time is interpolated; outside them it is refused.

    ``facts``: the device and the versions; ``encoder``: the network's sizes; ``cells``: one for each dtype, batch size
    and sequence length; ``date``: when (ISO 8601, UTC); ``seconds``: how long measuring took; ``notes``: what a reader
    must know, such as a busy machine; ``between``: errors at a batch size and length between the measured ones, by
    dtype.
    """

    facts: DeviceFacts
    encoder: EncoderShape
    cells: tuple[ProfiledCell, ...]
    date: str
    seed: int
    seconds: float
    notes: tuple[str, ...] = ()
    between: tuple[tuple[str, int, int, ErrorStatement], ...] = ()

    def __post_init__(self) -> None:
        if not self.cells:
            raise ValueError("cells is empty; allowed: at least one measured point")
        points = [(cell.dtype, cell.batch_size, cell.seq_length) for cell in self.cells]
        if len(set(points)) < len(points):
            raise ValueError("cells holds a point twice; allowed: each dtype, batch_size and seq_length once")
        missing = [
            (dtype, batch, length)
            for dtype in self.dtypes
            for batch in self.batch_sizes
            for length in self.seq_lengths
            if (dtype, batch, length) not in points
        ]
        if missing:
            dtype, batch, length = missing[0]
            raise ValueError(
                f"cells has no {batch} x {length} in {dtype}; allowed: every dtype at every batch_size and seq_length"
            )
        check_text("date", self.date)
        check_count("seed", self.seed, 0)
        check_number("seconds", self.seconds)
        for note in self.notes:
            check_text("notes", note)
        for dtype, batch, length, _ in self.between:
            check_text("between: dtype", dtype)
            check_count("between: batch_size", batch)
            check_count("between: seq_length", length)

    # What was measured -----------------------------------------------------------------------------------------------

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes measured, in the order measured."""
        return tuple(dict.fromkeys(cell.dtype for cell in self.cells))

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes measured, rising."""
        return tuple(sorted({cell.batch_size for cell in self.cells}))

    @property
    def seq_lengths(self) -> tuple[int, ...]:
        """The sequence lengths measured, rising."""
        return tuple(sorted({cell.seq_length for cell in self.cells}))

    def cell(self, batch_size: int, seq_length: int, dtype: str = "float32") -> ProfiledCell:
        """A measured point, with its error. Raises ``ValueError`` for one that was not measured."""
        for cell in self.cells:
            if (cell.batch_size, cell.seq_length, cell.dtype) == (batch_size, seq_length, dtype):
                return cell
        raise ValueError(
            f"DeviceProfile: {batch_size} x {seq_length} in {dtype} was not measured; measured: batch sizes "
            f"{_listed(self.batch_sizes)}, sequence lengths {_listed(self.seq_lengths)}, in {', '.join(self.dtypes)}"
        )

    def check_model(self, config: ElasticBertConfig) -> None:
        """Raises ``ValueError`` when the profile does not hold for a network of this configuration."""
        reason = self.encoder.misfit(config)
        if reason is not None:
            raise ValueError(
                f"DeviceProfile: made for another encoder: {reason}; allowed: the same hidden size, head size, "
                "activation and relative bias, and no more layers, heads or neurons; profile this model: dynabert "
                "profile --model_name_or_path ..."
            )

    # Predictions -----------------------------------------------------------------------------------------------------

    def latency_ms(self, subnet: Subnet, batch_size: int, seq_length: int, dtype: str = "float32") -> float:
        """Milliseconds of one forward pass of ``batch_size`` sequences of ``seq_length`` tokens.

        ``subnet``: a `SubnetConfig`, its text form, a `SubnetShape`, or None for the whole network.

        Raises ``ValueError``: a sub-network that does not fit the profiled encoder, and what :meth:`latencies_ms`
        refuses.
        """
        shape = self.encoder.shape(subnet)
        return float(
            self.latencies_ms(np.array([shape.heads]), np.array([shape.neurons]), batch_size, seq_length, dtype)[0]
        )

    def latencies_ms(
        self,
        heads: npt.NDArray[Any],
        neurons: npt.NDArray[Any],
        batch_size: int,
        seq_length: int,
        dtype: str = "float32",
    ) -> Numbers:
        """Milliseconds of many sub-networks at once, (N,) float64.

        ``heads``, ``neurons``: (N, L) whole numbers, both 0 where a layer is skipped; L up to the profiled layers.

        Raises ``ValueError``: counts that do not fit the profiled encoder; a batch size or sequence length outside the
        measured ones; a dtype that was not measured.
        """
        heads, neurons = np.asarray(heads), np.asarray(neurons)
        self.encoder.check_counts(heads, neurons)
        found = np.zeros(len(heads))
        for weight, cell in self._around(batch_size, seq_length, dtype):
            found += weight * cell.costs.predict(heads, neurons)
        return found

    def _around(self, batch_size: int, seq_length: int, dtype: str) -> list[tuple[float, ProfiledCell]]:
        """The measured points around this one and their weights: linear in batch size and in sequence length."""
        if dtype not in self.dtypes:
            raise ValueError(
                f"DeviceProfile: dtype {dtype!r} was not measured; measured: {', '.join(self.dtypes)}; profile anew "
                f"with --dtypes {dtype}"
            )
        found = []
        for row_weight, rows in _neighbours("batch_size", batch_size, self.batch_sizes):
            for column_weight, columns in _neighbours("seq_length", seq_length, self.seq_lengths):
                found.append((row_weight * column_weight, self.cell(rows, columns, dtype)))
        return found

    # Files -----------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "format": FORMAT,
            "facts": self.facts.to_dict(),
            "encoder": self.encoder.to_dict(),
            "date": self.date,
            "seed": self.seed,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "what": "model forward on packed random tokens, ms; tokenising and packing not included",
            "cells": [asdict(cell) for cell in self.cells],
            "between": [
                {"dtype": dtype, "batch_size": batch, "seq_length": length, "error": asdict(error)}
                for dtype, batch, length, error in self.between
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DeviceProfile:
        """Read back what :meth:`to_dict` gave. Raises ``ValueError`` where it is no profile."""
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            got = values.get("format") if isinstance(values, Mapping) else type(values).__name__
            other = "of another version of this package" if isinstance(got, int) else "no profile"
            raise ValueError(
                f"DeviceProfile: {other}: not of format {FORMAT}; got format {got!r}; make one: dynabert profile"
            )
        try:
            with naming("facts"):
                facts = DeviceFacts.from_dict(values["facts"])
            with naming("encoder"):
                encoder = EncoderShape.from_dict(values["encoder"])
            with naming("cells"):
                cells = tuple(_cell(index, cell) for index, cell in enumerate(values["cells"]))
            with naming("notes"):
                notes = tuple(values["notes"])
            with naming("between"):
                between = tuple(
                    (one["dtype"], one["batch_size"], one["seq_length"], ErrorStatement(**one["error"]))
                    for one in values["between"]
                )
            with naming("profile"):
                return cls(facts, encoder, cells, values["date"], values["seed"], values["seconds"], notes, between)
        except ValueError as error:
            raise ValueError(
                f"DeviceProfile: the profile is damaged: {error}; make it anew: dynabert profile"
            ) from error

    def save(self, path: str | Path) -> None:
        """Write it as JSON; a file that is there is replaced, and stays whole where writing fails."""
        draft = Path(f"{path}.part")
        try:
            draft.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path, *, check_device: bool = True, device: Device | None = None) -> DeviceProfile:
        """Read a profile.

        ``check_device``: True refuses one that was made on another device, with other versions or another number of
        threads than this process has now, and says what differs; False takes any. ``device``: where the network will
        run; given, a CPU's profile is refused for a GPU and a GPU's for a CPU, whatever ``check_device`` says. None:
        the kind of device that the profile names.

        Raises ``OSError`` where there is no such file, ``ValueError`` for one that is no profile or another device's.
        """
        if not Path(path).exists():
            raise FileNotFoundError(f"DeviceProfile: there is no file {path}; make a profile: dynabert profile")
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"DeviceProfile: {path} is no JSON ({error}); make a profile: dynabert profile") from error
        try:
            profile = cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{error} (file: {path})") from error
        if device is not None:
            profile.check_kind(device, path)
        if check_device:
            profile.check_device(path, device)
        return profile

    def check_kind(self, device: Device, path: str | Path = "the profile") -> None:
        """Raises ``ValueError`` where the network's ``device`` is a GPU and the profile a CPU's, or the other way."""
        kind = torch.device(device).type
        if kind != self.facts.kind:
            raise ValueError(
                f"DeviceProfile: {path} holds times of {self.facts.kind} and the network is on {kind}; allowed: a "
                f"profile of the device it runs on; profile that one: dynabert profile --device {kind}, or run with "
                f"--device {self.facts.kind}"
            )

    def check_device(self, path: str | Path = "the profile", device: Device | None = None) -> None:
        """Raises ``ValueError`` unless the profile was made on ``device`` of this machine, saying what differs.

        ``device``: the network's; None: of the kind that the profile names.
        """
        try:
            here = DeviceFacts.here(self.facts.kind if device is None else device)
        except (RuntimeError, AssertionError):  # no such GPU, or a torch without CUDA
            here = DeviceFacts.here("cpu")
        differences = self.facts.differences(here)
        if differences:
            threads = self.facts.threads
            again = "" if threads == here.threads else f"run with its threads: --threads {threads}, or "
            raise ValueError(
                f"DeviceProfile: {path} is of another device: {'; '.join(differences)}; allowed: the same machine, "
                f"versions and threads; {again}profile this one: dynabert profile, or take its times as they are: "
                "--any_device (check_device=False)"
            )


def _cell(index: int, values: Mapping[str, Any]) -> ProfiledCell:
    with naming(str(index)):
        costs: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values["costs"].items()
        }
        return ProfiledCell(**{**values, "costs": LayerCosts(**costs), "error": ErrorStatement(**values["error"])})


def _neighbours(name: str, value: int, measured: tuple[int, ...]) -> list[tuple[float, int]]:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"DeviceProfile: {name} must be a whole number; got {value!r}")
    if not measured[0] <= value <= measured[-1]:
        allowed = f"{measured[0]} to {measured[-1]}" if len(measured) > 1 else str(measured[0])
        raise ValueError(
            f"DeviceProfile: {name} is {value}; allowed: {allowed}, which was measured; profile anew with --{name}s "
            "that reach it"
        )
    above = next(one for one in measured if one >= value)
    if above == value:
        return [(1.0, above)]
    below = max(one for one in measured if one < value)
    share = (value - below) / (above - below)
    return [(1.0 - share, below), (share, above)]


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
