#!/usr/bin/env bash
# `make bench-gpu` for a checkout that nothing was installed for: times the GPU runtime beside other ways to run the same
# network, with the packages that are there. Builds the native library first, where it is missing or lacks CUDA.
# Fetches nothing.
#
#   bash benchmarks/gpu_bench.sh --works widths       arguments as for python -m benchmarks.gpu_peers
#   bash benchmarks/gpu_bench.sh --rehearse           on any machine: a tiny network on the CPU, answers only
#
# Needs torch >= 2.11 with its Triton, transformers, tokenizers, safetensors, tqdm, numpy and rich; for the build what
# benchmarks/gpu_check.sh names. PYTHON names the interpreter (default: python3). Begins no contender after 400 s, unless
# --time-limit-s says otherwise: one that is being compiled then still ends within ten minutes.
# Exit status: as python -m benchmarks.gpu_peers; 2 also where a package is missing; 1 where the build fails.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD/python:$PWD${PYTHONPATH:+:$PYTHONPATH}"
if ! missing=$("$python" -c 'import numpy, rich, safetensors, tokenizers, torch, tqdm, transformers' 2>&1); then
  echo "gpu_bench: '$python' lacks a package: $(tail -n 1 <<<"$missing")" >&2
  exit 2
fi
device=cpu
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then device=cuda; fi
ready='import sys; from dynabert_kernels import _C; sys.exit(sys.argv[1] == "cuda" and not _C.build_info()["with_cuda"])'
if ! "$python" -c "$ready" "$device" 2>/dev/null; then
  bash benchmarks/gpu_build.sh "$python" "$device" || exit 1
fi
exec "$python" -m benchmarks.gpu_peers --time-limit-s 400 "$@"
