# edgeloc: every target works on a fresh clone and needs Python >= 3.10, make and a
# package index. PYTHON picks the interpreter of the virtual environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
DATA ?= ../shared/data
OUT ?= out

.PHONY: help demo demo-site test test-all check bench bench-gpu figures city deadline clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[build,poselib,yaml]'
	@touch $@

# Tests, checks and training need more, PyTorch above all.
$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## localize the packaged clip and write a report
	$(BIN)/python -m edgeloc_tools.evaluate.demo --out $(OUT)/demo

demo-site: $(STAMP) ## film and map the packaged demo again (minutes)
	$(BIN)/edgeloc-build synth --kind demo -o $(OUT)/demo-input
	rm -rf $(OUT)/demo-room && mv $(OUT)/demo-input/mapping $(OUT)/demo-room
	$(BIN)/edgeloc-build map --format tum --input $(OUT)/demo-room -o edgeloc/demo/site
	cp $(addprefix $(OUT)/demo-input/,clip.mp4 clip_gt.txt camera.json) edgeloc/demo/

# A worker a core; more threads than cores would make small products ten times slower.
PYTEST = OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q \
  -n logical --maxprocesses 4 --dist loadgroup

test: $(DEV_STAMP) ## all tests but the slow ones
	$(PYTEST) -m 'not slow and not device and not camera'

test-all: $(DEV_STAMP) ## the slow ones too
	$(PYTEST) -m 'not device and not camera'

check: $(DEV_STAMP) ## formatter, linter, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## time the hot path and the networks, as ratios in one run
	$(BIN)/python -m edgeloc_tools.evaluate.bench --out $(OUT)/bench

bench-gpu: $(STAMP) ## compare the networks on this machine's GPU with the CPU, and time them
	$(BIN)/python -m edgeloc_tools.learn.bench_gpu --out $(OUT)/bench-gpu

figures: $(STAMP) ## tables of the README, from the recordings in DATA
	$(BIN)/python -m edgeloc_tools.evaluate.scenes --data $(DATA) --out $(OUT)/scenes \
	  --families orb,sift,edgeloc --cross
	$(BIN)/python -m edgeloc_tools.evaluate.interpolation --data $(DATA) --out $(OUT)/scenes
	$(BIN)/python -m edgeloc_tools.evaluate.matching --data $(DATA) --out $(OUT)/matching
	$(BIN)/python -m edgeloc_tools.evaluate.places --data $(DATA) --out $(OUT)/places
	$(BIN)/python -m edgeloc_tools.evaluate.budgets --data $(DATA) --out $(OUT)/budgets
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m edgeloc_tools.evaluate.reranking \
	  --data $(DATA) --out $(OUT)/reranking
	$(BIN)/python -m edgeloc_tools.cli.methods --data $(DATA) --out $(OUT)/methods
	$(BIN)/python -m edgeloc_tools.evaluate.moving --out $(OUT)/moving

city: $(STAMP) ## a synthetic city: opening, memory, latency; what a GNSS receiver helps (minutes)
	$(BIN)/python -m edgeloc_tools.evaluate.city --out $(OUT)/city --km 100
	$(BIN)/python -m edgeloc_tools.evaluate.city_priors --out $(OUT)/city --km 10 \
	  --landmarks 100 --queries 60

deadline: $(STAMP) ## when records arrive, at several budgets (MAP, CAMERA)
	$(BIN)/python -m edgeloc_tools.evaluate.deadline --map $(MAP) --camera $(CAMERA) \
	  --budgets 20,33,50,100 --realtime auto,off --load 0,2 --emit asap,fixed

clean: ## remove what the targets made, but the environment
	rm -rf $(OUT) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
