# Telar's commands. `make` or `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PYTHON_RUN := $(VENV)/bin/python
TEST_ARGS ?=
ROWS ?=
# Files of tests that run at a time: one more than there are processors, since they wait for things, but at most four.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n + 1 : 4)))
TEST_IMAGES := rabbitmq stacks telar

.PHONY: help
help: ## List the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | column -t -s "$$(printf '\t')"

$(VENV)/.run: requirements.lock deploy/local/setup.sh
	@deploy/local/setup.sh $(VENV) requirements.lock
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	@deploy/local/setup.sh $(VENV) requirements-dev.lock
	@touch $@

.PHONY: setup
setup: $(VENV)/.dev ## Make the Python environment (run, test and lint do it by themselves)

.PHONY: run
run: $(VENV)/.run ## Run the whole suite on loopback; data in ./data (TELAR_PORT, TELAR_DATA_DIR)
	@exec $(VENV)/bin/telar up

.PHONY: demo
demo: $(VENV)/.dev ## Walk the main job against the running suite, printing each step
	@$(PYTHON_RUN) -m cli.demo

.PHONY: engine
engine: ## Install and start a Docker engine and build the images tests need (Debian, root)
	@deploy/local/engine.sh
	@deploy/airgap/build.sh $(TEST_IMAGES)

.PHONY: test
# Tests start a hundred processes, and each run collects every file as often as there are workers: compiling once is kept.
test: $(VENV)/.dev ## Run every test; on Debian as root a Docker engine is set up first
	@if [ "$$(id -u)" -eq 0 ] && [ -f /etc/debian_version ] && [ -z "$$TELAR_NO_ENGINE" ]; then \
		deploy/local/engine.sh && deploy/airgap/build.sh $(TEST_IMAGES); \
	else \
		echo "No root: without a Docker engine the tests that need one are skipped and say so."; \
	fi
	@deploy/local/mongo-java-server.sh
	@PYTHONDONTWRITEBYTECODE= $(PYTHON_RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

.PHONY: chaos
chaos: $(VENV)/.dev ## Run the long proofs: kills at every step, floods, races (after `make engine` and `apt-get install prometheus`)
	@$(PYTHON_RUN) -m pytest -m "long or not long" tests/chaos $(TEST_ARGS)
	@$(PYTHON_RUN) -m pytest -m long $(TEST_ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Check style, types and the import rule
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

.PHONY: format
format: $(VENV)/.dev ## Format the code
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

.PHONY: bench
bench: $(VENV)/.dev ## Measure against peers, all rows or ROWS="…"; writes bench/results.json
	@$(PYTHON_RUN) -m tests.bench $(ROWS)

.PHONY: lock
lock: ## Resolve and pin the dependencies anew (needs uv)
	uv pip compile pyproject.toml --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -o requirements.lock
	uv pip compile pyproject.toml --extra dev -c requirements.lock --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -o requirements-dev.lock

.PHONY: clean
clean: ## Remove the environment and caches (never ./data)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
