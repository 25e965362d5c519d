"""``dynabert env``: what is installed, what is built, and what this machine can do."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from typing import Any

from dynabert.cli.options import add_command
from dynabert.cli.output import print_json
from dynabert.processor import cpu_flags, cpu_name

PACKAGES = (
    "dynabert-kernels",
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "datasets",
    "pyarrow",
    "matplotlib",
)
# The instruction sets that decide which kernels a CPU can run.
CPU_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "i8mm",
)


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "env",
        run,
        "versions, build and device",
        "Show versions, what is built, and what this machine can do.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """Do what the options say."""
    import dynabert_kernels as dk

    facts = environment()
    if args.json:
        print_json({**facts, "kernels": dk.config()})
        return
    print(f"Python {facts['python']} on {facts['platform']}")
    print("packages: " + ", ".join(f"{name} {version}" for name, version in facts["packages"].items() if version))
    print("not installed: " + (", ".join(name for name, version in facts["packages"].items() if not version) or "none"))
    print(
        f"CPU: {facts['cpu'] or 'unknown'}, {facts['cores']} cores, {facts['threads']} threads; "
        f"{' '.join(facts['cpu_flags'])}"
    )
    print("devices: " + ", ".join(facts["devices"]))
    print(dk.show_config())


def environment() -> dict[str, Any]:
    """Versions, CPU and devices as plain values."""
    import os

    import torch

    flags = cpu_flags()
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {package: _version(package) for package in PACKAGES},
        "cpu": cpu_name(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": devices,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
