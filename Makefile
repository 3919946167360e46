# Everything happens in .venv (and in .venv-sim, for tests of simulators); nothing outside this folder is touched.
PYTHON ?= python3
VENV ?= .venv
# Another build of torch, for instance one for your GPU: make setup TORCH="torch==2.11.0 --index-url ..."
TORCH ?= torch==2.13.0
# Optional dependencies of pyproject.toml, such as a simulator: make setup EXTRAS=pusht, or EXTRAS=sim for robosuite
EXTRAS ?=
OUT ?= runs/demo
SEED ?= 0
FAULTS ?= 100
# Processes that share the tests, a file at a time
JOBS ?= 2
MODE ?= relentless
FIXTURES ?= tests/golden

BIN := $(VENV)/bin
comma := ,
# The first file that names a package counts: the simulators of `sim` are older than the rest.
CONSTRAINTS := $(if $(filter sim,$(subst $(comma), ,$(EXTRAS))),constraints-sim.txt) constraints.txt
# One stamp for each choice of extras, so that asking for another one installs it.
STAMP := $(VENV)/.installed$(if $(EXTRAS),-$(subst $(comma),-,$(EXTRAS)))

.PHONY: help setup demo lift-demo cluster-demo test test-slow setup-simulators test-simulators \
	test-simulators-in-short lint bench-demo bench-cache soak \
	bench-coordinator bench-optimize bench-early-ends bench-autoscaling bench-weights bench-actor-start bench-operations bench-samplers \
	bench-simulators bench-experts \
	bench-learners bench-reward-kinds bench-fidelity bench-memory bench-metaworld bench-environment-pool bench-house evidence bench-models bench-gpu \
	bench-data check-exchange check-lerobot exchange-env fuzz-readers pretrain-embedded protocol bench-robots clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## install into .venv (TORCH=... for another build of torch, EXTRAS=pusht or sim for simulators)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and \
		f"$(PYTHON) is Python {v}: 3.11 or newer is needed; name one with: make setup PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(TORCH)
	@# torch is the one version that users choose: the constraints must not put another in its place.
	awk -F== '!($$1 in named) && $$1 != "torch"; { named[$$1] }' $(CONSTRAINTS) > $(VENV)/constraints.txt
	$(BIN)/python -m pip install -c $(VENV)/constraints.txt -e ".[dev$(if $(EXTRAS),$(comma)$(EXTRAS))]"
	@# openpi's client asks for numpy < 2 and runs with 2: the tests ask our server with it.
	$(BIN)/python -m pip install --no-deps openpi-client==0.1.2
	@touch $@

demo: setup  ## the whole of WMPO on the embedded task: table and report (OUT=runs/demo SEED=0)
	$(BIN)/python -m wmpo_ray run demo --out $(OUT) --set seed=$(SEED)

lift-demo:  ## the same on robosuite's Lift, made small, in an environment of its own (OUT=runs/lift SEED=0)
	$(MAKE) setup VENV=.venv-sim EXTRAS=sim,pusht
	@# Its world model is near the gate's bounds, and misses them with most seeds: the report says by how much.
	.venv-sim/bin/python -m wmpo_ray run lift --force --out $(or $(filter-out runs/demo,$(OUT)),runs/lift) --set seed=$(SEED)

cluster-demo: setup  ## the same as a job on a Ray cluster of a head and two workers on this machine, with a token
	WMPO_RUNS=$(dir $(abspath $(OUT))) $(BIN)/python -m wmpo_ray cluster --workers 2 --submit demo --set seed=$(SEED) \
		--set name=$(notdir $(OUT))

test: setup  ## the tests, and an episode in each simulator where `make setup-simulators` was run
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
	@if test -e .venv-sim/.installed-sim-pusht; then $(MAKE) --no-print-directory test-simulators-in-short; \
		else echo "simulators: not tested, there is no .venv-sim (make setup-simulators)"; fi

