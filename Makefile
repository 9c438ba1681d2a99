# Every target sets up what it needs: a virtual environment in .venv with the pinned requirements.
PYTHON     ?= python3
METHODS    ?= paper
DATASETS   ?= whu,kvasir,sbu
SHOTS      ?= 1
SEEDS      ?=
BACKBONE   ?= vit_l
PROTOCOL   ?= paper
DATA       ?= data
PRETRAINED ?= pretrained
LAUNCHER   ?= local
PROFILE    ?=
OUT        ?= results
TRIALS     ?= 8
TUNED      ?= mine
WORKERS    ?= 2
SLOW       ?=

PY  := .venv/bin/python
RUN := .venv/.setup-done
DEV := .venv/.setup-dev-done
# Keeps as bytecode what is imported, as Python does unless told not to: in many containers each process would compile torch anew.
KEEP := PYTHONDONTWRITEBYTECODE=
# pip would compile 16,000 modules, for a minute and more; these are the few that anything here imports.
COMPILE := $(KEEP) $(PY) -c 'import pkgutil, bench, submitit, torch._dynamo; \
  [__import__(found.name) for found in pkgutil.walk_packages(bench.__path__, "bench.")]' || true

.PHONY: help setup demo test test-slurm bench tune all-methods tables lint clean

help:
	@echo "make setup | demo | test | test-slurm | lint | tables | clean"
	@echo "make tune TRIALS=8   the paper's rows on one generated domain, untuned beside tuned; also TUNED and what bench has"
	@echo "make all-methods TRIALS=8   every method on one generated domain, the same trials each, and their figures: $(OUT)/all_methods/figures"
	@echo "make bench SUITE=paper_all_tasks   or another of configs/suites, with any of these laid over it; tables beside the published numbers"
	@echo "make bench SHOTS=1   also METHODS DATASETS SEEDS BACKBONE PROTOCOL DATA PRETRAINED LAUNCHER PROFILE OUT"

setup: $(DEV)

demo: $(RUN)
	$(PY) -m bench.demo

# Of a suite, what is named on the command line is laid over it.
OF_SUITE := METHODS DATASETS SHOTS SEEDS BACKBONE PROTOCOL
given = $(if $(filter command environment,$(firstword $(origin $(1)))),--$(shell echo $(1) | tr A-Z a-z) '$($(1))')

# The tables are made even where some cells failed (1): each gap says why. A wrong request (2) starts nothing.
bench: $(RUN)
	@status=0; $(PY) -m bench.run $(if $(SUITE),--config 'configs/suites/$(SUITE).toml' $(foreach name,$(OF_SUITE),$(call given,$(name))),\
	  --methods '$(METHODS)' --datasets '$(DATASETS)' --shots '$(SHOTS)' $(if $(SEEDS),--seeds '$(SEEDS)') \
	  --backbone '$(BACKBONE)' --protocol '$(PROTOCOL)') --data '$(DATA)' \
	  --pretrained '$(PRETRAINED)' --launcher '$(LAUNCHER)' $(if $(PROFILE),--profile '$(PROFILE)') --out '$(OUT)' || status=$$?; \
	if [ $$status -le 1 ] && [ '$(LAUNCHER)' = local ]; then $(PY) -m bench.tables --like paper --out '$(OUT)' || exit; fi; exit $$status

# Every method the same number of trials; the choice is $(OUT)/tuned/$(TUNED).toml. Then its table, untuned beside tuned.
tune: DATASETS = synth_polyps
tune: BACKBONE = tiny
tune: PROTOCOL = demo
tune: ASKED = --methods '$(METHODS)' --datasets '$(DATASETS)' --shots '$(SHOTS)' $(if $(SEEDS),--seeds '$(SEEDS)') --backbone '$(BACKBONE)' \
  --data '$(DATA)' --pretrained '$(PRETRAINED)' --out '$(OUT)' --workers '$(WORKERS)'
# "demo(epochs=4)" becomes "demo(epochs=4,tuned=mine)".
OPEN := (
CLOSE := )
COMMA := ,
tune: CHOSEN = $(if $(findstring $(OPEN),$(PROTOCOL)),$(patsubst %$(CLOSE),%$(COMMA)tuned=$(TUNED)$(CLOSE),$(PROTOCOL)),$(PROTOCOL)(tuned=$(TUNED)))
tune: $(RUN)
	$(PY) -m bench.tune $(ASKED) --protocol '$(PROTOCOL)' --trials '$(TRIALS)' --name '$(TUNED)'
	$(PY) -m bench.run $(ASKED) --protocol '$(PROTOCOL),$(CHOSEN)'
	$(PY) -m bench.tables --like tuning --out '$(OUT)'

# Every method with the same few trials of its rates on one generated domain, then three seeds of the choice; minutes on a CPU.
all-methods: TRIALS = 8
all-methods: DATASETS = synth_shadows
all-methods: ALL = --methods all --datasets '$(DATASETS)' --backbone tiny --data '$(DATA)' --out '$(OUT)/all_methods' --workers '$(WORKERS)'
all-methods: $(RUN)
	$(PY) -m bench.tune $(ALL) --protocol demo --trials '$(TRIALS)' --images 16 --only-rates --name all_methods
	$(PY) -m bench.run $(ALL) --protocol 'demo(tuned=all_methods)'
	$(PY) -m bench.tables --like plain --out '$(OUT)/all_methods'
	$(PY) -m bench.figures --out '$(OUT)/all_methods'

tables: $(RUN)
	$(PY) -m bench.tables --like all --format md,csv,latex,html --out '$(OUT)'
	$(PY) -m bench.export --out '$(OUT)'
	$(PY) -m bench.figures --out '$(OUT)'
	$(PY) -m bench.report --out '$(OUT)'

# One thread for each worker's torch, or they fight for the cores. Without the tests that are marked slow; `make test SLOW=1` is all.
test: $(DEV)
	$(KEEP) OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist loadgroup $(if $(SLOW),,-m "not slow")

# On a cluster of its own on this machine; as root it installs what is missing from Debian's packages.
test-slurm: $(DEV)
	@slurm/install || true
	$(KEEP) REQUIRE_SLURM=1 OMP_NUM_THREADS=1 $(PY) -m pytest -q tests/cluster/test_slurm.py tests/cluster/test_bad_days.py

lint: $(DEV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Caches only: never results, data or checkpoints.
clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find bench methods datasets tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed (make PYTHON=...).")'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(PY) -m pip install -q --no-compile -r requirements.txt
	@$(COMPILE)
	touch $@

$(DEV): requirements-dev.txt requirements-backbones.txt $(RUN)
	$(PY) -m pip install -q --no-compile -r requirements-dev.txt
	touch $@
