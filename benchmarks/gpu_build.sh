#!/usr/bin/env bash
# gpu_build.sh PYTHON DEVICE: builds the native library in place, for gpu_check.sh and gpu_bench.sh. DEVICE is cuda or cpu.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$2" = cuda ]; then
  # On a machine with a GPU a build without CUDA is a failure, not a smaller success.
  export DYNABERT_CUDA=1
  if [ -z "${DYNABERT_CUDA_ARCHS:-}" ]; then
    # Only this card's architecture: half the build time.
    DYNABERT_CUDA_ARCHS=$("$1" -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9))')
    export DYNABERT_CUDA_ARCHS
  fi
else
  export DYNABERT_CUDA=${DYNABERT_CUDA:-0}
fi
"$1" setup.py build_ext --inplace
