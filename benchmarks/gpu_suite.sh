#!/usr/bin/env bash
# Everything that needs a GPU, in one go and under nine minutes: benchmarks/gpu_suite.sh [OUT]
#
# For a bare machine with an NVIDIA GPU and no network; torch >= 2.11, cmake, ninja, pybind11 and setuptools must be
# there. Installs adt_fast, runs its GPU tests, NVIDIA's compute-sanitizer, the benchmarks and, given CIFAR10_DIR (the
# folder with cifar-10-batches-py, or that folder; not every data_batch need be there), a short training. Output, versions and times go to OUT (default:
# gpu_results). The table printed last says PASS, FAIL or SKIPPED for each part; the exit status is 1 if one failed.
#
# BUDGET: seconds for all parts together (default 530). PYTHON: the interpreter (default python3). GPU settings are
# left as they are.
set -u

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
OUT=${1:-gpu_results}
PYTHON=${PYTHON:-python3}
BUDGET=${BUDGET:-530}
CIFAR10_DIR=${CIFAR10_DIR:+$(realpath "$CIFAR10_DIR")}
LEAST_SECONDS=15 # a part is not begun with less than this left

mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 1
# The parts run in a folder without adt_fast's sources, so that the installed package is what they import.
WORK=$(mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT
ln -s "$ROOT/benchmarks" "$WORK/benchmarks"
cd "$WORK" || exit 1

NAMES=() STATES=() SECONDS_TAKEN=() NOTES=()

record() { # name, state, seconds, note
  NAMES+=("$1") STATES+=("$2") SECONDS_TAKEN+=("$3") NOTES+=("$4")
  printf '== %s: %s %s\n' "$1" "$2" "$4"
}

skip() { # name, reason
  record "$1" SKIPPED 0 "$2"
}

skip_all() { # reason, names...
  local reason=$1 name
  shift
  for name in "$@"; do
    skip "$name" "$reason"
  done
}

run() { # name, most seconds, command...: its output goes to OUT/name.log
  local name=$1 limit=$2 start=$SECONDS left=$((BUDGET - SECONDS)) status
  shift 2
  if ((left < LEAST_SECONDS)); then
    skip "$name" "the budget of $BUDGET s is spent"
    return 1
  fi
  ((limit > left)) && limit=$left
  printf '== %s: at most %d s\n' "$name" "$limit"
  timeout --kill-after=5 "$limit" "$@" >"$OUT/$name.log" 2>&1
  status=$?
  case $status in
    0) record "$name" PASS $((SECONDS - start)) "" ;;
    124 | 137) record "$name" FAIL $((SECONDS - start)) "stopped after $limit s, see $name.log" ;;
    *) record "$name" FAIL $((SECONDS - start)) "exit status $status, see $name.log" ;;
  esac
  return $((status != 0))
}

missing_modules() { # name...: those that are not installed
  "$PYTHON" -c 'import sys, importlib.util
print(*[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None])' "$@"
}

has_pytest() {
  [[ -z $(missing_modules pytest) ]]
}

versions() {
  {
    date -u
    uname -a
    "$PYTHON" --version
    "$PYTHON" -m pip list 2>/dev/null
    nvcc --version 2>&1
    git -C "$ROOT" describe --always --dirty 2>&1
  } >"$OUT/versions.txt" 2>&1
  nvidia-smi >"$OUT/nvidia-smi.txt" 2>&1
}

install_package() {
  # ADT_FAST_CUDA=on: without GPU kernels there would be nothing to test, so a missing compiler is an error.
  run install 240 env ADT_FAST_CUDA=on "$PYTHON" -m pip install --no-build-isolation --no-deps --no-index \
    --force-reinstall "$ROOT"
}

native_module() { # what was built; fails where adt_fast does not import or its GPU kernels are off
  run info 60 "$PYTHON" -c 'import sys, adt_fast
info = adt_fast.build_info()
print(*info.items(), sep="\n")
sys.exit(not info["native"] or bool(info["cuda_off_because"]))'
}

gpu_tests() {
  if ! has_pytest; then
    skip tests "pytest is not installed"
    return
  fi
  run tests 150 "$PYTHON" -m pytest -c "$ROOT/pyproject.toml" --rootdir "$ROOT" -p no:cacheprovider -q -m "cuda and not slow" \
    --ignore "$ROOT/tests/test_compute_sanitizer.py" "$ROOT/tests"
}

