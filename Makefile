# `make demo` and `make test` set everything up by themselves; `make help` lists the rest.
SHELL := /bin/bash
# The first of these that is Python 3.11, 3.12 or 3.13, or PYTHON=...
ifndef PYTHON
PYTHON := $(shell for name in python3 python3.13 python3.12 python3.11; do \
  $$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$name && exit; done; echo python3)
endif
# One environment per Python: .venv-3.11, .venv-3.12, .venv-3.13. `.venv` is a link to the one used last.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv-$(VERSION)
BIN := $(VENV)/bin
LOCK := requirements/lock-$(VERSION).txt
# PyTorch, Apache Beam and the TPU compiler have environments of their own.
PARITY := $(VENV)-parity
BEAM := $(VENV)-beam
TPU := $(VENV)-tpu
# cuda: JAX's CUDA plugin is installed, too.
ACCELERATOR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
PIP := -m pip --disable-pip-version-check -q
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=15
# One thread per simulator process; compiled programs are kept between runs.
export LP_NUM_THREADS ?= 0
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help setup setup-dev python link rendering browser demo test test-fast test-slow parity beam tpu lint types format lock benchmarks \
  benchmark-pytorch clean

help:
	@echo "make demo        set up, then demonstrations -> three training stages -> closed loop -> report (runs/demo)"
	@echo "make test        set up, then the test suite without the tests that take minutes"
	@echo "make test-fast   the fast lane: tests that take seconds"
	@echo "make test-slow   the tests that take minutes"
	@echo "make parity      every model against diffusers and transformers, in an environment of its own"
	@echo "make beam        conversion of videos on Apache Beam, in an environment of its own"
	@echo "make tpu         programs compiled for TPUs by three compilers, in an environment of its own; no TPU is needed"
	@echo "make lint        ruff: rules and format; make format fixes what it can"
	@echo "make types       basedpyright"
	@echo "make lock        resolve requirements.txt again for each Python (requirements/lock-*.txt)"
	@echo "make benchmarks  every benchmark, one after the other"
	@echo "make benchmark-pytorch  speed compared with PyTorch; BENCHMARK_ARGS='--size svd --only unet,act'"
	@echo "make clean       remove environments and caches (runs/ stays)"
	@echo
	@echo "PYTHON=...       the interpreter, 3.11 to 3.13; each version has an environment of its own, .venv-3.x (now: $(VENV))"
	@echo "ACCELERATOR=...  cpu or cuda; cuda where nvidia-smi finds a GPU (now: $(ACCELERATOR))"
	@echo "TEST_ARGS=...    arguments of pytest; DEMO_ARGS=... of vpp demo"

