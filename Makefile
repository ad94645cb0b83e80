# What a newcomer types. Everything runs in .venv, which is made again only when setup.cfg or constraints.txt change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv demo test test-slow bench lint clean

help:  ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(STAMP)  ## the environment alone, pinned by constraints.txt

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else \
	    f"Python {sys.version.split()[0]}: Tessera needs 3.11 to 3.13; name one: make PYTHON=python3.12 venv")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## the main job from drawn pictures to a promoted model; again = go on
	@$(BIN)/python -m launch.demo

test: $(STAMP)  ## the tests, in about sixteen minutes on two cores; what this machine lacks is skipped and named
	@$(BIN)/python -m pytest -q -rs

test-slow: $(STAMP)  ## the tests that take minutes each
	@$(BIN)/python -m pytest -q -rs -m slow

bench: $(STAMP)  ## races against peers, which are installed first
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	@$(BIN)/python -m benchmarks

lint: $(STAMP)  ## ruff and mypy over the whole tree
	@$(BIN)/ruff check . && $(BIN)/mypy

clean:  ## remove the environment and the caches; runs stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
