# The whole developer interface. Every target does its own set-up, `make demo` only what it needs, and may be run again.
#
#   make demo    the main job on real parts, in network namespaces    make demo-down   removes a lab that KEEP=1 left up
#   make test    every test                                           make check       ruff, mypy, layers, clang-format, configs
#                TOR=frr: FRR instead of BIRD as the ToR; STORE=kubernetes: an API server instead of files
#   make fuzz       a million random packets, model against eBPF (SEED=…, COUNT=packets)
#   make verified   records how many instructions the verifier goes through, for the tests to compare with
#   make kernel  Debian 12's and 13's kernels and headers of the first, unpacked into .lab/cache for the tests
#   make kernels   pods on devices of each kind, on these and on the kernels of Debian's backports, in QEMU
#   make setup   what all of them need                                make bpf        what the demo needs, and the eBPF object
#   make wheel   dist/routerd-VERSION-py3-none-linux_MACHINE.whl, what is C compiled: what hosts install
#   make chaos   kills at random moments under churn (KILLS=50, SEED=…)
#   make soak    an hour of churn under traffic of both families (MINUTES=…, SEED=…)
#   make cloud-faults   random lives of instances on a fake cloud, with faults (STEPS=10000, SEED=…)
#   make demo-cloud   addresses of clouds for pods, and egress IPs that move, on their fakes, with every call told (CLOUD=…)
#   make partitions   each pair of peers cut in each manner, failures, stopped processes, under traffic (ROUNDS=…, SEED=…)
#   make bench   benchmarks                                           make lock        renews requirements/*.txt
#   make bench-packets, bench-egress   the egress datapath: ns per packet; throughput beside nftables (FAMILY=6, ROUNDS=…, POLICIES=…, MODES=…)
#   make bench-way   what a packet's whole way through it takes, beside routing or VXLAN alone, and nftables (FAMILY=6)
#   make bench-bgp   paths to a ToR: routerd's ExaBGP and the stock one, BIRD, FRR (SPEAKERS=bird,routerd, CASES=10000x32)
#   make bench-routes   10,000 routes to other nodes' pods: put, read back, moved, removed
#   make bench-cni   what the CNI plugin adds to a pod's start (PODS=500, AT_ONCE=16)
#   make bench-begin   a published port set until it is in use, a pod's first packet until its answer
#   make bench-entries   100,000 map entries: from a snapshot to the kernel, and one changed pod among them
#   make bench-failover   a gateway dies, is drained, is added: time without packets, connections lost (RUNS=200)
#   make bench-ipam   what addresses cost: a million of a /8, netaddr beside it, the operator with 10,000 services
#   make bench-cloud   a thousand instances' pods at once on fake clouds that throttle (INSTANCES=…)
#   make image   the container image, by docker or buildah (IMAGE=name:tag, IMAGE_FLAGS= more options for either)

SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: setup kernel kernels check test fuzz verified chaos soak partitions cloud-faults demo demo-cloud demo-down bench bench-react bench-bgp bench-k8s bench-allocations bench-ipam bench-cloud bench-ports bench-rounds bench-packets bench-egress bench-way bench-cni bench-begin bench-entries bench-failover bench-routes lock image bpf wheel clean

setup:
	@tools/setup

bpf:
	@tools/setup demo

