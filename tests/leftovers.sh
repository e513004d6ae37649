#!/usr/bin/env bash
# Finds what a test left behind: mounts and loop devices on files in a directory
# of a test, and daemons built in this checkout. What somebody else runs on the
# same machine is no concern of it.
#
#   leftovers.sh mark    remember what is there now in bin/leftovers
#   leftovers.sh check   fail when something is there that was not marked
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(pwd -P)

# Directories of tests: those of the harness, of go test, of the demo.
ours='/(dmfuse-test-|dmfuse-demo\.|Test[A-Za-z0-9_]+[0-9]+/)'

list() {
	awk -v ours="$ours" '$2 ~ ours || $2 "/" ~ ours { print "mount " $2 }' /proc/mounts
	# Loop devices: the backing file is named in sysfs.
	for f in /sys/block/loop*/loop/backing_file; do
		{ read -r back <"$f"; } 2>/dev/null || continue
		dev=${f#/sys/block/}
		if [[ $back =~ $ours ]]; then echo "loop /dev/${dev%%/*} $back"; fi
	done
	# Processes, by their program; it may have been built anew since.
	find /proc/[0-9]*/exe -maxdepth 0 -printf '%h %l\n' 2>/dev/null | while read -r p exe; do
		case "$exe" in
		"$root"/bin/*) echo "process ${p#/proc/} $exe" ;;
		*/linux.uml) if tr '\0' ' ' <"$p/cmdline" 2>/dev/null | grep -q dmfuse-test-; then echo "process ${p#/proc/} $exe"; fi ;;
		esac
	done || true
	return 0
}

case "${1:-}" in
mark)
	mkdir -p bin
	list | sort >bin/leftovers
	;;
check)
	mkdir -p bin
	[ -e bin/leftovers ] || : >bin/leftovers
	# A daemon told to stop may need a moment; ten seconds are plenty.
	while :; do
		left=$(list | sort | comm -13 bin/leftovers -)
		[ -n "$left" ] || exit 0
		[ $SECONDS -lt 10 ] || break
		sleep 0.2
	done
	echo "left behind:"
	echo "$left"
	exit 1
	;;
*)
	echo "usage: $0 mark|check" >&2
	exit 2
	;;
esac
