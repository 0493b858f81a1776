PYTHON ?= python3
BIN := .venv/bin
DATA ?= data

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types check bench-resnet20 clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 20

install: .venv/.installed ## create .venv with everything that development needs

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt $$(grep ^torch== constraints.txt) # first: with it there, nothing else asks for torch
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	touch $@

# The tensors are small: a second thread gains little on an idle machine and costs tenfold on a busy one.
demo test: export OMP_NUM_THREADS ?= 1

demo: .venv/.installed ## train a ResNet-20 on handwritten digits, compress it and compare
	$(BIN)/fxcompress demo

test: .venv/.installed ## run the tests
	$(BIN)/python -m pytest

lint: .venv/.installed ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.installed ## check the types
	$(BIN)/mypy

check: test lint types ## everything that has to pass before a change goes in

bench-resnet20: .venv/.installed ## measure ResNet-20 on CIFAR-10
	$(BIN)/python benchmarks/resnet20_cifar10.py --data $(DATA)

clean: ## remove what was built and cached, all but .venv
	rm -rf build dist demo-output .pytest_cache .mypy_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
