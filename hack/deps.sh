#!/bin/sh
# deps.sh, behind "make deps": gives a Debian 12 or 13 machine what SPFS and
# its tests need.
#
#   - installs the Debian packages below, only those that are missing;
#   - leaves an executable bin/criu for which "bin/criu check" succeeds: the
#     machine's own CRIU where that works, else Debian trixie's, unpacked with
#     its libraries under .deps/, the system untouched;
#   - leaves bin/criu-next likewise, Debian sid's: the tests that need TCP
#     connections in a checkpoint take it.
#
# With the argument "soak" the servers that "make soak" swaps are installed, too;
# none of them is started.
#
# Nothing is done twice: when all is there it takes a fraction of a second.
set -eu

packages="bindfs fuse3 sshfs openssh-client openssh-server
	gcc libc6-dev libfuse3-dev make qemu-user
	iproute2 mount procps psmisc util-linux"
soak_packages="postgresql redis-server redis-tools nginx sqlite3"

# Debian 12's CRIU 3.17 takes the vDSO of kernels since 6.13 for broken, so
# its successor in Debian is taken, with the libraries it was linked to.
criu_suite=trixie
# CRIU before 4.2 dumps no TCP socket on kernels since 6.16.
criu_next_suite=sid
criu_next_least=4.2
criu_least=4.0

say() { echo "deps: $*"; }
die() { echo "deps: $*" >&2; exit 1; }

case ${1:-} in
'') ;;
soak) packages="$packages $soak_packages" ;;
*) die "usage: deps.sh [soak]" ;;
esac

cd "$(dirname "$0")/.."
here=$(pwd)

[ "$(id -u)" = 0 ] || die "must run as root: it installs packages, and CRIU works for root only"
command -v apt-get >/dev/null || die "no apt-get here: install $(echo $packages) and CRIU $criu_least or newer (as bin/criu) by other means"

mkdir -p .deps bin
# One at a time per checkout; the lock goes with this process.
exec 9>.deps/lock
flock 9

install_packages() {
	missing=
	for p in $packages; do
		case $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) in
		installed) ;;
		*) missing="$missing $p" ;;
		esac
	done
	[ -n "$missing" ] || return 0
	say "installing$missing"
	# A policy-rc.d answers 101 to whoever would start sshd or another server on
	# this machine: the tests start their own.
	policy=
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		policy=/usr/sbin/policy-rc.d
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing >.deps/apt.log 2>&1 9>&- ||
		{ tail -n 20 .deps/apt.log >&2; die "apt-get could not install$missing (log: .deps/apt.log)"; }
	if [ -n "$policy" ]; then
		rm -f "$policy"
		trap - EXIT
	fi
}

# works PATH LEAST: whether the CRIU at PATH is new enough and runs on this
# kernel.
works() {
	[ -x "$1" ] || return 1
	v=$("$1" --version 2>/dev/null | sed -n 's/^Version: *//p') || return 1
	[ -n "$v" ] || return 1
	[ "$(printf '%s\n' "$2" "$v" | sort -V | head -n 1)" = "$2" ] || return 1
	"$1" check >.deps/check.log 2>&1 9>&-
}

# debian_sources SUITE FILE...: those entries of apt's own configuration that name
# this machine's Debian release, in both of its formats, with the suite
# replaced; security, updates and backports are suites of other names.
debian_sources() {
	suite=$1
	shift
	for f in "$@"; do
		[ -f "$f" ] || continue
		case $f in
		*.sources)
			awk -v codename="$VERSION_CODENAME" -v suite="$suite" '
			function words(s, want,   i, n, w) {
				n = split(s, w, /[ \t\n]+/)
				for (i = 1; i <= n; i++) if (w[i] == want) return 1
				return 0
			}
			function flush() {
				if (words(types, "deb") && words(suites, codename) && words(comps, "main") && enabled != "no")
					printf "Types: deb\nSuites: %s\nComponents: main\n%s\n", suite, rest
				types = suites = comps = enabled = rest = field = ""
			}
			/^#/ { next }
			/^[ \t]*$/ { flush(); next }
			/^[^ \t]/ { field = tolower($0); sub(/:.*/, "", field) }
			{ value = $0; if (value ~ /^[^ \t]/) sub(/^[^:]*:/, "", value) }
			field == "types" { types = types " " value; next }
			field == "suites" { suites = suites " " value; next }
			field == "components" { comps = comps " " value; next }
			field == "enabled" { enabled = tolower(value); gsub(/[ \t]/, "", enabled); next }
			{ rest = rest $0 "\n" }
			END { flush() }' "$f" >>"$new/sources/spfs.sources"
			;;
		*.list)
			awk -v codename="$VERSION_CODENAME" -v suite="$suite" '
			$1 == "deb" {
				sub(/#.*/, "")
				options = ""
				if (match($0, /\[[^]]*\]/)) {
					options = substr($0, RSTART, RLENGTH) " "
					$0 = substr($0, 1, RSTART - 1) " " substr($0, RSTART + RLENGTH)
				}
				if ($3 != codename) next
				for (i = 4; i <= NF; i++)
					if ($i == "main") { print "deb " options $2 " " suite " main"; next }
			}' "$f" >>"$new/sources/spfs.list"
			;;
		esac
	done
}

