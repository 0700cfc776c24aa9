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

# What exists: projects are folders with __main__.py, stages are config folders with a base.yaml, the other files are sizes,
# except those that open with `# overlay`.
ladder := nano toiny smol mediom lorge huoge giont
not_sizes := base lora
projects := $(strip template $(patsubst projects/%/__main__.py,%,$(wildcard projects/*/__main__.py)))
hardware := $(patsubst configs/hardware/%.yaml,%,$(wildcard configs/hardware/*.yaml))
stages_of = $(patsubst configs/$1/%/base.yaml,%,$(wildcard configs/$1/*/base.yaml))
no_overlays = $(filter-out $(shell awk 'FNR == 1 && /^. overlay/ { print FILENAME }' /dev/null $1),$1)
files_of = $(patsubst configs/$1/%.yaml,%,$(call no_overlays,$(wildcard configs/$1/*.yaml configs/$1/*/*.yaml)))
staged_of = $(patsubst configs/$1/$2/%.yaml,%,$(call no_overlays,$(wildcard configs/$1/$2/*.yaml)))
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
settings = $(if $(SEED),--seed_everything $(SEED)) $(if $(call is,$(DETERMINISTIC)),--trainer.deterministic true) \
	$(if $(WANDB),--logging.wandb $(WANDB)) $(if $(WEIGHTS),--checkpoint.weights $(WEIGHTS)) \
	$(if $(COUNT),--sampling.count $(COUNT)) $(if $(OUT),--export.out '$(OUT)') $(if $(PUSH),--export.push '$(PUSH)') \
	$(if $(call is,$(MERGE)),--export.merge true)
checkpoint = $(if $1,--ckpt_path '$1')
speak = exec $(PY) -m $(module) $(strip $1 $(addprefix --config ,$2) $3 $(settings)) $(ARGS)
ours = exec $(PY) -m shared.training.$(strip $1) $(ARGS)
make_run = $(call speak,$(verb),$(layers),$(if $(RUN),--run.name '$(RUN)') $(resume) $(call checkpoint,$(CKPT)))
ifneq ($(call is,$(DETERMINISTIC)),)
export CUBLAS_WORKSPACE_CONFIG := :4096:8
endif

# Mistakes are caught here, before Python starts: one sentence with what exists and what comes nearest.
one_of = $(if $(filter $($1),$2),:,make/mistake.sh $1 '$($1)' '$2' $(PROJECT))
run_folder = $(if $(findstring /,$(RUN)),$(RUN:/=),runs/$(PROJECT)$(if $(STAGE),-$(STAGE))/$(SIZE)/$(RUN))
runs = $(patsubst %/config.yaml,%,$(wildcard runs/*/*/*/config.yaml))
targets = $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' Makefile)

.PHONY: check check-base check-bench check-run check-tests ready help setup clean lock wheels train finetune train-ladder \
	evaluate validate predict sample export config profile bench bench-start report compare repro new-project projects results \
	test test-laws test-gpu lint format typecheck ci

check:
	@$(call one_of,PROJECT,$(projects))
	@$(if $(STAGE),$(call one_of,STAGE,$(call stages_of,$(PROJECT))),:)
	@$(call one_of,SIZE,$(call sizes_of,$(PROJECT),$(STAGE)))
	@$(if $(HW),$(call one_of,HW,$(hardware)),:)
	@$(if $(RESUME),$(call one_of,RESUME,1 0 auto true false),:)

check-base:
	@$(if $(CKPT),:,make/mistake.sh CKPT '' '$(runs)' $(PROJECT))

check-bench:
	@$(if $(filter-out all,$(PROJECT)),$(call one_of,PROJECT,$(projects)),:)
	@$(if $(and $(BENCH),$(if $(wildcard $(folder)/bench.py),,none)),make/mistake.sh BENCH '$(BENCH)' '' $(PROJECT),:)

check-tests:
	@$(if $(PROJECT),$(call one_of,PROJECT,$(projects)),:)
	@$(if $(and $(PROJECT),$(if $(tests_of),,none)),make/mistake.sh tests '' '' $(PROJECT),:)

check-run:
	@$(if $(wildcard $(run_folder)/config.yaml),:,make/mistake.sh RUN '$(RUN)' '$(runs)')

ready:
	@make/setup.sh

##@ Learning
train: verb = fit ## train, then test: PROJECT= [SIZE=nano] [HW=] [RUN=] [SEED=] [RESUME=1|auto] [DETERMINISTIC=1]
train-ladder: ## sizes in series, finished ones skipped: PROJECT= SIZES="nano smol" [KEEP_GOING=1] [DETACH=1]
finetune: verb = finetune ## adapt a checkpoint by LoRA: PROJECT= CKPT=runs/... [RUN=] [ARGS="--lora.r 16"]
evaluate: verb = test ## score a run, by default the newest: PROJECT= [SIZE=] [RUN= | CKPT=runs/...] [ARGS="--checkpoint.prefer best"]
validate: verb = validate ## the validation loop on a run: PROJECT= [SIZE=] [RUN= | CKPT=runs/...]
predict: verb = predict ## answers without scores: PROJECT= [SIZE=] [RUN= | CKPT=runs/...]
sample: verb = sample ## draw into <run>/samples: PROJECT= [SIZE=] [RUN= | CKPT=] [COUNT=16] [ARGS="--sampling.steps 32"]
export: verb = export ## weights as safetensors: PROJECT= [RUN= | CKPT=] [OUT=folder] [MERGE=1] [PUSH=owner/name]
config: verb = config ## the plan of a run and its settings, without running it: PROJECT= [SIZE=] [HW=]

train config: check ready
	@$(make_run)

finetune: check check-base ready
	@$(make_run)

train-ladder: check ready
	@$(call ours,ladder '$(PROJECT)' $(if $(STAGE),--stage '$(STAGE)') $(if $(HW),--hw '$(HW)') \
		$(if $(call is,$(KEEP_GOING)),--keep-going) $(if $(call is,$(DETACH)),--detach) $(or $(SIZES),$(SIZE)))

# A stored run brings its own configuration: no layers but a profile that is asked for.
evaluate validate predict sample export: stored = $(or $(CKPT),$(if $(RUN),$(run_folder)))
evaluate validate predict sample export: check ready
	@$(call speak,$(verb),$(if $(stored),$(profile),$(layers)),$(call checkpoint,$(stored)))

##@ Looking
report: ## write the report of a run again: RUN=runs/<project>/<size>/<run>
compare: ## two runs side by side: RUNS="runs/... runs/..."
repro: ## run the first 20 updates of a run again and compare: RUN=runs/...
profile: verb = profile ## where the time of an update goes: PROJECT= [SIZE=] [HW=]
bench: ## speed, measured in pairs: [PROJECT=] [MODE=loop|throughput|attention|memory] [SECONDS=] [BENCH=a project's own]
bench-start: ## seconds from a clone to the first update, cold and warm
projects: ## the table of projects, stages and sizes: parameters, promise, cost; ARGS=--write puts it into README.md
results: ## the measured table of a project's README, with runs taken up: PROJECT= [RUNS="runs/..."] [ARGS="--as name"]

report repro: check-run ready
	@$(call ours,$@ '$(run_folder)')

compare: ready
	@$(call ours,compare $(RUNS))

profile: check ready
	@$(make_run)

bench: check-bench ready
	@$(if $(BENCH),exec $(PY) -m $(module).bench $(BENCH) $(ARGS),$(call ours,bench $(or $(PROJECT),all) \
		$(if $(MODE),--mode $(MODE)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(HW),--hw $(HW))))

bench-start:
	@exec make/bench-start.sh

projects: ready
	@$(call ours,catalogue)

results: check ready
	@$(call ours,results_table $(PROJECT) $(RUNS))

##@ Building
new-project: ## a project of your own, copied from the template: NAME=spirals

new-project: ready
	@$(call ours,scaffold '$(NAME)')

##@ Testing
tests_of = $(wildcard tests/$(PROJECT) tests/*/$(PROJECT) tests/*/test_$(PROJECT).py tests/*/test_$(PROJECT)_*.py)
of_every_line = $(wildcard tests/smoke/test_smoke.py tests/projects/test_contract.py)
pytest = env OMP_NUM_THREADS=1 $(PY) -m pytest
spread = $(shell $(PY) -c 'import xdist' 2>/dev/null && printf %s '-n $(WORKERS) --dist loadfile')

test: check-tests ready ## every test, or those of PROJECT=; ARGS="-k name" goes to pytest
	@exec $(pytest) $(spread) $(if $(PROJECT),$(tests_of) $(of_every_line) --project $(PROJECT),tests) $(ARGS)

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
help: ## this page, or with PROJECT= the verbs of a project
ifneq ($(PROJECT),)
help: check ready
	@exec $(PY) -m $(module) help
else
help:
	@make/help.sh Makefile
	@printf '\nProjects and their sizes\n'
	@printf '  %-10s %s\n' $(foreach each,$(projects),'$(each)' '$(call sizes_of,$(each))' \
		$(foreach stage,$(call stages_of,$(each)),'' 'STAGE=$(stage): $(call sizes_of,$(each),$(stage))'))
	@printf '  %-10s %s\n' HW= '$(hardware) (default: what the machine has)'
endif

# Any other word is a verb of the project's own, if a project is named.
.DEFAULT:
	@$(if $(PROJECT),$(MAKE) own verb=$@,make/mistake.sh target '$@' '$(targets)')

.PHONY: own
own: check ready
	@$(make_run)