check: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports --no-cache
	@$(VENV)/bin/deptry . --no-ansi
	@clang-format --dry-run -Werror bpf/*.h bpf/*.c bpf/bcc/*.h bpf/bcc/bpf/*.h cni/*.c
	@$(PY) -m pytest -q tests/unit/test_configs.py tests/unit/test_house.py

wheel: bpf
	@rm -rf build dist/routerd-*.whl
	@$(VENV)/bin/pip -q wheel --no-deps -w dist .
	@echo dist/routerd-*.whl

kernel:
	@tools/kernel

kernels: setup
	@tools/kernel all
	@$(PY) -m tests.package.kernels

# The stories' labs one after the other, beside them the attacks' and all that needs none: labs wait more than they work.
# WORKERS=0: one process.
test: setup kernel
	@$(PY) -m pytest --numprocesses $(or $(WORKERS),3) --dist loadscope

chaos: setup
	@$(PY) -m tests.netns.stories.chaos $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED))

soak: setup
	@$(PY) -m tests.netns.stories.soak $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

cloud-faults: setup
	@$(PY) -m tests.models.cloud.faulty $(if $(STEPS),--steps $(STEPS)) $(if $(SEED),--seed $(SEED))

demo-cloud: setup
	@$(PY) -m tests.netns.stories.demo_cloud $(if $(CLOUD),--cloud $(CLOUD))

partitions: setup
	@$(PY) -m tests.netns.stories.partitions $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED))

demo: bpf
	@$(PY) -m tests.netns.stories.demo

demo-down: bpf
	@$(PY) -m tests.netns.stories.demo --down

fuzz: setup
	@$(PY) -m tests.bpf.fuzz $(if $(SEED),--seed $(SEED)) $(if $(COUNT),--count $(COUNT))

verified: setup kernel
	@$(PY) -m tests.bpf.verified

bench: bench-react bench-bgp

bench-react: setup
	@$(PY) -m tests.bench.react

bench-bgp: setup
	@$(PY) -m tests.bench.bgp $(if $(SPEAKERS),--speakers $(SPEAKERS)) $(if $(CASES),--cases $(CASES))

bench-k8s: setup
	@$(PY) -m tests.bench.kubernetes

bench-allocations: setup
	@$(PY) -m tests.bench.allocate

bench-ipam: setup
	@$(PY) -m tests.bench.ipam

bench-cloud: setup
	@$(PY) -m tests.bench.cloud $(if $(INSTANCES),--instances $(INSTANCES))

bench-ports: setup
	@$(PY) -m tests.bench.ports
	@$(PY) -m tests.bench.rush
	@$(PY) -m tests.bench.rollout

bench-rounds: setup
	@$(PY) -m tests.bench.rounds

bench-begin: setup
	@$(PY) -m tests.bench.begin

bench-entries: setup
	@$(PY) -m tests.bench.entries

bench-failover: setup
	@$(PY) -m tests.bench.failover $(if $(RUNS),--runs $(RUNS))

bench-packets: setup
	@$(PY) -m tests.bench.packets $(if $(FAMILY),--family $(FAMILY)) $(if $(ROUNDS),--rounds $(ROUNDS))

bench-egress: setup
	@$(PY) -m tests.bench.egress $(if $(FAMILY),--family $(FAMILY)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(POLICIES),--policies $(POLICIES)) $(if $(NETFILTER),--netfilter) $(if $(MODES),--modes $(MODES))

bench-way: setup
	@$(PY) -m tests.bench.way $(if $(FAMILY),--family $(FAMILY))

bench-routes: setup
	@$(PY) -m tests.bench.routes

bench-cni: setup
	@$(PY) -m tests.bench.cni $(if $(PODS),--pods $(PODS)) $(if $(AT_ONCE),--at-once $(AT_ONCE))

# What is tested is what is installed: the other locks take their versions from that of the tests.
lock: setup
	@$(VENV)/bin/uv pip compile pyproject.toml --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate -q --extra dev -o requirements/dev.txt
	@$(VENV)/bin/uv pip compile pyproject.toml --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate -q -c requirements/dev.txt -o requirements/runtime.txt
	@$(VENV)/bin/uv pip compile pyproject.toml --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate -q -c requirements/dev.txt --extra aws -o requirements/aws.txt
	@$(VENV)/bin/uv pip compile pyproject.toml --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate -q -c requirements/dev.txt --extra alibaba -o requirements/alibaba.txt
	@$(VENV)/bin/uv pip compile pyproject.toml --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate -q -c requirements/dev.txt --extra azure -o requirements/azure.txt

IMAGE ?= routerd:$(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)

image:
	@if docker info >/dev/null 2>&1; then build="docker build"; \
	elif command -v buildah >/dev/null; then build="buildah build --layers"; \
	else echo "image: error: neither a Docker daemon nor buildah is here (Debian: apt-get install buildah)" >&2; exit 1; fi; \
	set -x; $$build $(IMAGE_FLAGS) --tag $(IMAGE) --build-arg REVISION="$$(git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null)" .

clean:
	rm -rf $(VENV) .lab/cache bpf/*.o cni/routerd-cni .mypy_cache .ruff_cache .pytest_cache .hypothesis
