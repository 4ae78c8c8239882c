# cri-runtime: `make help` lists what can be made.

VERSION ?= $(shell git describe --tags --dirty 2>/dev/null || echo v0.1.0-dev+$$(git rev-parse --short HEAD 2>/dev/null || echo unknown))
GO      ?= go
TOOLS   := $(GO) tool -modfile=hack/tools/go.mod
LDFLAGS := -s -w -X main.version=$(VERSION)
# Without gRPC's trace pages, whose templates call methods by name and so keep all methods of all types in the program.
TAGS    := grpcnotrace

# Everything but the packages that run the built program. As root, a need that a test misses is a failure and no skip.
UNITS   = $(shell $(GO) list ./... | grep -v -e /test/e2e -e /test/conformance -e /test/rules -e /test/container -e /test/fault -e /test/power -e /test/promises)
STRICT := $(if $(filter 0,$(shell id -u)),1)
export CRI_TEST_STRICT ?= $(STRICT)

.DEFAULT_GOAL := build
.PHONY: help build check fmt vet lint vuln unit test setup e2e promises conformance benchmark kubelet cgroup2 run cover fuzz soak microbench bench bench-pull clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/cri-runtime and bin/cri-monitor: static, stripped (the default)
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -tags '$(TAGS)' -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

check: fmt vet lint unit vuln ## format, vet, lint, unit tests with the race detector, known vulnerabilities

fmt:
	@files=$$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l); \
	if [ -n "$$files" ]; then echo "gofmt these: $$files"; exit 1; fi

vet:
	$(GO) vet ./...

lint:
	$(TOOLS) golangci-lint run ./...

vuln:
	@hack/vulncheck.sh $(TOOLS)

unit: ## unit tests, and as root the kernel tests too, with the race detector
	$(GO) test -race -shuffle=on -timeout 15m $(UNITS)

setup: ## install the Debian packages and build the tools that tests need (root; minutes at the first time)
	hack/debian.sh
	hack/testtools.sh critest crictl ginkgo cni runc

test: setup build check e2e conformance ## everything that CI runs

# -count=1: the go command does not see that the programs under test, which the tests build, have changed.
e2e: ## the built program on a real kernel: the kubelet's rules, make run, restarts, and a kubelet where one has been built
	hack/testtools.sh crictl >/dev/null
	$(GO) test -count=1 -timeout 20m ./test/rules ./test/container/... ./test/fault/... ./test/power ./test/promises ./test/e2e

promises: ## the counts of docs/promises.md, each beside its limit: system calls, memory, descriptors; never a time
	$(GO) test -count=1 -v ./test/promises $(if $(CALLS),-calls $(CALLS))

RUNS    ?= 1
WORKERS ?= 4
conformance: ## critest: RUNS=1 serial runs and one with WORKERS=4 workers
	hack/testtools.sh critest crictl ginkgo cni runc >/dev/null
	$(GO) test -count=1 -timeout 60m -v ./test/conformance -serial $(RUNS) -workers $(WORKERS)

benchmark: ## critest's benchmark mode: five of five
	hack/testtools.sh critest crictl ginkgo cni runc >/dev/null
	$(GO) test -count=1 -timeout 20m -v -run TestBenchmark ./test/conformance -benchmark

kubelet: ## a real kubelet brings up pods through our socket (builds the kubelet once, minutes)
	hack/debian.sh
	hack/testtools.sh kubelet crictl >/dev/null
	$(GO) test -count=1 -timeout 20m -v -run Kubelet ./test/e2e -kubelet

cgroup2: ## kernel tests, make run, systemd and critest in a guest with cgroup v2, kernel 6.12 and AppArmor (builds it once, 6 to 12 minutes)
	hack/testtools.sh critest crictl ginkgo cni runc >/dev/null
	test/cgroup2/build.sh uml
	test/cgroup2/smoke.sh
	test/cgroup2/units.sh
	test/cgroup2/conformance.sh

run: ## start the runtime and run the example pod; Ctrl-C ends it and leaves nothing behind
	@hack/run.sh

cover: ## unit test coverage
	$(GO) test -coverprofile=coverage.out $(UNITS) && $(GO) tool cover -func=coverage.out | tail -n 1

FUZZTIME ?= 30s
fuzz: ## each fuzz target for FUZZTIME=30s
	@git grep -lE '^func Fuzz' -- '*_test.go' | while read -r file; do \
		for f in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$$file"); do \
			$(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) "./$$(dirname "$$file")" || exit 1; done; done

SOAK ?= 15m
soak: ## random faults of registries for SOAK=15m, then hundreds of power cuts (root; half an hour)
	CRI_SOAK=$(SOAK) $(GO) test -timeout 2h -v -run TestSoakFaults ./image
	CRI_SOAK=1 $(GO) test -timeout 2h -v -run TestPowerCut ./test/power

microbench: ## Go benchmarks, ten runs each, for benchstat
	$(GO) test -run '^$$' -bench . -count 10 $(UNITS)

# ONLY=ours PHASES=latency,exec ROUNDS=3 PEER=name=/run/x.sock BENCHFLAGS='-check -short'; -check fails when an aim is not met.
ROUNDS ?= 3
comma  := ,
others  = $(filter-out ours ours-cni $(foreach p,$(PEER),$(firstword $(subst =, ,$(p)))),$(subst $(comma), ,$(or $(ONLY),all)))
bench: build ## pods beside containerd's and CRI-O's: tables and charts in out/bench (25 minutes; builds the peers once; see docs/bench.md)
	hack/debian.sh gcc libc6-dev strace
	hack/testtools.sh cni $(if $(others),runc containerd containerd-shim-runc-v2 crio pinns) >/dev/null
	$(if $(others),hack/testtools.sh oci >/dev/null || hack/debian.sh crun conmon)
	$(GO) run ./test/bench/pods -bin bin -rounds $(ROUNDS) $(if $(ONLY),-only $(ONLY)) $(if $(PHASES),-phases $(PHASES)) $(foreach p,$(PEER),-peer $(p)) $(BENCHFLAGS)

# ONLY=ours,containerd RUNS=5 STORE=erofs|directory|both IMAGES=debian-app:a,node:gz; BENCHFLAGS=-check fails when an aim is not met.
STORE ?= both
bench-pull: build ## image pulls beside containerd's and CRI-O's: table and chart in out/bench-pull (builds the peers once; see docs/bench-pull.md)
	hack/testtools.sh containerd $(if $(ONLY),,crio) >/dev/null
	$(GO) run ./test/bench/pull -bin bin -runs $(if $(filter command line environment,$(origin RUNS)),$(RUNS),5) -store $(STORE) $(if $(ONLY),-only $(ONLY)) $(if $(IMAGES),-images $(IMAGES)) $(BENCHFLAGS)

clean: ## remove what was built here (the cache of tools stays)
	rm -rf bin coverage.out
