#!/usr/bin/env bash
# Runs random samples of every op on a GPU under NVIDIA's compute-sanitizer: memory errors, races of shared memory, wrong
# use of barriers. One process for each tool, provider and op, side by side; a log of each and a summary under
# ${OUT:-out}/gpu_sanitize.
#
#   bash benchmarks/gpu_sanitize.sh                          all of it
#   ... --tools "memcheck" --providers "triton" --ops "elastic_ffn varlen_attention" --cases 20
#   bash benchmarks/gpu_sanitize.sh --rehearse               on any machine: the same samples on the CPU, no sanitizer
#
# Needs the native library built with CUDA, and compute-sanitizer from the CUDA toolkit. PYTHON names the interpreter
# (default: python3), JOBS how many run at once (default: half the processors), LIMIT the seconds of each (default:
# 240), TOTAL the seconds of all (default: 540, so that there is a summary where a command may take ten minutes). What
# does not begin in them is named; --tools, --providers and --ops run it another time.
# Exit status: 0 all clean; 1 a sanitizer or a sample found something, or one was stopped or left out; 2 nothing could
# be run.
set -uo pipefail
cd "$(dirname "$0")/.."

tools="memcheck racecheck synccheck" providers="triton cuda" cases=6 rehearse=0
ops="add_layer_norm distillation_loss elastic_attention elastic_ffn elastic_linear embed_layer_norm varlen_attention"
while [ $# -gt 0 ]; do
  case "$1" in
    --rehearse) rehearse=1 && shift && continue ;;
    --tools | --providers | --ops | --cases)
      if [ $# -lt 2 ]; then
        echo "gpu_sanitize: $1 needs a value" >&2
        exit 2
      fi
      declare "${1#--}=$2" && shift 2
      ;;
    *)
      echo "gpu_sanitize: unknown argument; got '$1'; allowed: --tools, --providers, --ops, --cases, --rehearse" >&2
      exit 2
      ;;
  esac
done
python=${PYTHON:-python3} out=${OUT:-out}/gpu_sanitize
jobs=${JOBS:-$(($(nproc) / 2 > 0 ? $(nproc) / 2 : 1))} limit=${LIMIT:-240} total=${TOTAL:-540} started=$SECONDS
sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
if [ "$rehearse" = 1 ]; then
  echo "gpu_sanitize: REHEARSAL on the CPU, without a sanitizer: says nothing about the GPU kernels"
  tools="none" providers="cpu"
elif ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "gpu_sanitize: '$python' has no torch that sees a CUDA device, so nothing was run" >&2
  echo "gpu_sanitize: run it on a machine with a GPU, name an interpreter in PYTHON, or pass --rehearse" >&2
  exit 2
elif [ -z "$sanitizer" ]; then
  echo "gpu_sanitize: compute-sanitizer is neither on the PATH nor under CUDA_HOME; it comes with the CUDA toolkit" >&2
  exit 2
fi
rm -rf "$out"
mkdir -p "$out"
export PYTHONUNBUFFERED=1 TRITON_INTERPRET=0
# PyTorch's pool would hide a read past an allocation: each tensor is to be one of its own.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1 CUBLAS_WORKSPACE_CONFIG=:4096:8

# one TOOL PROVIDER OP: its log and exit status, named TOOL-PROVIDER-OP. It ends when the time of all is over.
one() {
  local name=$1-$2-$3 begin=$SECONDS left=$((total - (SECONDS - started)))
  if [ "$left" -le 0 ]; then
    echo "left 0" >"$out/$name.status"
    return
  fi
  local under=("$sanitizer" --tool "$1" --error-exitcode 9 --print-limit 20 --target-processes all
    --require-cuda-init no)
  [ "$1" = memcheck ] && under+=(--leak-check no)
  [ "$1" = none ] && under=()
  timeout --kill-after=10 "$((left < limit ? left : limit))" "${under[@]}" \
    "$python" -m dynabert_kernels.testing.properties --provider "$2" --op "$3" --cases "$cases" >"$out/$name.log" 2>&1
  echo "$? $((SECONDS - begin))" >"$out/$name.status"
}

for tool in $tools; do
  for provider in $providers; do
    for op in $ops; do
      while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
      one "$tool" "$provider" "$op" &
    done
  done
done
wait

for status in "$out"/*.status; do
  name=$(basename "$status" .status)
  read -r code seconds <"$status"
  case $code in
    0) verdict=clean ;;
    2) verdict="not there" ;; # a provider without this op
    9) verdict="FOUND BY THE SANITIZER, see $out/$name.log" ;;
    124 | 137) verdict="STOPPED after $seconds s" ;;
    left) verdict="LEFT OUT: the $total s of all were over" ;;
    *) verdict="FAILED ($code), see $out/$name.log" ;;
  esac
  printf '%-44s %4d s  %s\n' "$name" "$seconds" "$verdict"
done | tee "$out/summary.txt"
if grep -qE ' (FOUND|FAILED|STOPPED|LEFT OUT)' "$out/summary.txt"; then
  echo "NOT CLEAN" | tee -a "$out/summary.txt"
  exit 1
elif ! grep -q ' clean$' "$out/summary.txt"; then
  echo "gpu_sanitize: nothing ran; see the logs in $out" | tee -a "$out/summary.txt"
  exit 2
fi
echo "ALL CLEAN" | tee -a "$out/summary.txt"
