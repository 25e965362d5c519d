#!/usr/bin/env bash
# One command for a machine with a GPU: builds the native library with CUDA, checks the ops of every provider against
# float64, on chosen cases and on random ones, times the suite, and leaves rows (JSON, CSV), a log and a summary under
# ${OUT:-out}/gpu_check (a rehearsal: gpu_check-rehearsal), in less than ten minutes.
#
#   bash benchmarks/gpu_check.sh               on a machine with a GPU
#   bash benchmarks/gpu_check.sh --rehearse    on any machine: the same parts on the CPU, a few rows only
#   ... --no-build                             uses the native library that is already in place
#
# Needs torch >= 2.11 with its Triton, numpy and rich; for the build a C++20 compiler, nvcc, setuptools, pybind11 and
# ninja; for pictures matplotlib. Fetches nothing.
# PYTHON names the interpreter (default: python3). A part that fails does not stop the next one.
# Exit status: 0 all parts good; 1 a part failed or was stopped, or a check was red; 2 no GPU, or a wrong argument.
set -uo pipefail
cd "$(dirname "$0")/.."

rehearse=0 build=1
for argument in "$@"; do
  case "$argument" in
    --rehearse) rehearse=1 ;;
    --no-build) build=0 ;;
    *)
      echo "gpu_check: unknown argument; got '$argument'; allowed: --rehearse, --no-build" >&2
      exit 2
      ;;
  esac
done

python=${PYTHON:-python3}
out=${OUT:-out}/gpu_check
export PYTHONUNBUFFERED=1 TRITON_INTERPRET=0

if ! seen=$("$python" -c 'import torch; print(int(torch.cuda.is_available()), torch.__version__)' 2>&1); then
  echo "gpu_check: '$python' cannot import torch: $(tail -n 1 <<<"$seen")" >&2
  echo "gpu_check: install torch >= 2.11, or name another interpreter in PYTHON" >&2
  exit 2
fi
read -r has_gpu torch_version < <(tail -n 1 <<<"$seen")
device=cuda
if [ "$has_gpu" != 1 ]; then
  if [ "$rehearse" = 0 ]; then
    echo "gpu_check: no GPU: torch $torch_version sees no CUDA device here, so nothing was checked or timed." >&2
    echo "gpu_check: run it on a machine with a GPU, or pass --rehearse to run its parts on the CPU." >&2
    exit 2
  fi
  device=cpu
elif [ "$rehearse" = 1 ]; then
  device=cpu
fi
if ! missing=$("$python" -c 'import numpy, rich' 2>&1); then
  echo "gpu_check: '$python' lacks a package: $(tail -n 1 <<<"$missing"); needed: torch, numpy, rich" >&2
  exit 2
