# Every target sets up what it needs. `make demo` shows the product, `make test` proves it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NODES ?= 3
SEEDS ?= 1000

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | column -t -s '|'

$(STAMP): requirements-dev.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "SwarmTask needs Python 3.11 or newer; set PYTHON=" >&2; exit 1; }
	$(BIN)/pip install --disable-pip-version-check -q --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

setup: $(STAMP) ## Make the virtual environment

fmt: $(STAMP) ## Format the sources
	$(BIN)/ruff check --fix-only -q operator tests
	$(BIN)/ruff format -q operator tests

crds: $(STAMP) ## Write manifests/crds from the models
	$(BIN)/python -m swarmtask.resources.crds manifests/crds

lint: $(STAMP)
	$(BIN)/ruff format --check -q operator tests
	$(BIN)/ruff check -q operator tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m swarmtask.resources.crds --check manifests/crds

check: lint ## Lint, types, import rules and the fast tests (under 2 minutes)
	$(BIN)/pytest -q -n logical --dist worksteal -m "not docker and not lab and not kubectl and not slow"

test: lint ## Everything: lint, types, and every test, on a laboratory of three real Docker nodes
	$(BIN)/python -m tests.lab.setup
	$(BIN)/python -m tests.run

lab: $(STAMP) ## Start NODES laptops (3) as containers, joined to one Docker Swarm, and leave them running
	$(BIN)/python -m tests.lab.setup
	$(BIN)/python -m tests.lab up --nodes $(NODES)

lab-down: $(STAMP) ## Remove the laboratory and all that it left
	$(BIN)/python -m tests.lab down

demo: $(STAMP) ## Real work on this repository's sources, on the best engine of this machine
	@$(BIN)/swarmtask demo

bench: $(STAMP) ## The benchmarks with their goals: a table here, JSON in build/bench; ONLY="B1 B3" chooses, QUICK=1 tries them
	@PYTHONPATH=operator:. $(BIN)/python -m tests.benchmarks --json build/bench $(if $(QUICK),--quick) $(ONLY)

sim: $(STAMP) ## Run the simulator on SEEDS (1000) seeds in two processes; FROM and WORKLOAD choose which
	@PYTHONPATH=operator:. $(BIN)/python -m tests.simulation --seeds $(SEEDS) --from $(or $(FROM),0) --workload "$(WORKLOAD)"

image-wheels: $(STAMP) ## Wheels for the worker image, so that its build fetches nothing; MACHINES="x86_64 aarch64" for both kinds
	rm -rf worker-image/wheels
	for machine in $(or $(MACHINES),here); do \
	  fit=(); \
	  test $$machine = here || fit=(--python-version 3.11 --platform={manylinux2014,manylinux_2_{26,27,28}}_$$machine); \
	  $(BIN)/pip download --disable-pip-version-check -q --no-deps --only-binary :all: --require-hashes "$${fit[@]}" \
	    -r requirements.lock -d worker-image/wheels; \
	done
	$(BIN)/pip wheel --disable-pip-version-check -q --no-deps --no-build-isolation -w worker-image/wheels .

image: ## Build the worker image as IMAGE (swarmtask/worker:latest) on BASE (Debian); KIND=arm64 beside it; PLATFORMS=... pushes
	$(if $(PLATFORMS),$(if $(IMAGE),,$(error Say where to push it: IMAGE=REGISTRY/swarmtask/worker)))
	docker $(if $(PLATFORMS),buildx build --platform $(PLATFORMS) --push,build) -f worker-image/Dockerfile \
	  $(if $(KIND),--platform linux/$(KIND)) -t $(or $(IMAGE),swarmtask/worker:latest)$(if $(KIND),$(if $(findstring :,$(notdir $(or $(IMAGE),:))),,:latest)-$(KIND)) $(if $(BASE),--build-arg BASE=$(BASE)) \
	  --build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
	  --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || true)" --build-arg CREATED="$$(date -u +%Y-%m-%dT%H:%M:%SZ)" .

image-arm64-check: $(STAMP) ## Build the worker image for arm64 under emulation and run what is in it (root; minutes)
	$(BIN)/python -m tests.lab.setup
	$(BIN)/pytest -q -s -m long tests/e2e/test_arm64_image.py

.PHONY: help sim setup fmt crds lint check test lab lab-down demo bench image image-wheels image-arm64-check
