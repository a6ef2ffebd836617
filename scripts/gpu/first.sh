#!/usr/bin/env bash
# The first call: are the kernels right and how fast are they, what does a training step cost? If the first part of the
# load came along, it is kept for train.sh, and the text that this machine has is gathered beside the kernels.
#     TOTAL=275 SIZE= bash scripts/gpu/first.sh        SIZE=--tiny tries it on a CPU
#     KERNELS=110 STEPS=60 RECORDED=30 OLMO=45         seconds of its parts; 0 leaves one out
#     COMPILED=                                        where the next call finds the same machine: nothing compiled comes back
set -u
TOTAL=${TOTAL:-275}
SIZE=${SIZE:-}
. scripts/gpu/environment.sh

{
    date -u
    nvidia-smi
    nvidia-smi -q -d CLOCK,POWER
    "$PYTHON" -c 'import sys, torch, triton, transformers, lightning, peft, numpy
print(sys.version, *(m.__name__ + " " + m.__version__ for m in (torch, triton, transformers, lightning, peft, numpy)))
print(torch.cuda.get_device_properties(0) if torch.cuda.is_available() else "no GPU")'
} >"$RESULTS/machine.txt" 2>&1
head -60 "$RESULTS/machine.txt" | grep -E 'NVIDIA|torch|multi_processor|rror' || true

# What the formulas say needs no GPU and is worked out beside the measurements.
CUDA_VISIBLE_DEVICES='' timeout "$TOTAL" "$PYTHON" scripts/gpu/step.py estimate --out "$RESULTS" $SIZE \
    >"$RESULTS/estimate.log" 2>&1 &
ESTIMATE=$!

if [ -f .gpu/part1/load ]; then
    cp .gpu/part1/load "$CARRIED/load.1"
    timeout "$TOTAL" "$PYTHON" scripts/gpu/installed_text.py "$CARRIED/texts" $SIZE >"$RESULTS/text.log" 2>&1 &
fi

# measure NAME SECONDS GRACE COMMAND...: a part with its output in a file too; no new case begins after its seconds.
measure() {
    local name=$1 seconds=$2 grace=$3
    shift 3
    [ "$seconds" -gt 0 ] || return
    part "$((seconds + grace))" "$PYTHON" "$@" --out "$RESULTS" --seconds "$seconds" 2>&1 | tee "$RESULTS/$name.log"
    keep first
}
measure kernels "${KERNELS:-110}" 20 scripts/gpu/kernels.py ${SIZE:+--quick}
measure smollm2 "${STEPS:-60}" 30 scripts/gpu/step.py smollm2 $SIZE
measure recorded "${RECORDED:-30}" 30 scripts/gpu/step.py recorded $SIZE
measure olmo "${OLMO:-45}" 0 scripts/gpu/step.py olmo $SIZE
if [ -n "${COMPILED-1}" ]; then
    tar -C "$CARRIED" -c --exclude='*.ttir' --exclude='*.ttgir' --exclude='*.llir' --exclude='*.ptx' compiled |
        xz -T0 -1 >"$OUT/compiled.tar.xz"
fi
kill "$ESTIMATE" 2>/dev/null
[ -f "$RESULTS/text.log" ] && tail -2 "$RESULTS/text.log" && ls -l "$CARRIED" "$CARRIED/texts"
wait "$ESTIMATE" 2>/dev/null
keep first

echo "=== $((SECONDS - STARTED)) s"
cat "$RESULTS/failures.txt" 2>/dev/null
"$PYTHON" scripts/gpu/summary.py "$RESULTS"
