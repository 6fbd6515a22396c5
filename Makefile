# make env    the environment in .venv; does nothing the second time
# make demo   environment, then ELECTRA on real text: train, test, export
# make test   environment, then the tests
# make test-matrix   every strategy, stopped in every way, on other ranks, moved to another: 42 minutes on two cores
# make test-slow     two hosts and a cable that is pulled, measured memory, quick claims and benches: 40 minutes
# make test-slurm    a real SLURM of two nodes on this machine; installs it (apt) where it may: five minutes
# make lint   format and lint checks
# make gpu    GPU tests and a short bench card, with PYTHON=... (torch >= 2.11 there; no environment is made)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/electra/demo
WORKERS := --numprocesses 2 --dist loadfile --no-loadscope-reorder  # in this order the long files come first

define LACKING
import importlib.util as util
needed = "torch", "lightning", "transformers", "datasets", "jsonargparse", "torchmetrics", "tensorboard"
lacking = [name for name in needed if util.find_spec(name) is None]
if not lacking:
    import torch
    lacking = [] if torch.cuda.is_available() else ["a CUDA device"]
print(*lacking, sep=", ")
endef
export LACKING

.PHONY: env demo test test-matrix test-slow test-slurm lint gpu
.DEFAULT_GOAL := env

env: $(READY)

# angle-emb comes without what it requires: the tests read its file of losses, which needs torch alone.
# Debian's python3 comes without ensurepip: virtualenv, put into a folder of its own, makes the environment there.
$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than Python 3.10; name another with PYTHON=..."; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) 2>/dev/null && test -x $(BIN)/pip || { \
	    rm -rf $(VENV) && $(PYTHON) -m pip install --quiet --target $(VENV).make virtualenv \
	    && PYTHONPATH=$(VENV).make $(PYTHON) -m virtualenv --quiet $(VENV) && rm -rf $(VENV).make; }
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,bench,minilm,mteb,trackers]'
	@$(BIN)/pip install --quiet --no-deps angle-emb==0.6.1 || echo "no angle-emb: the tests against its losses are skipped"
	@touch $@

demo: env
	$(BIN)/python -m launch fit --config configs/electra/demo.yaml
	$(BIN)/python -m launch test --config configs/electra/demo.yaml
	@test -d $(DEMO)/huggingface || $(BIN)/python -m launch export $(DEMO) --out $(DEMO)/huggingface

test: env
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS)

test-matrix: env
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m matrix

test-slow: env
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) -m slow

test-slurm: env
	@PATH="$$PATH:/usr/sbin"; command -v slurmctld >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq \
	    && apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null; } \
	    || echo "SLURM is not here and cannot be installed; the tests say what they lack"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/slurm -m slurm -rs

lint: env
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check

gpu:
	$(PYTHON) -m pytest tests/gpu -rs || test $$? -eq 5  # 5: everything was skipped, with the reason
	@lacking=$$($(PYTHON) -c "$$LACKING"); if [ -n "$$lacking" ]; then echo "bench skipped: $(PYTHON) lacks $$lacking"; \
	else $(PYTHON) -m launch bench electra --device cuda --out benchmarks/electra/bench_gpu \
	    && { $(PYTHON) -c 'import sentence_transformers' 2>/dev/null || { echo "no sentence-transformers: no second bench"; exit 0; }; \
	    $(PYTHON) -m launch bench matryoshka2d --device cuda --out benchmarks/matryoshka2d/bench_gpu; }; fi
