# Everything sets itself up: a virtual environment in .venv, nothing else on the machine is touched.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH_VENV := .venv-torch
TORCH_READY := $(TORCH_VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-kernels check docs format bench bench-optimizer bench-loop bench-faults bench-engine clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gpuplan needs Python 3.11 or newer; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(READY) ## create .venv with everything needed

demo: $(READY) ## plan Llama-3.1-8B for the Azure 2023 conversation trace over real prices
	@mkdir -p demo
	$(BIN)/gpuplan plan examples/request.yaml -o demo/plan.json -o demo/plan.csv -o demo/plan.md -o demo/report.html --force

test: $(READY) ## run the test suite
	$(BIN)/python -m pytest -n 2 -q

test-slow: $(READY) ## run the tests that take minutes
	$(BIN)/python -m pytest -n 2 -q -m slow

$(TORCH_READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt --editable '.[dev,gpu]'
	@touch $@

test-kernels: $(TORCH_READY) ## test the timing of kernels with torch, in .venv-torch: on the GPU if there is one, else on the CPU
	$(TORCH_VENV)/bin/python -m pytest -q tests/profilers/test_kernels.py tests/profilers/test_kernels_torch.py

check: $(READY) ## format, lint, types, import rules, schema drift
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m planner.cli.main schema --check docs/schemas/v1

docs: $(READY) ## generate the reference pages and schemas, and run every command that the docs show
	$(BIN)/python docs/generate.py
	$(BIN)/gpuplan schema --write docs/schemas/v1
	$(BIN)/python -m pytest -q tests/docs

format: $(READY) ## rewrite the code in house style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## measure, and write the tables of docs/benchmarks.md (all but those of a real engine)
	@for script in $(filter-out benchmarks/real_engine.py benchmarks/endpoint_profiler.py benchmarks/fit_adapter_traffic.py,$(sort $(wildcard benchmarks/[a-z]*.py))); do \
		echo "== $$script"; $(BIN)/python $$script || exit 1; done
	@echo "left out: those that install vLLM (3.5 GB); run them by 'make bench-engine'"
	@echo "left out: benchmarks/fit_adapter_traffic.py needs a trace that does not ship; it names it"

bench-faults: $(READY) ## measure what redundancy is worth: a zone lost, spot lost, twice the load
	$(BIN)/python benchmarks/fault_runs.py

bench-optimizer: $(READY) ## measure the optimiser alone: small requests, large fleets, many periods, cross-check
	$(BIN)/python benchmarks/optimizer_small.py
	$(BIN)/python benchmarks/optimizer_scale.py
	$(BIN)/python benchmarks/optimizer_horizon.py
	$(BIN)/python benchmarks/optimizer_cross_check.py
	$(BIN)/python benchmarks/optimizer_cross_check.py --adapters --instances 1000

bench-loop: $(READY) ## measure planning until the replay holds: what it costs, and whether it lasts
	$(BIN)/python benchmarks/closing_loop.py

bench-engine: $(READY) ## simulator and endpoint profiler against a real vLLM on one CPU core: installs it into .venv-engine; ~90 minutes
	$(BIN)/python benchmarks/real_engine.py
	$(BIN)/python benchmarks/endpoint_profiler.py

clean: ## remove what the targets above made
	rm -rf $(VENV) $(TORCH_VENV) .venv-engine build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
