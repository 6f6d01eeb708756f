# SPDX-License-Identifier: Apache-2.0

export CGO_ENABLED := 0
# Without a tag the version is "g" and the hash of the commit, as in a version after a tag:
# a hash may begin with a digit, and must not be taken for a version number.
VERSION ?= $(shell git describe --tags --dirty 2>/dev/null || git describe --always --dirty 2>/dev/null | sed 's/^/g/' | grep . || echo unknown)
GO      ?= go
LDFLAGS := -s -w -buildid= -X github.com/netbackd/netbackd/internal/command.version=$(VERSION)
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
FUZZTIME ?= 10s
FUZZCOUNT ?= 100000000
STEPS   ?= 1000000
PREFIX  ?= /usr
BIN     ?= bin/netbackd
BLKBIN  ?= bin/blkbackd
DIST    ?= dist

.PHONY: build lab lab-net lab-blk demo demo-blk test test-all test-xen test-arm64 bench bench-scale bench-vhost bench-xen bench-blk bench-blk-embedded fair lint fuzz fuzz-long kill cross install deb deb-pair clean

build: ## bin/netbackd and bin/blkbackd, static
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/netbackd
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BLKBIN) ./cmd/blkbackd

lab: lab-net lab-blk ## bin/netbackd-lab and bin/blkbackd-lab, the programs with an embedded Xen and guests, not installed

lab-net:
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/netbackd-lab ./cmd/netbackd-lab

lab-blk:
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/blkbackd-lab ./cmd/blkbackd-lab

demo: lab-net ## guests' traffic through netbackd, without Xen
	./bin/netbackd-lab demo
	@echo "make demo-blk shows blkbackd, with guests' disks."

demo-blk: lab-blk ## a guest's disk through blkbackd, which is killed on the way, without Xen
	./bin/blkbackd-lab demo

test: build lab cross ## static checks, all Go tests with the race detector, the core of the scenarios on a real Xen
	./test/run

test-all: build lab cross ## the same with every scenario
	NETBACKD_SCENARIOS=all ./test/run

test-xen: build lab deb-pair ## every scenario on a real Xen under QEMU, from Debian's packages
	./test/xen/run

test-arm64: ## packages that need no kernel of their own, under QEMU's arm64
	GOARCH=arm64 $(GO) test -exec qemu-aarch64-static ./pkg/netif ./pkg/blkif ./internal/offload ./pkg/toeplitz ./internal/steer ./pkg/ctrlring ./pkg/staticgrant ./pkg/xentest ./pkg/xenstore ./internal/rawio
	GOARCH=arm64 $(GO) test -exec qemu-aarch64-static -run "TestProgram|TestNumbers|TestVhostUser|TestDisks|TestNoRuleTwice" ./internal/confine

bench-xen: build ## netbackd against the kernel's netback on a real Xen under QEMU, with plots in docs/performance
	./test/xen/bench/run -p docs/performance

bench-blk: build ## blkbackd against xen-blkback and QEMU's qdisk, on a real Xen under QEMU
	./test/xen/bench/run -k blk

bench-blk-embedded: ## the data path of vbds against bare io_uring on the same file, on the embedded Xen
	BLKPLANE_BENCH=1 $(GO) test -count=1 -run 'TestBench$$' -v ./internal/blkplane

bench-vhost: build ## vhost-user devices against DPDK's vhost, QEMU's tap, passt and a bare loop
	./test/bench-vhost

bench-scale: build ## the cost of many vifs and queues, in the data path and of the whole daemon
	./test/bench-scale

fair: ## what guests keep beside hostile ones, each hostile load in turn
	./test/fair/run

bench: build ## the data path against bare system calls on the same TAP
	./test/bench

lint: ## for both architectures, and the scripts if there is shellcheck
	$(GO) run $(GOLANGCI) run ./...
	$(GO) run -exec 'env GOARCH=arm64' $(GOLANGCI) run ./...
	if command -v shellcheck >/dev/null; then git grep -lE '^#!/bin/(ba)?sh' | xargs shellcheck; fi

faults: ## every system call of the daemon fails, with each error, in each phase of a guest's life
	./test/faults/run faults

reconnect: ## 10,000 connections of all kinds, and 100 hostile guests, leave nothing and stay within the bounds
	./test/faults/run reconnect

fuzz: ## every fuzz target for FUZZTIME
	./test/fuzz $(FUZZTIME)

fuzz-long: ## every fuzz target FUZZCOUNT times, without guidance by coverage, in hours; GUIDED=1: with it, in weeks
	./test/fuzz $(FUZZCOUNT)x $(if $(GUIDED),,blind)

kill: ## netbackd and blkbackd killed many times under load on the embedded Xen
	./test/kill

model: ## STEPS random steps of a vif against a model, in an hour
	./test/model $(STEPS)

cross: ## both architectures
	GOARCH=amd64 $(GO) build -o /dev/null ./...
	GOARCH=arm64 $(GO) build -o /dev/null ./...

# The completers print completions, so they are built for this machine even if $(BIN) and
# $(BLKBIN) are not.
bin/completer: build
	GOOS= GOARCH= $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/netbackd

bin/blkcompleter: build
	GOOS= GOARCH= $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/blkbackd

install: bin/completer bin/blkcompleter ## every file where it belongs, below DESTDIR
	DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) ./packaging/install netbackd $(BIN) bin/completer
	DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) ./packaging/install blkbackd $(BLKBIN) bin/blkcompleter

deb: bin/completer bin/blkcompleter ## dist/{netbackd,blkbackd}_VERSION_ARCH.deb, without network, the same for the same sources
	DIST=$(DIST) ./packaging/debian/build netbackd $(BIN) bin/completer $(shell $(GO) env GOARCH) $(VERSION)
	DIST=$(DIST) ./packaging/debian/build blkbackd $(BLKBIN) bin/blkcompleter $(shell $(GO) env GOARCH) $(VERSION)

deb-pair: ## two packages of each to try an upgrade with
	$(MAKE) --no-print-directory deb BIN=bin/netbackd-1 BLKBIN=bin/blkbackd-1 VERSION=1 DIST=dist/pair
	$(MAKE) --no-print-directory deb BIN=bin/netbackd-2 BLKBIN=bin/blkbackd-2 VERSION=2 DIST=dist/pair

clean:
	rm -rf bin dist .cache
