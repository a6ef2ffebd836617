#!/usr/bin/env bash
# A call of the second part that only brings a piece of the load, and uses its time to try block sizes of the kernels
# and to gather the text that this machine has.
#     bash scripts/gpu/receive.sh N        part N of the load, in .gpu/partN
set -u
TOTAL=${TOTAL:-90}
SIZE=${SIZE:-}
. scripts/gpu/environment.sh

cp ".gpu/part$1/load" "$CARRIED/load.$1" || exit 1
timeout "$TOTAL" "$PYTHON" scripts/gpu/installed_text.py "$CARRIED/texts" $SIZE >"$RESULTS/text.log" 2>&1 &
GATHERING=$!
if command -v nvidia-smi >/dev/null; then
    part 60 "$PYTHON" scripts/gpu/blocks.py --out "$RESULTS" --compile
    part 25 "$PYTHON" scripts/gpu/blocks.py --out "$RESULTS" --seconds 15 2>&1 | tail -8
fi
keep "received$1"
wait "$GATHERING"
tail -3 "$RESULTS/text.log"
ls -l "$CARRIED" "$CARRIED/texts"
echo "=== $((SECONDS - STARTED)) s"
