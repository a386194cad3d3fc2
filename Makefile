# SPFS. "make help" says what there is.

PREFIX  ?= /usr/local
DESTDIR ?=
GO      ?= go

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.6.1
FUZZTIME    = 50000x

.PHONY: all help deps test check unit e2e fuzz demo soak bench generate install clean

all:
	CGO_ENABLED=0 $(GO) build -o bin/ ./cmd/spfs ./cmd/spfs-swap

help:
	@echo "make            build bin/spfs and bin/spfs-swap"
	@echo "make deps       install the Debian packages needed, and bin/criu"
	@echo "make test       everything that must pass: check, fuzz, unit, e2e (as root)"
	@echo "make demo       a process outlives its FUSE mount, step by step (as root)"
	@echo "make soak       clients and servers swapped again and again, swappers killed 500 times (as root);"
	@echo "                installs postgres, redis, nginx and sqlite3"
	@echo "make bench      times of swaps and of the proxy, as a table (as root)"
	@echo "make generate   compile the BPF programs anew (needs clang and llvm)"
	@echo "make install    into DESTDIR and PREFIX (now '$(DESTDIR)' and '$(PREFIX)')"
	@echo "make clean      remove what was built; 'rm -rf .deps bin' also what deps fetched"

deps:
	@sh hack/deps.sh

# Everything runs inside the fence of test/cmd/contained, which fails when a
# process, mount, socket, cgroup or file is left behind.
test: deps all
	@sh hack/test.sh check fuzz unit e2e

# The parts of "make test", for one who works on the code.
check unit e2e fuzz: deps all
	@sh hack/test.sh $@

demo bench: deps all
	@$(GO) run ./test/cmd/$@

soak: deps all
	@sh hack/deps.sh soak
	@$(GO) run ./test/cmd/soak
	@$(GO) test -tags soak -count=1 -timeout 90m -run '^TestSwapKilled' ./test

# Only who changes the BPF programs needs it, and Debian's clang and llvm.
generate:
	$(GO) generate ./internal/...

install: all
	install -d '$(DESTDIR)$(PREFIX)/bin'
	install -m 755 bin/spfs bin/spfs-swap '$(DESTDIR)$(PREFIX)/bin'

clean:
	rm -f bin/spfs bin/spfs-swap

export GO STATICCHECK FUZZTIME