test-slow: setup  ## the deaths, hangs, nodes, TLS and transports that `make test` leaves out: half an hour
	$(BIN)/python -m pytest -m slow

setup-simulators:  ## PushT and robosuite with their older numpy, in an environment of their own (.venv-sim)
	$(MAKE) setup VENV=.venv-sim EXTRAS=sim,pusht

test-simulators-in-short: setup-simulators  ## an episode in each of them, drawn, restored and done by the expert; skipped without OpenGL
	.venv-sim/bin/python -m pytest -rs tests/environments/test_simulators_in_short.py

test-simulators: setup-simulators  ## all tests of PushT and robosuite for real
	.venv-sim/bin/python -m pytest tests/contract/test_environments.py tests/environments

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-demo: setup  ## the demo with three seeds -> benchmarks/results/demo.json
	$(BIN)/python -m benchmarks.demo

bench-cache: setup  ## time saved by the conditioning cache
	$(BIN)/python -m benchmarks.cache

soak: setup  ## random faults in the demo's GRPO stage, weights compared with the fault-free run (FAULTS=100 MODE=settled)
	$(BIN)/python -m benchmarks.soak --faults $(FAULTS) --mode $(MODE)

bench-coordinator: setup  ## the main loop with up to 256 simulated actors, autoscaling, weight deltas
	$(BIN)/python -m benchmarks.coordinator

bench-optimize: setup  ## the demo's GRPO stage with and without early ends, slots and streaming -> benchmarks/results/optimize.json
	$(BIN)/python -m benchmarks.optimize

bench-early-ends: setup  ## chunks that early ends save at base success .2, .4, .5 and .7, in the slots of a run
	$(BIN)/python -m benchmarks.early_ends

bench-autoscaling: setup  ## nodes that come and go with the work, on Ray's fake provider
	$(BIN)/python -m benchmarks.autoscaling

bench-weights: setup  ## share of bf16 weights that an update changes, and what a delta costs
	$(BIN)/python -m benchmarks.weight_delta

bench-actor-start: setup  ## processor time until an actor is there, in a fresh process and in a spare one
	$(BIN)/python -m benchmarks.actor_start

bench-operations: setup  ## submission, the Grafana board's queries, what metrics cost, doors without a token
	$(BIN)/python -m benchmarks.operations

bench-samplers: setup  ## fidelity of the demo's world model against solver and number of steps
	$(BIN)/python -m benchmarks.sampler_steps

bench-simulators:  ## whole runs of lift (or others: TASKS="lift stack pusht") with three seeds, resumable, in .venv-sim
	$(MAKE) setup VENV=.venv-sim EXTRAS=sim,pusht
	.venv-sim/bin/python -m benchmarks.simulators --tasks $(or $(TASKS),lift)

bench-experts: setup  ## success of the scripted experts of robosuite, without and with noise (make setup EXTRAS=sim before)
	$(BIN)/python -m benchmarks.experts

bench-fidelity: setup  ## how true the demo's imagined videos are, by step, and how failures are imagined (three seeds)
	$(BIN)/python -m benchmarks.fidelity

bench-memory: setup  ## memory that 1,280 full-size episodes take in optimize, in an alignment and in evaluate
	$(BIN)/python -m benchmarks.memory

bench-metaworld: setup  ## success of Meta-World's scripted policies in all of its tasks (make setup EXTRAS=metaworld)
	$(BIN)/python -m benchmarks.metaworld_experts

bench-environment-pool: setup  ## demonstrations of PushT on two environment workers against the raw simulator (EXTRAS=pusht)
	SDL_VIDEODRIVER=dummy $(BIN)/python -m benchmarks.environment_pool

bench-house: setup  ## sizes of rooms and files, loops, files per change (WEIGHTS="OLD NEW" CI_LOG=FILE: into its results)
	$(BIN)/python -m benchmarks.house $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(CI_LOG),--ci-log $(CI_LOG))

