# What the scripts share. They are written for dmsetup(8) and run with it on a
# kernel as well as here: $DM is where the devices are, /dev/mapper there.
set -eu
: "${DM:=/dev/mapper}"

fail() { echo "FAIL: $*" >&2; exit 1; }

# same WANT GOT: texts are equal.
same() { [ "$1" = "$2" ] || fail "want '$1', got '$2'"; }

# refuses COMMAND...: it fails.
refuses() { if "$@" 2>/dev/null; then fail "should have failed: $*"; fi; }

# until_true SECONDS COMMAND...: it succeeds within that time.
until_true() {
	end=$(($(date +%s) + $1)); shift
	until "$@" 2>/dev/null; do
		[ "$(date +%s)" -lt "$end" ] || fail "never true: $*"
		sleep 0.1
	done
}

# disk NAME SECTORS: a loop device of that size, in $NAME.
disk() {
	truncate -s $(($2 * 512)) "$WORK/$1.img"
	dev=$(losetup -f --show "$WORK/$1.img")
	LOOPS="$dev ${LOOPS-}"
	eval "$1=$dev"
}

# devices made by a script are prefixed, so that nothing else is touched.
P=t$$

cleanup() {
	status=$?
	[ -z "${MNT-}" ] || umount "$MNT" 2>/dev/null || :
	for l in ${FILES-}; do losetup -d "$l" 2>/dev/null || :; done
	for d in $(dmsetup ls 2>/dev/null | awk '{print $1}' | grep "^$P" || :); do dmsetup resume "$d" 2>/dev/null || :; done
	i=0
	while [ $i -lt 5 ]; do
		for d in $(dmsetup ls 2>/dev/null | awk '{print $1}' | grep "^$P" || :); do dmsetup remove --retry "$d" 2>/dev/null || :; done
		i=$((i + 1))
		dmsetup ls 2>/dev/null | grep -q "^$P" || break
	done
	for l in ${LOOPS-}; do losetup -d "$l" 2>/dev/null || :; done
	exit $status
}
trap cleanup EXIT
