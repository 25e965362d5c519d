"""``show_config()``: what is built, what computes each op, and by which rule."""

from __future__ import annotations

import platform
from typing import Any

import torch

from dynabert_kernels.ops import providers


def config() -> dict[str, Any]:
    """Facts as plain data: versions, native build, providers of each op, missing providers and why, the rule."""
    from dynabert_kernels import NATIVE, __version__

    facts: dict[str, Any] = {
        "dynabert_kernels": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "native": dict(NATIVE.build_info()) if NATIVE is not None else None,
        "cpu_features": dict(NATIVE.cpu_features()) if NATIVE is not None else None,
        "rule": {device: list(names) for device, names in providers.RULE.items()},
        "providers": {op: list(names) for op, names in providers.registered().items()},
        "missing": providers.unavailable(),
        "forced": providers.forced_provider(),
    }
    return facts


def show_config() -> str:
    """What is built and who computes each op, as text for people. ``config()`` has the same as data."""
    facts = config()
    lines = [
        f"dynabert_kernels {facts['dynabert_kernels']}, torch {facts['torch']}, Python {facts['python']}",
        f"GPU: {facts['gpu'] or 'none'}; CPU threads: {facts['threads']}",
    ]
    if facts["native"] is None:
        lines.append(
            "!! NATIVE LIBRARY NOT BUILT: ops run on the plain PyTorch reference, slower. "
            "Install a C++20 compiler and reinstall."
        )
    else:
        lines.append("native: " + ", ".join(f"{key} {value}" for key, value in facts["native"].items()))
        lines.append("cpu: " + ", ".join(f"{key} {value}" for key, value in facts["cpu_features"].items()))
    for name, reason in facts["missing"].items():
        if facts["native"] is not None or name == "triton":
            lines.append(f"provider {name} missing: {reason}")
    for device, names in facts["rule"].items():
        lines.append(f"rule on {device}: the first of {', '.join(names)} that has the op and takes the arguments")
    width = max(len(op) for op in facts["providers"])
    lines += [f"  {op:<{width}}  {', '.join(names)}" for op, names in facts["providers"].items()]
    if facts["forced"]:
        lines.append(f"forced in this context: {facts['forced']}")
    return "\n".join(lines)
