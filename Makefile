# Everything starts here, with nothing but Python 3.11 or later: make demo, make test.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test bench parity hostile fuzz lint docs pictures format images clean

PYTHON ?= python3
VENV ?= .venv
CONCURRENCY ?= $(shell nproc 2>/dev/null || echo 1)
ENVIRONMENTS := runs/demo.environments.toml

help:
	@echo "make demo     judge 60 small outputs, to see what a run looks like"
	@echo "make test     run the tests (ARGS='-k name' chooses)"
	@echo "make bench    measure, beside other ways to do it (ARGS='overhead --quick' chooses)"
	@echo "make parity   count verdicts that depend on load (ARGS='--clock fair --hog 0 1' chooses)"
	@echo "make hostile  run the hostile programs, and print what was seen of each"
	@echo "make fuzz     try 20,000 inputs on each reader, and the frame decoder for a minute"
	@echo "make lint     check style, types, import directions and the agent's Python version"
	@echo "make docs     build the documentation into site/"
	@echo "make pictures make the documentation's pictures anew, from runs of the demo (Chromium)"
	@echo "make format   put the code into its one form"
	@echo "make images   build the images that the Docker tests use (root, debootstrap)"
	@echo "make clean    remove $(VENV), runs/ and caches"

demo: $(VENV)/.installed $(ENVIRONMENTS)
	$(VENV)/bin/mlbench-exec run examples/demo/outputs.jsonl --dataset examples/demo/rows.jsonl \
		--environments $(ENVIRONMENTS) --backend local --concurrency $(CONCURRENCY) \
		--memory 256m --out runs/demo --restart

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(ARGS)

bench: $(VENV)/.installed-bench
	$(VENV)/bin/python -m bench $(ARGS)

parity: $(VENV)/.installed-dev
	$(VENV)/bin/python -m bench.parity $(ARGS)

hostile: $(VENV)/.installed-dev
	PYTHONPATH=tests $(VENV)/bin/python -m pytest -p hostile.report tests/hostile $(ARGS)

fuzz: $(VENV)/.installed-dev
	MLBENCH_FUZZ=20000 $(VENV)/bin/python -m pytest tests/fuzz --hypothesis-show-statistics $(ARGS)
	$(VENV)/bin/python -m pip install --quiet atheris
	$(VENV)/bin/python tests/fuzz/decoder.py -max_total_time=60

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy tests bench
	$(VENV)/bin/lint-imports
	$(VENV)/bin/vermin -t=3.7- --no-tips --violations src/mlbench_exec/agent

# Not --quiet, which hides warnings from --strict too.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

pictures: $(VENV)/.installed-dev
	PYTHONPATH=tests $(VENV)/bin/python docs/pictures.py

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

images:
	images/conformance/build.sh
	images/mlbench-shape/build.sh
	images/external-attention/build.sh

clean:
	rm -rf $(VENV) runs site build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache \
		.hypothesis

# A workdir is absolute, so the demo's environments are filled in for this checkout.
$(ENVIRONMENTS): examples/demo/environments.toml.in Makefile
	@mkdir -p $(@D)
	@sed -e 's|@ROOT@|$(CURDIR)|g' -e 's|@PYTHON@|$(abspath $(VENV))/bin/python|g' $< > $@

# Stamps: installed once, and again when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --editable .
	@touch $@

# `pip install --group` needs a pip newer than many distributions have.
$(VENV)/.installed-dev $(VENV)/.installed-bench $(VENV)/.installed-docs: $(VENV)/.installed-%: \
		$(VENV)/.installed pyproject.toml
	$(VENV)/bin/python -c 'import tomllib; content = tomllib.load(open("pyproject.toml", "rb")); \
		print(*content["dependency-groups"]["$*"], sep="\n")' > $(VENV)/$*-requirements.txt
	$(VENV)/bin/python -m pip install --quiet --requirement $(VENV)/$*-requirements.txt
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "mlbench-exec needs Python 3.11 or later, and $(PYTHON) is not:" \
			"make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
