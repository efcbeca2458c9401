# make help lists the targets. Needs make and Python 3.11 or 3.12; everything else is installed into .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.PHONY: help setup sweep test test-cluster chaos mutations bench lint format lock clean FORCE

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 14

setup: $(READY)  ## make .venv from requirements.lock, unless it stands already
	@:

sweep: $(READY)  ## run the factorial on this machine; options in ARGS, e.g. make sweep ARGS="--seeds 10"
	@$(BIN)/python sweeps/factorial.py $(ARGS)

test: $(READY)  ## run the tests; options in ARGS, e.g. make test ARGS="-k memory"
	@$(BIN)/python -m pytest $(ARGS)

test-cluster: $(READY)  ## run the tests that need several hosts, which root makes of this Linux machine; ARGS likewise
	@$(BIN)/python -m pytest -m hosts -rs tests/cluster $(ARGS)

chaos: $(READY)  ## disturb sweeps in every way of docs/reliability.md, and write down there what became of them; ARGS likewise
	@$(BIN)/python -m pytest -m chaos $(ARGS)

mutations: $(READY)  ## put deliberate faults into a copy of the sources and see the tests catch each
	@$(BIN)/python tests/mutations.py $(ARGS)

bench: $(READY)  ## time everything that is claimed to be fast beside its rivals, and write docs/benchmarks.md; ARGS likewise
	@$(BIN)/python -c 'import transformers, x_transformers' 2> /dev/null \
	  || $(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[bench]'
	@$(BIN)/python benchmarks/page.py $(ARGS)

lint: $(READY)  ## check style, format and types, as CI does
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy lahr sweeps cluster

format: $(READY)  ## put the code into the format that lint checks
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean:  ## remove .venv and caches; results and prepared data stay
	rm -rf .venv .tmp build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# The last step of a set-up writes this file, with the folder's path in it: an environment that is unfinished, or was
# moved with its folder, does not count and is built anew; a finished one is brought up to date in place.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(READY): FORCE
endif
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null || { \
	  echo "LAHR needs Python 3.11 or 3.12; $(PYTHON) is: $$($(PYTHON) --version 2>&1 | head -n 1)." \
	       "Name another: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11" >&2; exit 1; }
	@if [ "$$(cat $@ 2>/dev/null)" = "$(CURDIR)" ]; then \
	  echo "Bringing .venv up to date with requirements.lock ..."; rm $@; \
	else \
	  echo "Setting up .venv from requirements.lock; this takes a minute or two, and happens once ..."; \
	  $(PYTHON) -m venv --clear .venv; \
	fi
	@$(BIN)/python -m pip install --quiet -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@printf '%s\n' "$(CURDIR)" > $@
	@echo "Ready: $$($(BIN)/python --version) in .venv"

# CUDA packages are left out, since torch names the exact versions it needs and a machine without a GPU needs none.
# To hold a package back, name a file of constraints in pip's own way: PIP_CONSTRAINT=file make lock.
lock:  ## resolve pyproject.toml afresh and write requirements.lock
	rm -rf .tmp/lock && $(PYTHON) -m venv .tmp/lock
	.tmp/lock/bin/python -m pip install --quiet --upgrade 'setuptools>=77' '.[dev,aws]'
	{ sed -n '/^#/p' requirements.lock; .tmp/lock/bin/python -m pip freeze --all \
	  | grep -vE '^(lahr|pip|nvidia-|cuda-|triton)' | sed -E 's/\+[a-z0-9.]+$$//'; } > .tmp/requirements.lock
	mv .tmp/requirements.lock requirements.lock && rm -rf .tmp/lock
