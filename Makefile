# `make` alone lists the targets. Each creates .venv when it is missing; a second call starts at once.
#
#   PYTHON       the interpreter that .venv is made with (3.11 or newer), e.g. make test PYTHON=python3.12
#   WORKERS      processes that share the tests out between them, file by file
#   PYTEST_ARGS  more arguments for pytest, e.g. make test PYTEST_ARGS="tests/runners -x"
#
# pip is called plainly, so that its environment variables (PIP_INDEX_URL, PIP_FIND_LINKS, ...) and pip.conf count.

SHELL := /bin/bash
PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
	  printf '  make %-10s %s\n' "$$target" "$$text"; done

demo: $(READY)  ## a paper's table in miniature: base model, SFT and FLOW over several seeds (minutes)
	$(BIN)/retable -m experiment=flow/language scale=mini

test: $(READY)  ## the tests, but for the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-all: $(READY)  ## all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "" $(PYTEST_ARGS)

lint: $(READY)  ## ruff (lint and format) and mypy; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy conf runners methods evals scripts

format: $(READY)  ## let ruff sort imports and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, caches and build products; outputs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find conf runners methods evals scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Written last: an install that was interrupted is taken up again. The editable install builds with the locked
# setuptools; DS_BUILD_OPS=0 keeps DeepSpeed from compiling kernels, which it builds when a run asks for one.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("retable needs Python 3.11 or newer; $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@$(BIN)/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || $(PYTHON) -m venv --clear $(VENV)
	DS_BUILD_OPS=0 $(BIN)/python -m pip install -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@
