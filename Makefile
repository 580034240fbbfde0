# Two commands matter: `make demo` and `make test`. Everything lands in .venv/ and var/.
SHELL := /bin/bash
VENV := .venv
SLOW := training or browser or postgres or slow
PY := $(VENV)/bin/python
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: help setup demo test lint types fast slow loop bench bench-gpu matrix pictures clean

help: ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*##/  make \1 —/'

# The stamp is newer than pyproject.toml once everything is installed: the second time does nothing.
setup: $(VENV)/.installed ## make .venv and install everything (nothing the second time)

$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	@test -x $(PY) || { echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing (the first time this fetches PyTorch and takes a few minutes)"
	$(PY) -m pip install --disable-pip-version-check -e '.[training,test]'
	$(PY) -m pip check
	@touch $@

demo: setup ## the whole loop on this machine: prints an address and three passwords
	@$(PY) manage.py demo

test: setup lint types fast slow ## everything: lint, types, tests

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(PY) manage.py makemigrations --check --dry-run

types: setup
	$(VENV)/bin/mypy .

fast: setup ## tests that need neither torch nor a browser, a database server or real processes
	$(PY) -m pytest -q -n 2 --nomigrations --ignore tests/training_rlhf -m "not ($(SLOW))"

slow: setup ## the rest
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --durations=15 -m "$(SLOW)" tests/training_rlhf
	$(PY) -m pytest -q --durations=15 -m "$(SLOW)" --ignore tests/training_rlhf

loop: setup ## the loop without hands: two rounds with simulated raters
	$(PY) manage.py demo --headless --rounds 2 --seed 0 --json

bench: setup ## the figures of docs/benchmarks.md
	$(PY) -m tests.benchmarks.labels --store sqlite
	$(PY) -m tests.benchmarks.labels --store postgres
	$(PY) -m tests.benchmarks.parity --method reward
	$(PY) -m tests.benchmarks.parity --method dpo
	$(PY) -m tests.benchmarks.parity --method sft
	$(PY) -m tests.benchmarks.parity --method kto
	@for m in ppo rloo grpo dpo kto; do $(PY) -m tests.benchmarks.toy --method $$m || exit 1; done
	@for m in ppo rloo grpo; do $(PY) -m tests.benchmarks.toy --method $$m --tuning lora || exit 1; done
	$(PY) -m tests.benchmarks.ppo_against_trl

bench-gpu: setup ## tokens a second and MFU on an accelerator, in one table; says so where there is none
	$(PY) -m tests.benchmarks.gpu

matrix: setup ## every method with every kind of tuning, for real: docs/matrix.md
	$(PY) -m tests.benchmarks.matrix --write docs/matrix.md

pictures: setup ## make the README's pictures again
	$(PY) manage.py demo --headless --rounds 2 --keep var/pictures
	$(PY) -m tests.pictures var/pictures

clean: ## forget the demo's data (asks)
	@read -p "Delete var/ with all labels, datasets and policies? [y/N] " a; [ "$$a" = y ] && rm -rf var || true
