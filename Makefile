# 'make demo' shows the whole job, 'make test' proves it; both make .venv by themselves. 'make help' lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTEST_ARGS ?=
BIN   := .venv/bin
READY := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check format quality bench peers clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The stamp is touched last: an install that was cut off goes on where it stopped, a finished one is never repeated.
$(READY): constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the pinned dependencies into .venv (first time: about 4 minutes, 6.3 GB) ..."
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## the whole job on a generated shop
	$(BIN)/firstshelf demo
	@echo "They run in the environment that was made here: . $(BIN)/activate"

# Serial on purpose: the Neo4j server is one per process, and torch uses every core already.
# The empty -m takes in the quality gate, which is marked slow and which a bare pytest leaves out.
test: $(READY)  ## all tests, a real Neo4j 5 and the quality gate included
	$(BIN)/pytest -m '' $(PYTEST_ARGS)

check: $(READY)  ## format, lint, types, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/unit $(PYTEST_ARGS)

format: $(READY)  ## put the sources into the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

quality: $(READY)  ## the quality gate alone (minutes); on scientific too: FIRSTSHELF_DATA=folder make quality
	$(BIN)/pytest -m slow $(PYTEST_ARGS)

bench: $(READY)  ## the load benchmark on a shop folder: make bench SHOP=folder
	$(BIN)/python benchmarks/speed/load_neo4j.py $(SHOP)

peers: .venv-peers/.installed  ## an environment for the peers of the quality benchmark (6 GB)

.venv-peers/.installed: benchmarks/quality/peers.txt
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --requirement $<
	@touch $@

clean:  ## remove everything that make and the tools made here
	rm -rf .venv .venv-peers .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist firstshelf.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
