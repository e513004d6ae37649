#!/usr/bin/env bash
# Finds what a test left behind: fuse.dmfuse mounts, loop devices on their files
# or on files of a test directory (dmfuse-test-*), and dmfuse processes.
#
#   leftovers.sh mark    remember what is there now in bin/leftovers
#   leftovers.sh check   fail when something is there that was not marked
set -euo pipefail
cd "$(dirname "$0")/.."

list() {
	# Mounts: ours, and file systems mounted inside a test directory.
	awk '{ if ($3 == "fuse.dmfuse" || $2 ~ /\/dmfuse-test-/) print "mount " $2 }' /proc/mounts
	# Loop devices: the backing file is named in sysfs.
	for f in /sys/block/loop*/loop/backing_file; do
		[ -e "$f" ] || continue
		read -r back <"$f" || continue
		dev=${f#/sys/block/}
		case "$back" in
		*/dmfuse-test-*) echo "loop /dev/${dev%%/*} $back" ;;
		*) grep -qE "^[^ ]+ ($(dirname "$back")) fuse\.dmfuse" /proc/mounts && echo "loop /dev/${dev%%/*} $back" ;;
		esac
	done
	# Processes, by the name of their program; zombies do not count.
	for p in /proc/[0-9]*; do
		{ read -r name <"$p/comm"; } 2>/dev/null || continue
		case "$name" in dmfuse | dmfuse-race | linux.uml) ;; *) continue ;; esac
		grep -q '^State:.*Z' "$p/status" 2>/dev/null && continue
		echo "process ${p#/proc/} $name"
	done
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
	for _ in $(seq 50); do
		left=$(list | sort | comm -13 bin/leftovers -)
		[ -n "$left" ] || exit 0
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
