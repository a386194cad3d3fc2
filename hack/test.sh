#!/bin/sh
# test.sh PART…, behind "make test" and its parts:
#
#   check  gofmt, go vet, staticcheck; and that it builds for aarch64
#   fuzz   each fuzz target for FUZZTIME
#   unit   the packages' own tests, with the race detector where it can run; and
#          those of the code for aarch64, by qemu-user
#   e2e    the commands on real FUSE daemons, real CRIU and real clients
#
# Stops at the first part that fails, and says which and what to do next.
set -u
cd "$(dirname "$0")/.."
: "${GO:=go}" "${FUZZTIME:=50000x}" "${STATICCHECK:=honnef.co/go/tools/cmd/staticcheck@v0.6.1}"

[ "$(id -u)" = 0 ] || {
	echo "make test: must run as root: the tests mount file systems and trace processes" >&2
	exit 1
}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

contained() { "$tmp/contained" "$@"; }

check() {
	unformatted=$(gofmt -l $($GO list -f '{{.Dir}}' ./...)) || return 1
	[ -z "$unformatted" ] || {
		echo "not formatted by gofmt:" $unformatted >&2
		return 1
	}
	for arch in amd64 arm64; do
		GOARCH=$arch CGO_ENABLED=0 $GO build ./... && GOARCH=$arch $GO vet ./... || return 1
	done
	$GO run "$STATICCHECK" ./...
}

# FUZZTIME counts runs: given a time, go's fuzzing takes the end of it for a
# failure now and then, when the machine is busy (golang/go issue 75804).
fuzz() {
	for package in $($GO list ./...); do
		for target in $($GO test -list '^Fuzz' "$package" | grep '^Fuzz'); do
			contained $GO test -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZTIME" -fuzzminimizetime 1000x "$package" || return 1
		done
	done
}

unit() {
	race=
	# The race detector needs cgo and a C compiler.
	[ "$($GO env CGO_ENABLED)" = 1 ] && command -v gcc >/dev/null && race=-race
	contained $GO test $race -count=1 -timeout 10m $($GO list ./... | grep -v '/test$') && aarch64
}

# What of internal/ptrace needs no ptrace, which qemu-user has not, is run as a
# program for aarch64 too: above all the code that is put into processes.
aarch64() {
	GOARCH=arm64 CGO_ENABLED=0 $GO test -c -o "$tmp/ptrace-arm64" ./internal/ptrace || return 1
	out=$(cd internal/ptrace && contained qemu-aarch64 "$tmp/ptrace-arm64" -test.v -test.timeout 2m -test.run \
		'^Test(Stream.*|UnboundLabel|ErrnoOf|SlackBehindText|VDSOAddress|FilterIsAsked|ParseStatus.*)$' 2>&1) &&
		echo "$out" | grep -q '^--- PASS: TestStreamFlow' || { echo "$out"; return 1; }
	echo "ok  	spfs/internal/ptrace for aarch64, by qemu-user: $(echo "$out" | grep -c '^--- PASS') tests"
}

e2e() {
	$GO test -count=1 -timeout 25m ./test
}

$GO build -o "$tmp/contained" ./test/cmd/contained || exit 1
for part in "$@"; do
	echo "== $part"
	began=$(date +%s)
	"$part" || {
		echo "make test: $part failed, see above; again alone: make $part" >&2
		exit 1
	}
	echo "== $part: passed in $(($(date +%s) - began)) s"
done
