# Common tasks; `make` lists them. Needs git, Python >= 3.11 and a C compiler. Rust is optional and makes tokenizers fast.
unexport PYTHONDONTWRITEBYTECODE VIRTUAL_ENV

# Use an installed uv that works, else our own in .uv
UV := $(shell uv --version >/dev/null 2>&1 && command -v uv || echo .uv/bin/uv)
RUN := $(UV) run --no-sync

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu lint format clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

setup: $(filter .uv/bin/uv,$(UV)) ## Install everything into .venv, including the Rust extension
	@test -d .venv || echo "Installing into .venv: PyTorch alone is about 2.5 GB the first time ..."
	@$(UV) sync --frozen --extra dev
	@ls nanolit/_rustbpe*.so >/dev/null 2>&1 || ! cargo --version >/dev/null 2>&1 \
		|| $(UV) sync --frozen --extra dev --quiet --reinstall-package nanolit
	@ls nanolit/_rustbpe*.so >/dev/null 2>&1 \
		|| echo "No Rust 1.85 or newer was found: tokenizers train slowly, in Python (see https://rustup.rs)."

demo: setup ## Train a tiny model on text that ships with NanoLit, on this computer
	@$(RUN) python -m nanolit.train experiment=demo

test: setup ## Run the tests, two at a time
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-gpu: setup ## Run the tests that need a CUDA device
	@$(RUN) pytest -m gpu

lint: setup ## Check style and types: Python, and Rust where it is installed
	@$(RUN) ruff check
	@$(RUN) ruff format --check
	@$(RUN) pyright --pythonpath .venv/bin/python
	@! cargo --version >/dev/null 2>&1 || (cd rustbpe && cargo fmt --check \
		&& cargo clippy --quiet --locked --all-targets --all-features -- -D warnings)

format: setup ## Format the code and apply automatic fixes
	@$(RUN) ruff check --fix
	@$(RUN) ruff format
	@! cargo --version >/dev/null 2>&1 || (cd rustbpe && cargo fmt)

clean: ## Remove everything built or installed here; runs stay
	rm -rf .venv .uv dist rustbpe/target nanolit/_rustbpe*.so .pytest_cache .ruff_cache .hypothesis

.uv/bin/uv:
	@echo "Getting uv, the installer ..."
	@{ python3 -m venv .uv && .uv/bin/python -m pip install --quiet --require-hashes -r .ci/uv.txt; } >/dev/null 2>&1 \
		|| { rm -rf .uv; python3 -m pip install --quiet --target .uv --require-hashes -r .ci/uv.txt; } \
		|| { rm -rf .uv; echo "make could not get uv: install it, or python3-venv or python3-pip, then try again" >&2; exit 1; }
