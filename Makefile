PYTHON ?= python3
BIN := .venv/bin
DATA ?= data

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types check fuzz zoo zoo-sample bench-resnet20 bench-capture bench-post-training bench-calibration bench-language-models bench-real-weights clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 24

install: .venv/.installed ## create .venv with everything that development needs

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt $$(grep ^torch== constraints.txt) # first: with it there, nothing else asks for torch
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	touch $@

# The tensors are small: a second thread gains little on an idle machine and costs tenfold on a busy one.
demo test fuzz zoo zoo-sample bench-capture bench-post-training bench-calibration bench-language-models bench-real-weights: export OMP_NUM_THREADS ?= 1

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

fuzz: N ?= 5000
fuzz: .venv/.installed ## run the tests of generated models on N=5000 random ones
	FUZZ=$(N) $(BIN)/python -m pytest tests/generated

build/zoo/.installed: benchmarks/zoo/requirements.txt .venv/.installed
	$(BIN)/pip install --no-deps --upgrade --target build/zoo -r benchmarks/zoo/requirements.txt
	touch $@

zoo zoo-sample bench-capture: export PYTHONPATH = build/zoo

zoo: build/zoo/.installed ## capture the whole zoo of models (hours); writes docs/zoo.md and docs/zoo.csv
	$(BIN)/python -m benchmarks.zoo.run

zoo-sample: build/zoo/.installed ## capture 20 models of the zoo and compare with what each must give
	$(BIN)/python -m benchmarks.zoo.run --sample

bench-capture: build/zoo/.installed ## measure what capture costs; draws docs/capture-cost.svg
	$(BIN)/python benchmarks/capture_cost.py --plot docs/capture-cost.svg

bench-resnet20: .venv/.installed ## measure ResNet-20 on CIFAR-10
	$(BIN)/python benchmarks/resnet20_cifar10.py --data $(DATA)

build/peers/.installed: benchmarks/peers-requirements.txt .venv/.installed
	$(BIN)/pip install --no-deps --upgrade --target build/peers -r benchmarks/peers-requirements.txt
	touch $@

bench-post-training bench-calibration: export PYTHONPATH = build/peers

bench-post-training: build/peers/.installed ## measure post-training quantization beside Brevitas (hours; goes on after a kill)
	$(BIN)/python benchmarks/post_training.py --data $(DATA) --table

bench-calibration: build/peers/.installed ## measure what calibration costs, beside Brevitas (needs a quiet machine)
	$(BIN)/python benchmarks/calibration_cost.py --data $(DATA)

bench-language-models: .venv/.installed ## measure stories260K with few bits, and the memory that it takes
	$(BIN)/python benchmarks/language_models.py --data $(DATA)
	$(BIN)/python benchmarks/memory.py

bench-real-weights: .venv/.installed ## measure ResNet-56, ResNet-8 and SqueezeNet
	$(BIN)/python benchmarks/real_weights.py --data $(DATA)

clean: ## remove what was built and cached, all but .venv
	rm -rf build dist demo-output .pytest_cache .mypy_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