fi
plot=()
if "$python" -c 'import matplotlib' 2>/dev/null; then plot=(--plot); fi
[ "$rehearse" = 0 ] || out=$out-rehearsal
# Nothing of an earlier run is touched until this one may begin.
mkdir -p "$out"
rm -f "$out"/*.json "$out"/*.csv "$out"/*.png "$out"/summary.txt "$out"/gpu_check.log

dtypes=(float32 bfloat16 float16) random=(triton cuda)
if [ "$device" = cpu ]; then
  echo "gpu_check: REHEARSAL on the CPU: says nothing about the CUDA and Triton kernels"
  dtypes=(float32 bfloat16) random=(cpu)
fi

summary=() failed=0
started=$SECONDS

# remember NAME STATUS SECONDS LIMIT_S: a line of the summary.
remember() {
  local verdict
  case $2 in
    0) verdict=good ;;
    124 | 137) verdict="STOPPED after $4 s" ;;
    *) verdict="FAILED ($2)" ;;
  esac
  [ "$2" = 0 ] || failed=1
  summary+=("$(printf '%-34s %-22s %4d s' "$1" "$verdict" "$3")")
}

# part NAME LIMIT_S COMMAND...: runs it with its output on the screen and in the log; remembers how it ended.
part() {
  local name=$1 limit=$2 begin=$SECONDS
  shift 2
  echo "== $name (at most $limit s)" | tee -a "$out/gpu_check.log"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee -a "$out/gpu_check.log"
  remember "$name" "${PIPESTATUS[0]}" $((SECONDS - begin)) "$limit"
}

# check_op OP DTYPE: checks one op in one dtype, quietly; its log, rows, status and seconds go to a folder of its own.
check_op() {
  local begin=$SECONDS folder=$parts/$1-$2
  mkdir -p "$folder"
  timeout --kill-after=10 "$check_limit" "$python" -m benchmarks.check --device "$device" --op "$1" --dtype "$2" \
    --out "$folder" >"$folder/log" 2>&1
  echo "$? $((SECONDS - begin))" >"$folder/status"
}

# check_random PROVIDER: random samples of all its ops, for 100 seconds at most.
check_random() {
  local begin=$SECONDS folder=$parts/random-$1
  mkdir -p "$folder"
  timeout --kill-after=10 "$check_limit" "$python" -m dynabert_kernels.testing.properties --provider "$1" \
    "${random_flags[@]}" >"$folder/log" 2>&1
  echo "$? $((SECONDS - begin))" >"$folder/status"
}

facts() {
  date -u +%Y-%m-%dT%H:%M:%SZ
  uname -srm
  "$python" --version
  if command -v nvidia-smi >/dev/null; then nvidia-smi; else echo "nvidia-smi: not there"; fi
  if command -v nvcc >/dev/null; then nvcc --version | tail -n 2; else echo "nvcc: not on the PATH"; fi
}
export -f facts
export python

# left UNTIL LEAST: seconds until the script has run for UNTIL, but not fewer than LEAST.
left() {
  local seconds=$(($1 - (SECONDS - started)))
  echo $((seconds > $2 ? seconds : $2))
}

# At most 545 s: 15 + 190 + 30, then the checks until 385 s have passed, then the suite. What a part does not need is the
# next ones': kernels of a machine that never compiled them take their time.
part facts 15 bash -c facts
if [ "$build" = 1 ]; then
  part build 190 bash benchmarks/gpu_build.sh "$python" "$device"
else
  summary+=("build                    left out (--no-build)")
fi
part config 30 "$python" -c 'import dynabert_kernels as dk; print(dk.show_config())'

# One process for each op and dtype: a kernel that hangs or loses the device takes no other's verdict with it. On a GPU
# they run side by side, since most of their time goes into compiling Triton kernels.
parts=$out/parts check_limit=$(left 385 150)
random_flags=(--cases 4200 --seconds 100 -n 3)
[ "$device" = cuda ] || random_flags=(--cases 140 --seconds 60)
rm -rf "$parts"
# The ops that have cases, and those of them that have benchmarks.
listed=$("$python" -c 'from benchmarks.check import CASES; print(*dict.fromkeys(op for op, _ in CASES))') || failed=1
benched=$("$python" -c 'from benchmarks.registry import REGISTRY; print(*{b.op for b in REGISTRY.values()})') || failed=1
read -ra ops <<<"$listed"
if [ "${#ops[@]}" = 0 ]; then
  failed=1
  summary+=("check                    FAILED: benchmarks/check.py names no op, see above")
fi
echo "== check (at most $check_limit s)"
for op in "${ops[@]}"; do
  for dtype in "${dtypes[@]}"; do
    check_op "$op" "$dtype" &
    [ "$device" = cuda ] || wait
  done
done
for provider in "${random[@]}"; do
  check_random "$provider" &
  [ "$device" = cuda ] || wait
done
wait
for provider in "${random[@]}"; do
  tee -a "$out/gpu_check.log" <"$parts/random-$provider/log"
  read -r status seconds <"$parts/random-$provider/status"
  remember "random samples $provider" "$status" "$seconds" "$check_limit"
done
timed=() folders=()
for op in "${ops[@]}"; do
  ended=1
  for dtype in "${dtypes[@]}"; do
    folders+=("$parts/$op-$dtype")
    tee -a "$out/gpu_check.log" <"$parts/$op-$dtype/log"
    read -r status seconds <"$parts/$op-$dtype/status"
    remember "check $op $dtype" "$status" "$seconds" "$check_limit"
    # Red providers (1) are left out by the runner itself. An op that crashed or hung would end the whole run.
    [ "$status" -le 1 ] || ended=0
  done
  if [ "$ended" = 0 ]; then
    summary+=("bench                    without $op: a check of it did not end by itself")
  elif [[ " $benched " == *" $op "* ]]; then
    timed+=("$op")
  fi
done
[ "${#ops[@]}" = 0 ] || "$python" -m benchmarks.check --device "$device" --merge "${folders[@]}" --out "$out" && rm -rf "$parts"

if [ "${#timed[@]}" -gt 0 ]; then
  # The runner begins nothing more some time before its limit and names what it left out; its rows are written as it goes.
  limit=$(left 545 160)
  bench_flags=(--time-limit-s $((limit - 65)) --rounds 20)
  [ "$device" = cuda ] || bench_flags=(--time-limit-s 60 --quick)
  part bench "$limit" "$python" -m benchmarks.run --device "$device" --op "${timed[@]}" "${plot[@]}" --out "$out" "${bench_flags[@]}"
else
  summary+=("bench                    left out: no op can be timed")
fi

{
  echo "gpu_check on $device, torch $torch_version, $((SECONDS - started)) s"
  printf '%s\n' "${summary[@]}"
  echo "rows and log: $out"
  if [ "$failed" = 0 ]; then echo "ALL GOOD"; else echo "NOT GOOD: see the parts above and gpu_check.log"; fi
} | tee "$out/summary.txt"
exit "$failed"