python:
	@test -f $(LOCK) || { echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is $(or $(VERSION),not there). Name another one:" \
	  "make ... PYTHON=/path/to/python3.12"; exit 1; }

# create DIRECTORY: an empty environment
create = test -x $(1)/bin/python || $(PYTHON) -m venv $(1) || \
	  { echo "python's venv module is missing; run: apt-get install -y python$(VERSION)-venv"; exit 1; }

$(VENV)/requirements-$(ACCELERATOR).stamp: requirements.txt $(wildcard $(LOCK)) pyproject.toml | python
	@$(call create,$(VENV))
	$(BIN)/python $(PIP) install -r requirements.txt $(if $(filter cuda,$(ACCELERATOR)),'jax[cuda12]') -c $(LOCK)
	$(BIN)/python $(PIP) install --no-deps -e .
	@touch $@

$(VENV)/requirements-dev.stamp: requirements/dev.txt $(VENV)/requirements-$(ACCELERATOR).stamp
	$(BIN)/python $(PIP) install -r requirements/dev.txt -c $(LOCK)
	@touch $@

# On Python 3.13 without its dependencies: labmaze has no wheel there. Last, since pip complains about what is missing ever after.
$(VENV)/dm-control.stamp: requirements.txt $(VENV)/requirements-$(ACCELERATOR).stamp
	$(if $(filter 3.13,$(VERSION)),$(BIN)/python $(PIP) install --no-deps $$(grep -o '^dm-control==[0-9.]*' requirements.txt))
	@touch $@

# PyTorch is kept out of .venv, so that nothing in there can come to depend on it.
$(PARITY)/requirements.stamp: requirements/parity.txt requirements.txt $(wildcard $(LOCK)) pyproject.toml | python
	@$(call create,$(PARITY))
	$(PARITY)/bin/python $(PIP) install -r requirements/parity.txt -c $(LOCK)
	$(PARITY)/bin/python $(PIP) install --no-deps open_clip_torch==3.3.0
	$(PARITY)/bin/python $(PIP) install --no-deps -e .
	@touch $@

# Apache Beam wants an older protobuf than the rest; of this project it needs the data side only.
$(BEAM)/requirements.stamp: requirements/beam.txt | python
	@$(call create,$(BEAM))
	$(BEAM)/bin/python $(PIP) install -r requirements/beam.txt
	@touch $@

# The TPU compiler makes JAX on CPU start with warnings.
$(TPU)/requirements.stamp: requirements/tpu.txt requirements.txt $(wildcard $(LOCK)) pyproject.toml | python
	@$(call create,$(TPU))
	$(TPU)/bin/python $(PIP) install -r requirements/tpu.txt "$$(grep ^pytest== requirements/dev.txt)" -c $(LOCK)
	$(TPU)/bin/python $(PIP) install --no-deps -e .
	@touch $@

# Beside the pinned one, for tests/aot: the compilers that jax[tpu] of 0.10.2 and 0.12.0.1 bring. One environment holds one libtpu.
$(TPU)/libtpu-%/installed.stamp: $(TPU)/requirements.stamp
	$(TPU)/bin/python $(PIP) install --no-deps --upgrade --target $(@D) libtpu==$*
	@touch $@

setup: $(VENV)/requirements-$(ACCELERATOR).stamp $(VENV)/dm-control.stamp link rendering
setup-dev: $(VENV)/requirements-dev.stamp $(VENV)/dm-control.stamp link rendering browser

link: $(VENV)/requirements-$(ACCELERATOR).stamp
	@test -d .venv -a ! -L .venv || ln -sfn $(VENV) .venv

# Renders one pixel without a display; installs Mesa where that needs no password, else says how.
rendering: $(VENV)/requirements-$(ACCELERATOR).stamp
	@probe() { MUJOCO_GL=egl $(BIN)/python -c 'import mujoco; mujoco.GLContext(8, 8).make_current()' >/dev/null 2>&1; }; \
	libraries="apt-get install -y --no-install-recommends libegl1 libgl1"; \
	probe && exit 0; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then apt-get update -qq && $$libraries -qq; \
	elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then sudo apt-get update -qq && sudo $$libraries -qq; fi; \
	probe || { echo "Headless rendering (EGL) does not work here. Run:  sudo apt-get update && sudo $$libraries"; exit 1; }

# The report's test opens it in a real browser; without one that test is skipped and says so.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null && exit 0; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "no chromium: the browser test of the report will be skipped (sudo apt-get install -y chromium)"; fi || true

demo: setup
	$(BIN)/vpp demo $(DEMO_ARGS)

# The lanes are markers (pyproject.toml): test-fast and test-slow have no test in common, test is test-fast and what is marked medium.
test: setup-dev
	$(BIN)/python $(PYTEST) -m "not slow" $(TEST_ARGS)

test-fast: setup-dev
	$(BIN)/python $(PYTEST) -m "not medium and not slow" $(TEST_ARGS)

test-slow: setup-dev
	$(BIN)/python $(PYTEST) -m slow $(TEST_ARGS)

parity: $(PARITY)/requirements.stamp
	$(PARITY)/bin/python -m pytest tests/torch_parity --durations=10 $(TEST_ARGS)

beam: $(BEAM)/requirements.stamp
	$(BEAM)/bin/python -m pytest tests/beam $(TEST_ARGS)

tpu: $(TPU)/requirements.stamp $(TPU)/libtpu-0.0.42.1/installed.stamp $(TPU)/libtpu-0.0.50.1/installed.stamp
	$(TPU)/bin/python -m pytest tests/aot $(TEST_ARGS)

lint: $(VENV)/requirements-dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/requirements-dev.stamp
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/requirements-dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/requirements-dev.stamp
	for version in 3.11 3.12 3.13; do \
	  $(BIN)/uv pip compile requirements/dev.txt requirements/cuda.txt --python-version $$version --python-platform linux --upgrade -q \
	    --no-annotate --custom-compile-command "make lock" -o requirements/lock-$$version.txt || exit 1; done

benchmarks: setup
	for script in $(filter-out benchmarks/against_pytorch.py,$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; $(BIN)/python $$script || exit 1; done

benchmark-pytorch: $(PARITY)/requirements.stamp
	$(PARITY)/bin/python benchmarks/against_pytorch.py $(BENCHMARK_ARGS)

clean:
	rm -rf .venv-* $(if $(shell test -L .venv && echo link),.venv) .cache build dist *.egg-info