sanitizer() {
  if ! command -v compute-sanitizer >/dev/null; then
    skip sanitizer "compute-sanitizer is not on PATH"
  elif ! has_pytest; then
    skip sanitizer "pytest is not installed"
  else
    # Every operator under memcheck and racecheck, and a planted write past the end that memcheck must report.
    run sanitizer 150 "$PYTHON" -m pytest -c "$ROOT/pyproject.toml" --rootdir "$ROOT" -p no:cacheprovider -v -m cuda \
      -k "memcheck or racecheck or past_the_end" "$ROOT/tests/test_compute_sanitizer.py"
  fi
}

kernel_benchmark() {
  run kernels 90 "$PYTHON" -m benchmarks.kernels --device cuda --repeats 30 --contestants eager "noise + compile" \
    --output "$OUT/kernels.json"
}

training_benchmark() {
  run training 200 "$PYTHON" -m benchmarks.training --device cuda --batch "${TRAINING_BATCH:-64}" --repeats 3 \
    --no-compile --objectives adt-exp at-pgd --precisions fp32 fp16 --output "$OUT/training.json"
}

# adt-fast train on those of CIFAR-10's published training files that are in the folder.
TRAIN_ON_WHAT_IS_THERE='
import sys
from pathlib import Path
from adt_fast import cli
from adt_fast.data import cifar

folder, *arguments = sys.argv[1:]
files = cifar._CIFAR10.files["train"]
for name in [name for name in files if not (Path(folder) / name).is_file()]:
    del files[name]
print("training files:", *files)
sys.exit(cli.main([*arguments, "--data-dir", folder]))
'

short_training() { # precision
  local name=train-$1 folder=$CIFAR10_DIR
  [[ -d $folder/cifar-10-batches-py ]] && folder=$folder/cifar-10-batches-py
  if [[ -z $folder ]]; then
    skip "$name" "CIFAR10_DIR is not set"
  elif [[ ! -f $folder/test_batch ]] || ! compgen -G "$folder/data_batch_*" >/dev/null; then
    skip "$name" "$folder lacks test_batch, or every data_batch"
  elif [[ -n $MISSING ]]; then
    skip "$name" "not installed: $MISSING"
  else
    rm -rf "${OUT:?}/$name"
    run "$name" 60 "$PYTHON" -c "$TRAIN_ON_WHAT_IS_THERE" "$folder" train --method adt-exp --dataset cifar10 \
      --model preactresnet-18 --epochs 1 --train-limit 10000 --test-limit 1000 --batch-size 128 \
      --device cuda --precision "$1" --output "$OUT/$name"
  fi
}

table() {
  local i
  printf '\n%-16s %-8s %8s  %s\n' part "" seconds ""
  for i in "${!NAMES[@]}"; do
    printf '%-16s %-8s %8d  %s\n' "${NAMES[i]}" "${STATES[i]}" "${SECONDS_TAKEN[i]}" "${NOTES[i]}"
  done
  printf '%-16s %-8s %8d  of %d\n' all "" "$SECONDS" "$BUDGET"
}

versions
MISSING=$(missing_modules tyro yaml safetensors tqdm numpy)
[[ -n $MISSING ]] && printf 'not installed: %s; what needs them is skipped\n' "$MISSING"

if ! "$PYTHON" -c "import torch, sys; sys.exit(not torch.cuda.is_available())" >/dev/null 2>&1; then
  record gpu FAIL 0 "torch sees no CUDA device"
  skip_all "no GPU" install info tests kernels training sanitizer train-fp32 train-auto
elif ! install_package; then
  skip_all "adt_fast is not installed" info tests kernels training sanitizer train-fp32 train-auto
elif ! native_module; then
  skip_all "see info.log" tests kernels training sanitizer train-fp32 train-auto
else
  gpu_tests
  kernel_benchmark
  training_benchmark
  sanitizer
  short_training fp32
  short_training auto
fi

table | tee "$OUT/summary.txt"
for state in "${STATES[@]}"; do
  [[ $state == FAIL ]] && exit 1
done
exit 0
