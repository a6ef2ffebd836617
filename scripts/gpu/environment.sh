# Sourced by the calls, from the repository's root. The machine has PyTorch, Lightning and transformers and no network;
# what else is needed came along in .gpu/ (pack.py) and is kept outside the repository, for the calls after this one.
PYTHON=${PYTHON:-python3}
OUT=${OUT:-.gpu/out}                      # results, few and small files
CARRIED=${CARRIED:-/tmp/lit_sparse_gpu}   # what came along, and what is made from it
RESULTS=$CARRIED/results
mkdir -p "$OUT" "$CARRIED/site" "$RESULTS"
for wheel in .gpu/wheels/*.whl; do
    [ -e "$wheel" ] && "$PYTHON" -m zipfile -e "$wheel" "$CARRIED/site"
done
export PYTHONPATH=$PWD:$CARRIED/site LIT_SPARSE_CACHE=$CARRIED/cache
# What the first call compiles spares the second part a minute: it comes back and goes along again, .gpu/compiled/.
export TORCHINDUCTOR_CACHE_DIR=$CARRIED/compiled TRITON_CACHE_DIR=$CARRIED/compiled/triton TRITON_CACHE_AUTOTUNING=1
export HF_HUB_OFFLINE=1 MPLBACKEND=Agg PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=true

STARTED=$SECONDS
if [ -f .gpu/compiled/compiled.tar.xz ] && [ ! -d "$TORCHINDUCTOR_CACHE_DIR" ]; then
    tar -xJf .gpu/compiled/compiled.tar.xz -C "$CARRIED"
fi

# keep NAME: everything measured so far as one file among the results; called often, since a call may be cut off.
keep() {
    tar -czf "$OUT/.$1.tmp" -C "$RESULTS" . && mv "$OUT/.$1.tmp" "$OUT/$1.tar.gz"
}

# part SECONDS COMMAND...: runs it, at most so long and never beyond TOTAL seconds of the call; a failure is noted
# beside its output and the call goes on.
part() {
    local limit=$1 left=$((TOTAL - SECONDS + STARTED))
    shift
    [ "$limit" -gt "$left" ] && limit=$left
    if [ "$limit" -le 5 ]; then
        echo "no time left for: $*" | tee -a "$RESULTS/failures.txt"
        return
    fi
    echo "--- $((SECONDS - STARTED)) s: $*"
    timeout --kill-after=5 "$limit" "$@" || echo "exit status $? of: $*" | tee -a "$RESULTS/failures.txt"
}
