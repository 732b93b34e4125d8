# make demo      install, ask the embedded model about 500 towers, write the summary and the figure
# make test      lint, types, fast tests
# make test-gpu  on a machine with an NVIDIA GPU: what differs there
# make test-oldest    the fast tests with the oldest versions that pyproject.toml allows, in an environment of their own (7 GB)
# make test-newest    the same with the newest ones: what pip takes today without constraints.txt
# make verify    recompute what the documents claim in numbers: claim, stated value, value now, verdict
# make docs      the documentation as a site, in build/docs
# PYTHON=python3.11 make install    uses another interpreter (3.11 or later)

PYTHON ?= python3
VENV ?= .venv
DEMO_DIR ?= runs/demo
DEMO_ARGS ?=
PYTEST_ARGS ?= -n auto

BIN := $(VENV)/bin
# Stamps: they are newer than what they were made from, so that a second run has nothing to do.
INSTALLED := $(VENV)/.installed
TEST_INSTALLED := $(VENV)/.installed-test
DOCS_INSTALLED := $(VENV)/.installed-docs

.PHONY: help install demo test test-slow test-oldest test-newest test-gpu verify docs lint format clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "probe needs Python 3.11 or later: PYTHON=python3.11 make install" >&2; exit 1; }
	@echo "Installing into $(VENV): some minutes, and about 7 GB on the disk with the GPU build of torch."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

$(TEST_INSTALLED): $(INSTALLED)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

$(DOCS_INSTALLED): $(INSTALLED)
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/probe run --model tiny --stimuli towers --out $(DEMO_DIR) $(DEMO_ARGS)
	@echo "The figure is $(DEMO_DIR)/psychometric.png; every trial is in $(DEMO_DIR)/trials.jsonl."

lint: $(TEST_INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TEST_INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is build/docs/index.html; to search in it: $(BIN)/python -m http.server --directory build/docs"

test-slow: $(TEST_INSTALLED) $(DOCS_INSTALLED)
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

# The lower ends of the ranges, as constraints. That of torch is not among them: its builds are tied to drivers, and take 7 GB each.
$(VENV)-oldest/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-oldest
	@{ sed -nE '/^dependencies = /,/^docs = /s/^.*"([a-z0-9-]+)>=([0-9.]+).*/\1==\2/p' pyproject.toml | grep -v '^torch'; \
		grep '^torch' constraints.txt; } > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/pip install --quiet -c $(VENV)-oldest/constraints.txt -e '.[test]'
	@touch $@

test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest $(PYTEST_ARGS)

# Installed every time, because the newest versions are others every week.
test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager -e '.[test]'
	$(VENV)-newest/bin/python -m pytest $(PYTEST_ARGS)

# On a machine with an NVIDIA GPU. The other files have no GPU in them: their models go to one where there is one.
GPU_TESTS := tests/gpu tests/probes/test_architectures.py tests/probes/test_huggingface.py tests/probes/test_option_scoring.py \
	tests/probes/test_adapters.py tests/probes/test_decoding.py tests/finetune/test_ppo.py tests/finetune/test_grpo.py \
	tests/finetune/test_lora.py tests/finetune/test_families.py tests/finetune/test_closed_loop.py tests/finetune/test_auxiliary.py

test-gpu: $(TEST_INSTALLED)
	$(BIN)/python -m pytest -m "gpu or not slow" -n 4 $(GPU_TESTS)

verify: $(TEST_INSTALLED)
	$(BIN)/python benchmarks/verify.py

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
