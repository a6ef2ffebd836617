#!/usr/bin/env bash
# The first call: are the kernels right and how fast are they, what does a training step cost?
#     TOTAL=275 SIZE= bash scripts/gpu/first.sh        SIZE=--tiny tries it on a CPU
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

part 90 "$PYTHON" scripts/gpu/kernels.py --out "$RESULTS" --seconds 70 ${SIZE:+--quick} 2>&1 | tee "$RESULTS/kernels.log"
keep first
part 90 "$PYTHON" scripts/gpu/step.py smollm2 --out "$RESULTS" --seconds 60 $SIZE 2>&1 | tee "$RESULTS/smollm2.log"
keep first
part 60 "$PYTHON" scripts/gpu/step.py recorded --out "$RESULTS" --seconds 30 $SIZE 2>&1 | tee "$RESULTS/recorded.log"
keep first
part 45 "$PYTHON" scripts/gpu/step.py olmo --out "$RESULTS" $SIZE 2>&1 | tee "$RESULTS/olmo.log"
keep first
tar -C "$CARRIED" -c --exclude='*.ttir' --exclude='*.ttgir' --exclude='*.llir' --exclude='*.ptx' compiled |
    xz -T0 -1 >"$OUT/compiled.tar.xz"
kill "$ESTIMATE" 2>/dev/null
wait "$ESTIMATE" 2>/dev/null
keep first

echo "=== $((SECONDS - STARTED)) s"
cat "$RESULTS/failures.txt" 2>/dev/null
"$PYTHON" scripts/gpu/summary.py "$RESULTS"
