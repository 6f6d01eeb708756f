# SPDX-License-Identifier: Apache-2.0

export CGO_ENABLED := 0
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GO      ?= go
LDFLAGS := -s -w -buildid= -X main.version=$(VERSION)
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
FUZZTIME ?= 10s
PREFIX  ?= /usr

.PHONY: build demo test test-xen bench bench-xen lint fuzz cross install clean

build: ## bin/netbackd, static
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/netbackd ./cmd/netbackd

demo: build ## guests' traffic through netbackd, no Xen needed
	./bin/netbackd demo

test: build cross ## everything: vet, units with the race detector, scenarios
	./test/run

test-xen: build ## scenarios on a real Xen under QEMU, from Debian's packages; root
	./test/xen/build
	./test/xen/run

bench-xen: build ## netbackd beside the kernel's netback on a real Xen under QEMU
	./test/xen/bench/run

bench: build ## the data path against bare system calls on the same TAP
	./test/bench

lint:
	$(GO) run $(GOLANGCI) run ./...

fuzz: ## every fuzz target for FUZZTIME
	./test/fuzz $(FUZZTIME)

cross: ## both architectures
	GOARCH=amd64 $(GO) build -o /dev/null ./...
	GOARCH=arm64 $(GO) build -o /dev/null ./...

install: build
	install -D -m 755 bin/netbackd $(DESTDIR)$(PREFIX)/sbin/netbackd
	install -D -m 644 systemd/netbackd.service $(DESTDIR)$(PREFIX)/lib/systemd/system/netbackd.service

clean:
	rm -rf bin .cache
