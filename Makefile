# The one door of the house: `make` lists what it opens. Each target first makes .venv ready (make/setup.sh, milliseconds
# when it is) and each verb of a project is `python -m projects.<p> <verb>` with the layered configs and the flags below.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

SIZE ?= nano
WORKERS ?= 2
WHEELS ?= jsonargparse docstring_parser typeshed_client
PY := .venv/bin/python

# What exists: projects are folders with __main__.py, stages are config folders with a base.yaml, the other files are sizes.
ladder := nano toiny smol mediom lorge huoge giont
not_sizes := base lora
projects := $(strip template $(patsubst projects/%/__main__.py,%,$(wildcard projects/*/__main__.py)))
hardware := $(patsubst configs/hardware/%.yaml,%,$(wildcard configs/hardware/*.yaml))
stages_of = $(patsubst configs/$1/%/base.yaml,%,$(wildcard configs/$1/*/base.yaml))
files_of = $(patsubst configs/$1/%.yaml,%,$(wildcard configs/$1/*.yaml configs/$1/*/*.yaml))
staged_of = $(patsubst configs/$1/$2/%.yaml,%,$(wildcard configs/$1/$2/*.yaml))
unstaged_of = $(filter-out $(addsuffix /%,$(call stages_of,$1)),$(call files_of,$1))
ordered = $(filter $1,$(ladder)) $(filter-out $(ladder) $(not_sizes),$(sort $1))
sizes_of = $(strip $(call ordered,$(call unstaged_of,$1) $(if $2,$(call staged_of,$1,$2))))

# What a command says.
folder = $(if $(filter template,$(PROJECT)),shared/training/template,projects/$(PROJECT))
module = $(subst /,.,$(folder))
places = configs/$(PROJECT) $(if $(STAGE),configs/$(PROJECT)/$(STAGE))
profile = $(if $(HW),configs/hardware/$(HW).yaml)
layers = $(wildcard $(foreach place,$(places),$(place)/base.yaml $(place)/$(SIZE).yaml) $(profile))
is = $(filter-out 0 false off,$1)
resume = $(if $(call is,$(RESUME)),--run.resume $(if $(filter auto,$(RESUME)),auto,true))
settings = $(if $(SEED),--seed_everything $(SEED)) $(if $(call is,$(DETERMINISTIC)),--trainer.deterministic true)
checkpoint = $(if $1,--ckpt_path '$1')
speak = exec $(PY) -m $(module) $(strip $1 $(addprefix --config ,$2) $3 $(settings)) $(ARGS)
make_run = $(call speak,$(verb),$(layers),$(if $(RUN),--run.name '$(RUN)') $(resume) $(call checkpoint,$(CKPT)))
ifneq ($(call is,$(DETERMINISTIC)),)
export CUBLAS_WORKSPACE_CONFIG := :4096:8
endif

# Mistakes are caught here, before Python starts: one sentence with what exists and what comes nearest.
one_of = $(if $(filter $($1),$2),:,make/mistake.sh $1 '$($1)' '$2' $(PROJECT))
run_folder = $(if $(findstring /,$(RUN)),$(RUN:/=),runs/$(PROJECT)$(if $(STAGE),-$(STAGE))/$(SIZE)/$(RUN))
runs = $(patsubst %/config.yaml,%,$(wildcard runs/*/*/*/config.yaml))
targets = $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' Makefile)

.PHONY: check check-bench check-run check-tests ready help setup clean lock wheels train evaluate validate predict config report bench \
	test test-laws test-gpu lint format typecheck ci

check:
	@$(call one_of,PROJECT,$(projects))
	@$(if $(STAGE),$(call one_of,STAGE,$(call stages_of,$(PROJECT))),:)
	@$(call one_of,SIZE,$(call sizes_of,$(PROJECT),$(STAGE)))
	@$(if $(HW),$(call one_of,HW,$(hardware)),:)
	@$(if $(RESUME),$(call one_of,RESUME,1 0 auto true false),:)

check-bench:
	@$(if $(wildcard $(folder)/bench.py),:,make/mistake.sh BENCH '$(BENCH)' '' $(PROJECT))

check-tests:
	@$(if $(PROJECT),$(call one_of,PROJECT,$(projects)),:)
	@$(if $(and $(PROJECT),$(if $(tests_of),,none)),make/mistake.sh tests '' '' $(PROJECT),:)

check-run:
	@$(if $(wildcard $(run_folder)/config.yaml),:,make/mistake.sh RUN '$(RUN)' '$(runs)')

ready:
	@make/setup.sh

##@ Learning
train: verb = fit ## train, then test: PROJECT= [SIZE=nano] [HW=] [RUN=] [SEED=] [RESUME=1|auto] [DETERMINISTIC=1]
evaluate: verb = test ## score a run, by default the newest: PROJECT= [SIZE=] [RUN= | CKPT=runs/...] [ARGS="--checkpoint.prefer best"]
validate: verb = validate ## the validation loop on a run: PROJECT= [SIZE=] [RUN= | CKPT=runs/...]
predict: verb = predict ## answers without scores: PROJECT= [SIZE=] [RUN= | CKPT=runs/...]
config: verb = config ## the plan of a run and its settings, without running it: PROJECT= [SIZE=] [HW=]
bench: ## a project's own measurements: PROJECT= [BENCH=name]
report: ## write the report of a run again: RUN=runs/<project>/<size>/<run>

train config: check ready
	@$(make_run)

# A stored run brings its own configuration: no layers but a profile that is asked for.
evaluate validate predict: stored = $(or $(CKPT),$(if $(RUN),$(run_folder)))
evaluate validate predict: check ready
	@$(call speak,$(verb),$(if $(stored),$(profile),$(layers)),$(call checkpoint,$(stored)))

bench: check check-bench ready
	@exec $(PY) -m $(module).bench $(BENCH) $(ARGS)

report: check-run ready
	@exec $(PY) -m shared.training.report '$(run_folder)' $(ARGS)

##@ Testing
tests_of = $(wildcard tests/*/$(PROJECT) tests/*/test_$(PROJECT).py tests/*/test_$(PROJECT)_*.py \
	$(if $(filter template,$(PROJECT)),tests/smoke))
pytest = env OMP_NUM_THREADS=1 $(PY) -m pytest
spread = $(shell $(PY) -c 'import xdist' 2>/dev/null && printf %s '-n $(WORKERS) --dist loadfile')

test: check-tests ready ## every test, or those of PROJECT=; ARGS="-k name" goes to pytest
	@exec $(pytest) $(spread) $(if $(PROJECT),$(tests_of),tests) $(ARGS)

test-laws: ready ## the identities every process must obey
	@exec $(pytest) $(spread) tests/laws $(ARGS)

test-gpu: ready ## what only a CUDA device can show; skipped without one
	@$(pytest) -m gpu tests $(ARGS) || (($$? == 5))

lint: ready ## ruff check, ruff format --check, mypy
	@$(PY) -m ruff check . || failed=1; $(PY) -m ruff format --check . || failed=1; $(PY) -m mypy || failed=1; \
		exit $${failed:-0}

typecheck: ready ## mypy on shared and packages
	@$(PY) -m mypy

format: ready ## rewrite the files as ruff would
	@$(PY) -m ruff check --fix --exit-zero . && $(PY) -m ruff format .

ci: ## what decides whether a change lands: lint, then test
	@exec bash .ci/run

##@ The environment
setup: ## make .venv: [PYTHON=python3.12] [EXTRAS="arc dev"] [LATEST=1] [SYSTEM=1: own torch, no network]
	@make/setup.sh --say

lock: ready ## write constraints.txt from what is installed now
	@$(PY) make/lock.py > constraints.txt.new && mv constraints.txt.new constraints.txt && head -n 1 constraints.txt

wheels: ready ## fetch the wheels that setup SYSTEM=1 carries to a machine without network: [WHEELS="a b"]
	@$(PY) -m pip download --disable-pip-version-check --quiet --no-deps --only-binary :all: -c constraints.txt -d .wheels $(WHEELS)
	@ls .wheels

clean: ## remove .venv and the caches; never runs or data
	@rm -rf .venv .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	@find $(wildcard packages shared projects tests make) -name __pycache__ -prune -exec rm -rf {} +

##@ Asking
help: ## this page
	@make/help.sh Makefile
	@printf '\nProjects and their sizes\n'
	@printf '  %-10s %s\n' $(foreach each,$(projects),'$(each)' '$(call sizes_of,$(each))' \
		$(foreach stage,$(call stages_of,$(each)),'' 'STAGE=$(stage): $(call sizes_of,$(each),$(stage))'))
	@printf '  %-10s %s\n' HW= '$(hardware) (default: what the machine has)'

# Any other word is a verb of the project's own, if a project is named.
.DEFAULT:
	@$(if $(PROJECT),$(MAKE) own verb=$@,make/mistake.sh target '$@' '$(targets)')

.PHONY: own
own: check ready
	@$(make_run)