# unpack_criu NAME SUITE: .deps/NAME, a prefix with a suite's CRIU and every
# library it loads.
unpack_criu() {
	. /etc/os-release
	[ "${ID:-}" = debian ] && [ -n "${VERSION_CODENAME:-}" ] ||
		die "this is not a release of Debian, and its own CRIU is missing, too old or fails \"criu check\": put one that works at bin/$1"
	case $(dpkg --print-architecture) in
	amd64) ;;
	*) die "SPFS is for amd64 only" ;;
	esac
	name=$1 from=$2
	new=$here/.deps/$name.new
	rm -rf "$new"
	mkdir -p "$new/sources" "$new/lists/partial" "$new/cache/archives/partial" "$new/debs" "$new/root"
	debian_sources "$from" /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list
	[ -s "$new/sources/spfs.sources" ] || rm -f "$new/sources/spfs.sources"
	[ -s "$new/sources/spfs.list" ] || rm -f "$new/sources/spfs.list"
	[ -n "$(ls "$new/sources")" ] ||
		die "no entry for Debian $VERSION_CODENAME main in apt's configuration (/etc/apt/sources.list, sources.list.d) to fetch CRIU from"

	say "fetching CRIU from Debian $from into .deps/$name"
	# To apt with an empty status nothing is installed: it names all that
	# CRIU depends on, of that suite, under whatever name it has there.
	: >"$new/status"
	set -- -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$new/sources" \
		-o "Dir::State::Lists=$new/lists" -o "Dir::Cache=$new/cache" -o "Dir::State::status=$new/status" \
		-o APT::Sandbox::User=root -o Acquire::Languages=none \
		-o "APT::Default-Release=$from"
	# A repository of another maker without this suite does not matter as
	# long as the packages come; whether they do is the next commands' word.
	apt-get "$@" update 2>"$new/apt.log" || :
	need=$(apt-get "$@" --no-install-recommends --print-uris install criu 2>>"$new/apt.log" |
		sed -n "s/^'[^']*' \([a-z0-9][a-z0-9.+-]*\)_.*\.deb .*/\1/p")
	[ -n "$need" ] && (cd "$new/debs" && apt-get "$@" download $need) >>"$new/apt.log" 2>&1 ||
		{ tail -n 20 "$new/apt.log" >&2; die "apt-get could not fetch CRIU from Debian $from"; }
	for d in "$new"/debs/*.deb; do
		dpkg -x "$d" "$new/root"
	done
	rm -rf "$here/.deps/$name"
	mv "$new/root" "$here/.deps/$name"
	rm -rf "$new"
}

# write_wrapper NAME: bin/NAME. The script finds the prefix from where it lies
# itself, so the checkout may move. It ends in exec: pid and every descriptor
# stay, as "criu swrk FD" and --inherit-fd need it.
write_wrapper() {
	sed "s/@NAME@/$1/; s/^@FAULT@\$/$fault/; /^\$/d" >"bin/$1.new" <<'WRAPPER'
#!/bin/sh
# Written by hack/deps.sh: Debian's CRIU with its own C library.
self=$(readlink -f "$0")
root=${self%/*/*}/.deps/@NAME@
lib=$root/usr/lib/x86_64-linux-gnu
@FAULT@
exec "$lib/ld-linux-x86-64.so.2" --argv0 criu --library-path "$lib" "$root/usr/sbin/criu" "$@"
WRAPPER
	chmod 755 "bin/$1.new"
	mv -f "bin/$1.new" "bin/$1"
}

# fault: what a wrapper must set for CRIU to work on this machine. Where
# hardware breakpoints never fire (some virtual machines) CRIU waits for one
# for ever, unless its own fault injection makes it do without
# (criu/include/fault-injection.h: FI_NO_BREAKPOINTS).
fault() {
	cc -o .deps/breakpoints hack/breakpoints.c || die "cc could not compile hack/breakpoints.c"
	rc=0
	.deps/breakpoints 9>&- || rc=$?
	case $rc in
	0) ;;
	1) echo 'export CRIU_FAULT=130' ;;
	*) die "could not tell whether hardware breakpoints work here (hack/breakpoints.c: status $rc)" ;;
	esac
}

# provide NAME SUITE LEAST: bin/NAME, a CRIU of at least that version.
provide() {
	! works "bin/$1" "$3" || return 0
	fault=$(fault) # an assignment, so that its failure is this script's
	own=$(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin command -v criu || :)
	if [ -n "$own" ] && works "$own" "$3"; then
		if [ -z "$fault" ]; then
			ln -sfn "$own" "bin/$1"
		else
			printf '#!/bin/sh\n# Written by hack/deps.sh.\n%s\nexec %s "$@"\n' "$fault" "$own" >"bin/$1.new"
			chmod 755 "bin/$1.new"
			mv -f "bin/$1.new" "bin/$1"
		fi
	else
		unpack_criu "$1" "$2"
		write_wrapper "$1"
		works "bin/$1" "$3" || { cat .deps/check.log >&2; die "\"bin/$1 check\" fails on this machine's kernel"; }
	fi
	say "bin/$1 is CRIU $("bin/$1" --version | sed -n 's/^Version: *//p')"
}

install_packages
provide criu "$criu_suite" "$criu_least"
provide criu-next "$criu_next_suite" "$criu_next_least"
