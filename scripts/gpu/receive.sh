#!/usr/bin/env bash
# A call of the second part that only brings a piece of the load, and uses its time to look at the kernels once more
# and to gather the text that this machine has.
#     bash scripts/gpu/receive.sh N        part N of the load, in .gpu/partN
set -u
TOTAL=${TOTAL:-60}
SIZE=${SIZE:-}
. scripts/gpu/environment.sh

cp ".gpu/part$1/load" "$CARRIED/load.$1" || exit 1
timeout "$TOTAL" "$PYTHON" scripts/gpu/installed_text.py "$CARRIED/texts" $SIZE >"$RESULTS/text.log" 2>&1 &
GATHERING=$!
part 20 "$PYTHON" scripts/gpu/kernels.py --out "$RESULTS/again" --seconds 15 --quick
keep "received$1"
wait "$GATHERING"
tail -3 "$RESULTS/text.log"
ls -l "$CARRIED" "$CARRIED/texts"
echo "=== $((SECONDS - STARTED)) s"
