# Each target sets up .venv on first use. SYSTEM=1 takes the packages that are there instead, and installs nothing.
PYTHON ?= python3
SHELL := bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

ifneq ($(filter-out 0,$(SYSTEM)),)
READY :=
RUN := $(PYTHON)
else
READY := .venv/.stamp
RUN := .venv/bin/python
endif
# A process a core, eight at most: each takes about a gigabyte. One thread in each, or they wait for one another.
TEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m "not gpu" -n logical --maxprocesses 8 --dist worksteal

.PHONY: help venv demo test test-gpu noise check

help:
	@echo "make demo      sweep configs/quickstart.yaml and print its table and plots"
	@echo "make test      the tests that need no GPU"
	@echo "make test-gpu  the tests that need one"
	@echo "make noise     what verdicts make of no change and of a known one, on this machine"
	@echo "make check     formatting, lint, types and tests"
	@echo "make venv      only the set-up that the others share"
	@echo "SYSTEM=1       with any of them: no .venv, use the packages of PYTHON ($(PYTHON))"

venv: $(READY)

demo: $(READY)
	$(RUN) -m mlaprof sweep configs/quickstart.yaml

test: $(READY)
	$(TEST)

test-gpu: $(READY)
	@$(RUN) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "test-gpu: torch sees no CUDA GPU here")'
	$(RUN) -m pytest -q -m gpu

noise: $(READY)
	$(RUN) -m mlaprof doctor --noise

check: $(READY)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	$(TEST)

.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else \
	  "mlaprof needs Python 3.11 to 3.13, $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo >&2 \
	  "$(PYTHON) cannot make a virtual environment: it lacks ensurepip. Install it (Debian and Ubuntu: apt install" \
	  "python3-venv), name another with make PYTHON=..., or use what is installed with SYSTEM=1."; exit 1; }
	@echo "Setting up .venv (torch $(shell sed -n 's/^torch==//p' constraints.txt) and the rest): about a minute, once"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt -e '.[dev]'
	@touch $@
