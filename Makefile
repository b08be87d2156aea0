# `make demo` and `make test` set everything up by themselves; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PARITY := .venv-parity
BEAM := .venv-beam
TPU := .venv-tpu
# One thread per simulator process; compiled programs are kept between runs.
export LP_NUM_THREADS ?= 0
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help setup setup-dev rendering browser demo test parity beam tpu lint format benchmarks benchmark-pytorch clean

help:
	@echo "make demo        set up, then demonstrations -> three training stages -> closed loop -> report (runs/demo)"
	@echo "make test        set up, then the whole test suite"
	@echo "make parity      every model against diffusers and transformers, in an environment of its own (.venv-parity)"
	@echo "make beam        conversion of videos on Apache Beam, in an environment of its own (.venv-beam)"
	@echo "make tpu         training steps compiled for TPUs, in an environment of its own (.venv-tpu); no TPU is needed"
	@echo "make lint        ruff"
	@echo "make benchmarks  every benchmark, one after the other"
	@echo "make benchmark-pytorch  speed beside PyTorch; BENCHMARK_ARGS='--size svd --only unet,act'"
	@echo "make clean       remove .venv, .venv-parity, .venv-beam, .venv-tpu and caches (runs/ stays)"

$(VENV)/requirements.stamp: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python's venv module is missing; run: apt-get install -y python3-venv"; exit 1; }
	$(BIN)/pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/requirements-dev.stamp: requirements-dev.txt $(VENV)/requirements.stamp
	$(BIN)/pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# PyTorch lives apart, so that nothing in .venv can come to depend on it.
$(PARITY)/requirements.stamp: requirements-parity.txt requirements.txt pyproject.toml
	@test -x $(PARITY)/bin/python || $(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/pip install -q --disable-pip-version-check -r requirements-parity.txt
	$(PARITY)/bin/pip install -q --disable-pip-version-check --no-deps open_clip_torch==3.3.0
	$(PARITY)/bin/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

# Apache Beam wants an older protobuf than the rest; of this project it needs the data side only.
$(BEAM)/requirements.stamp: requirements-beam.txt
	@test -x $(BEAM)/bin/python || $(PYTHON) -m venv $(BEAM)
	$(BEAM)/bin/pip install -q --disable-pip-version-check -r requirements-beam.txt
	@touch $@

# The TPU compiler makes JAX on CPU start with warnings.
$(TPU)/requirements.stamp: requirements-tpu.txt requirements.txt pyproject.toml
	@test -x $(TPU)/bin/python || $(PYTHON) -m venv $(TPU)
	$(TPU)/bin/pip install -q --disable-pip-version-check -r requirements-tpu.txt "$$(grep ^pytest== requirements-dev.txt)"
	$(TPU)/bin/pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

setup: $(VENV)/requirements.stamp rendering
setup-dev: $(VENV)/requirements-dev.stamp rendering browser

# Renders one pixel without a display; installs Mesa where that needs no password, else says how.
rendering: $(VENV)/requirements.stamp
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

test: setup-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15 $(TEST_ARGS)

parity: $(PARITY)/requirements.stamp
	$(PARITY)/bin/python -m pytest tests/torch_parity --durations=10 $(TEST_ARGS)

beam: $(BEAM)/requirements.stamp
	$(BEAM)/bin/python -m pytest tests/beam $(TEST_ARGS)

lint: $(VENV)/requirements-dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/requirements-dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: setup
	for script in $(filter-out benchmarks/against_pytorch.py,$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; $(BIN)/python $$script || exit 1; done

benchmark-pytorch: $(PARITY)/requirements.stamp
	$(PARITY)/bin/python benchmarks/against_pytorch.py $(BENCHMARK_ARGS)

tpu: $(TPU)/requirements.stamp
	$(TPU)/bin/python -m pytest tests/aot $(TEST_ARGS)

clean:
	rm -rf $(VENV) $(PARITY) $(BEAM) $(TPU) .cache build dist *.egg-info