evidence: setup  ## the paper's comparisons, cell by cell, for hours; goes on with what is missing (EVIDENCE="--methods wmpo dpo --seeds 0")
	$(BIN)/python -m benchmarks.evidence $(EVIDENCE)

bench-learners: setup  ## other policies and learners on the embedded task: Flow-GRPO, RLlib's PPO, a sweep (PART=flow|parity|multi SEEDS="0 1 2")
	$(BIN)/python -m benchmarks.learners $(or $(PART),flow) $(if $(SEEDS),--seeds $(SEEDS))
	$(if $(PART),,$(BIN)/python -m benchmarks.learners_rllib)
	$(if $(PART),,$(BIN)/python -m benchmarks.learners_tune)

bench-reward-kinds: setup  ## kinds of reward model on the embedded task: F1, calibration, labels in imagination (SEEDS="0 2")
	$(BIN)/python -m benchmarks.reward_kinds --timed $(if $(SEEDS),--seeds $(SEEDS))

bench-models: setup  ## parity with published fixtures, memory of loading (FIXTURES=tests/golden)
	$(BIN)/python -m benchmarks.models --fixtures $(FIXTURES)

bench-gpu: setup  ## models of full size on one GPU -> benchmarks/results/gpu.json
	$(BIN)/python -m benchmarks.gpu

# Another Python with lerobot and robomimic. EXCHANGE=PYTHON names one that has them already.
EXCHANGE ?= .venv-exchange/bin/python

bench-data: setup exchange-env  ## windows and episodes a second, beside robomimic's and lerobot's own readers -> benchmarks/results/data.json
	$(BIN)/python -m benchmarks.data --python $(EXCHANGE)

check-exchange: setup exchange-env  ## whether lerobot and robomimic read what we export, and we what lerobot writes -> benchmarks/results/exchange.json
	$(BIN)/python -m benchmarks.exchange --python $(EXCHANGE)

check-lerobot: setup exchange-env  ## lerobot's robot client through the bridge to a policy server of ours -> benchmarks/results/robots.json
	$(BIN)/python -m benchmarks.robots --parts lerobot --python $(EXCHANGE)

exchange-env: $(EXCHANGE)  ## lerobot and robomimic, in an environment of their own

.venv-exchange/bin/python: benchmarks/exchange-requirements.txt
	$(PYTHON) -m venv .venv-exchange
	.venv-exchange/bin/python -m pip install $(TORCH) -r $<
	.venv-exchange/bin/python -m pip install --no-deps lerobot==0.4.4 robomimic==0.3.0 torchvision==0.28.0
	@touch $@

# An old compiler: what it writes runs with protobuf 4 to 7, and so with the Python 3.9 of many robots.
PROTOC ?= .venv-protocol/bin/python

protocol: $(PROTOC)  ## compile wmpo_ray/remote/wmpo.proto into wmpo_client/protocol
	$(PROTOC) -m grpc_tools.protoc -I wmpo_ray/remote --python_out=wmpo_client/protocol \
		--grpc_python_out=wmpo_client/protocol wmpo.proto
	sed -i 's/^import wmpo_pb2 as/from wmpo_client.protocol import wmpo_pb2 as/' wmpo_client/protocol/wmpo_pb2_grpc.py

.venv-protocol/bin/python:
	$(PYTHON) -m venv .venv-protocol
	.venv-protocol/bin/python -m pip install grpcio-tools==1.62.3

bench-robots: setup  ## the policy server, uploads and doors over loopback -> benchmarks/results/robots.json
	$(BIN)/python -m benchmarks.robots

fuzz-readers: setup  ## 1,200 mutated files for each reader of data: refused by name or read as a whole
	$(BIN)/python -m benchmarks.fuzz_readers

pretrain-embedded: setup  ## rebuild the shipped world models from nothing
	$(BIN)/python -m benchmarks.pretrain_embedded --name embedded-a --seed 0
	$(BIN)/python -m benchmarks.pretrain_embedded --name embedded-b --seed 1

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .venv-sim .venv-exchange .venv-protocol .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
