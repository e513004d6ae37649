# Every check of the project is a target here; .ci/run only calls them.
# "make help" lists them. Nothing here needs the network once the modules and
# the Debian packages of .ci/packages are there.

# One shell per recipe, stop at the first failure, also inside a pipe.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := build

GO ?= go
# Tools are pinned in a module of their own.
TOOL := $(GO) tool -modfile=tools/go.mod

# Packages that need the real program, root, FUSE or loop devices. They have the
# machine to themselves: loop devices and CPU time are shared by all of them.
ROOTPKGS := ./tests/mount ./tests/cli ./tests/crash ./tests/powercut ./tests/stress
# Only those that exist, and have tests.
rootpkgs = $(shell for p in $(ROOTPKGS); do ls $$p/*_test.go >/dev/null 2>&1 && echo $$p; done)
# Everything else: pure Go, no root, offline.
unitpkgs = $(shell $(GO) list ./... | grep -vE '/tests/(mount|cli|crash|powercut|stress|kernel)(/|$$)')

# Time limits are shorter than those of CI, so that a hang prints the stacks of
# all goroutines instead of a killed job.
UNIT_TIMEOUT ?= 5m
ROOT_TIMEOUT ?= 6m
LONG_TIMEOUT ?= 60m

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# --- build -------------------------------------------------------------------

# CGO_ENABLED=0  one static binary, runs in any container and in micro VMs
# -trimpath      no path of the machine that built it
# -buildvcs      "dmfuse version" names the commit; auto: also builds outside git
.PHONY: build
build: ## bin/dmfuse, and bin/dmsetup that links to it
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=auto -o bin/dmfuse ./cmd/dmfuse
	ln -sfn dmfuse bin/dmsetup

# --- quick checks ------------------------------------------------------------

.PHONY: check
check: fmt vet staticcheck layers unit ## all that is quick and needs no root

.PHONY: fmt
fmt: ## gofmt: prints what differs, and fails
	@out=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard -- '*.go' | while read -r f; do [ -e "$$f" ] && echo "$$f"; done))
	if [ -n "$$out" ]; then echo "gofmt -w needed:"; echo "$$out"; exit 1; fi

.PHONY: vet
vet: ## go vet
	$(GO) vet ./...

.PHONY: staticcheck
staticcheck: ## staticcheck, pinned in tools/go.mod
	$(TOOL) staticcheck ./...

# -count=1  never from the cache: the answer depends on files go test does not see
.PHONY: layers
layers: ## import rules and the project's own lint
	$(GO) test -count=1 -timeout 2m ./tests

# --- tests -------------------------------------------------------------------

.PHONY: test
test: deps unit test-root ## unit tests, then those with the real program: mounts, command line, crash and stress (short)

# As root on Debian only; elsewhere, and without a network, the tests do without
# and say what they skip.
.PHONY: deps
deps: ## installs the Debian packages the tests use, where that is possible
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then .ci/install || echo "make: going on without"; fi

.PHONY: unit
unit: ## all packages that need neither root nor FUSE; includes the kernel vectors
	$(GO) test -timeout $(UNIT_TIMEOUT) $(unitpkgs)

# -p 1      one package at a time: they mount, use loop devices and kill daemons
# -count=1  never from the cache: the kernel below is part of what is tested
.PHONY: test-root
test-root: ## tests with the real program; skips what the machine cannot do, refuses to skip under CI=true
	@[ -n "$(rootpkgs)" ] || { echo "no tests with the real program"; exit 1; }
	tests/leftovers.sh mark
	rc=0; $(GO) test -p 1 -count=1 -timeout $(ROOT_TIMEOUT) $(rootpkgs) || rc=$$?
	tests/leftovers.sh check || rc=1
	exit $$rc

# DMFUSE_KERNEL=1  the suite boots kernels only when asked to
.PHONY: test-kernel
test-kernel: ## stores exchanged with a real Linux kernel (package user-mode-linux), both ways
	DMFUSE_KERNEL=1 $(GO) test -count=1 -timeout 10m ./tests/kernel

# DMFUSE_LONG=1  more rounds, larger devices, more seeds in every suite
.PHONY: test-long
test-long: ## what takes longer than CI can wait for: every suite with DMFUSE_LONG=1
	tests/leftovers.sh mark
	rc=0
	DMFUSE_LONG=1 $(GO) test -count=1 -timeout $(LONG_TIMEOUT) $(unitpkgs) || rc=$$?
	DMFUSE_LONG=1 $(GO) test -p 1 -count=1 -timeout $(LONG_TIMEOUT) $(rootpkgs) || rc=$$?
	DMFUSE_LONG=1 DMFUSE_KERNEL=1 $(GO) test -count=1 -timeout 30m ./tests/kernel || rc=$$?
	$(MAKE) fuzz FUZZTIME=5m || rc=$$?
	tests/leftovers.sh check || rc=1
	exit $$rc

# -race   the race detector; needs cgo and a C compiler
# -short  the same tests with fewer rounds: the detector is about ten times slower
# -run    of the suite with the real program, whose daemon is built with the
#         detector too, what has many requests under way at once
.PHONY: race
race: ## race detector over the unit tests, and over a daemon under load
	rc=0
	CGO_ENABLED=1 $(GO) test -race -short -timeout 10m $(unitpkgs) || rc=$$?
	CGO_ENABLED=1 $(GO) test -race -short -p 1 -count=1 -timeout $(ROOT_TIMEOUT) -run 'Model|Suspended|KilledClient' ./tests/stress || rc=$$?
	CGO_ENABLED=1 $(GO) test -race -short -p 1 -count=1 -timeout $(ROOT_TIMEOUT) -run 'KillUnderLoad|KillDuring|WorkerKilled$$|WorkerPoisoned|WorkerHangs' ./tests/crash || rc=$$?
	exit $$rc

# GOMAXPROCS=1  test and daemon run one goroutine at a time: some ways to lock up
#               against the kernel show only then
.PHONY: one-cpu
one-cpu: ## what a device file does, and a keeper whose workers die, with one processor
	rc=0
	GOMAXPROCS=1 $(GO) test -count=1 -p 1 -timeout $(ROOT_TIMEOUT) ./tests/mount || rc=$$?
	GOMAXPROCS=1 $(GO) test -count=1 -p 1 -timeout $(ROOT_TIMEOUT) -run 'Worker|Keeper|Upgrade$$' ./tests/crash || rc=$$?
	exit $$rc

# Each way by which requests can arrive (fs.Transport) does the same, and so does
# one process; the default, dev with a keeper, is what all other targets run with. For io_uring the tests switch the parameter
# of the kernel module on, and back; kernels before 6.14 have none, and no tests.
.PHONY: transports
transports: ## what a device file does, by the transports that are not the default, and without a keeper
	rc=0
	for t in gofuse uring; do
	  DMFUSE_TRANSPORT=$$t $(GO) test -count=1 -p 1 -timeout $(ROOT_TIMEOUT) ./fs ./tests/mount || rc=$$?
	done
	DMFUSE_KEEPER=0 $(GO) test -count=1 -p 1 -timeout $(ROOT_TIMEOUT) ./tests/mount || rc=$$?
	exit $$rc

# Each fuzz target for FUZZTIME; go test takes one target at a time.
FUZZTIME ?= 10s
.PHONY: fuzz
fuzz: ## every Fuzz target for FUZZTIME (10s)
	@for p in $$($(GO) list -f '{{.Dir}}' ./...); do
	  for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$$p"/*_test.go 2>/dev/null | sed 's/func //'); do
	    echo "== $${p#$(CURDIR)/} $$f"
	    $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) "$$p"
	  done
	done

# -run '^$$'    no tests, only benchmarks
# BENCH_MICRO   of those, the ones with figures of their own: copies, lookup of
#               exceptions, a store of a million, reads; the rest is end to end
# BENCH         flags of tests/bench, such as BENCH=--quick; it needs root
BENCH_MICRO := Copy/file/|Bare/file|Depth16/file|Exceptions|Load_Million|Read/file|FileSystemRead|Device_Read
.PHONY: bench
bench: build ## micro benchmarks, then end to end beside the peers, about ten minutes; reports in bench-out
	$(GO) test -run '^$$' -bench '$(BENCH_MICRO)' -benchtime 200ms -benchmem ./kcopyd ./snapshot ./mapper ./fs | grep -vE '^(ok|PASS|goos|goarch|cpu)'
	$(GO) build -o bin/bench ./tests/bench
	bin/bench $(BENCH)

# What the benchmark compares with beside the packages of the tests.
.PHONY: bench-peers
bench-peers: deps ## installs the peers of the benchmark from Debian
	apt-get -q -y --no-install-recommends install nbdkit libnbd-bin xmount sqlite3

.PHONY: cover
cover: ## coverage of the unit tests, by function, worst last
	mkdir -p bin
	$(GO) test -timeout $(UNIT_TIMEOUT) -coverpkg=./... -coverprofile=bin/cover.out $(unitpkgs) >/dev/null
	$(GO) tool cover -func=bin/cover.out | sort -k3 -rn

.PHONY: demo
demo: build ## the program shown at work; IMG=path takes an image of yours
	tests/demo/demo.sh

# --- order -------------------------------------------------------------------

.PHONY: leftovers
leftovers: ## fails when a dmfuse mount, loop device or daemon is left that was not there at "make leftovers-mark"
	tests/leftovers.sh check

.PHONY: leftovers-mark
leftovers-mark: ## remembers what is there now, for "make leftovers"
	tests/leftovers.sh mark

.PHONY: clean
clean: ## removes what make made
	rm -rf bin bench-out
