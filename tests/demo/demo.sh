#!/usr/bin/env bash
# The main job on real input: two snapshots of a live ext4 image, taken while
# files are being written, checked with checksums and fsck; then kill -9 of the
# process that serves, which nobody notices, and of all of it, and restart. Second act: the image on the two legs of a mirror, one of which fails
# while files are written, is replaced, copied and compared. Run it with "make demo"; IMG=path takes your own ext4 image (a copy
# of it is used). Leaves nothing behind, also after Ctrl-C.
set -euo pipefail
umask 022

root=$(cd "$(dirname "$0")/../.." && pwd)
dm=${DMFUSE:-$root/bin/dmfuse}
work=$(mktemp -d "${TMPDIR:-/tmp}/dmfuse-demo.XXXXXX")
export DMFUSE_RUN_DIR=$work/run
origin_mnt=$work/mnt/origin monday_mnt=$work/mnt/monday tuesday_mnt=$work/mnt/tuesday mirror_mnt=$work/mnt/mirror
img=$work/disk.img
daemon= writer=

say()  { printf '\n\033[1m%s\033[0m\n' "$*"; }
run()  { printf '  $ dmfuse %s\n' "$*"; "$dm" "$@" 2>&1 | sed 's/^/    /'; return "${PIPESTATUS[0]}"; }
show() { printf '  $ dmfuse %s\n' "$*"; "$dm" "$@"; } # with its progress bar
ok()   { printf '  \342\234\223 %s\n' "$*"; }
fail() { printf '  \342\234\227 %s\n' "$*" >&2; [ -s "$work/daemon.log" ] && tail -n 20 "$work/daemon.log" >&2; exit 1; }

cleanup() {
	trap - EXIT INT TERM
	[ -z "$writer" ] || { kill "$writer" && wait "$writer"; } 2>/dev/null || true
	for m in "$origin_mnt" "$monday_mnt" "$tuesday_mnt" "$mirror_mnt"; do
		if mountpoint -q "$m" 2>/dev/null; then "$dm" umount "$m" >/dev/null 2>&1 || umount -l "$m" || true; fi
	done
	# Loop devices over our files, should a step have failed between attach and detach.
	for f in /sys/block/loop*/loop/backing_file; do
		[ -r "$f" ] || continue
		if grep -q "^$work/" "$f" 2>/dev/null; then l=${f#/sys/block/}; losetup -d "/dev/${l%%/*}" || true; fi
	done
	if [ -n "$daemon" ]; then "$dm" shutdown --force >/dev/null 2>&1 || kill -9 "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; fi
	if mountpoint -q "$DMFUSE_RUN_DIR/dev" 2>/dev/null; then umount -l "$DMFUSE_RUN_DIR/dev" || true; fi
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_daemon() {
	"$dm" serve >>"$work/daemon.log" 2>&1 &
	daemon=$!
	for _ in $(seq 100); do
		if "$dm" version >/dev/null 2>&1 && "$dm" --no-autostart ls >/dev/null 2>&1; then return; fi
		kill -0 "$daemon" 2>/dev/null || fail "the daemon did not start"
		sleep 0.05
	done
	fail "the daemon is not ready after 5 s"
}

sums()    { (cd "$1" && find . -xdev -path ./lost+found -prune -o -type f -print0 | sort -z | xargs -0 -r sha256sum); }
same()    { sums "$1" >"$work/now.sums"; cmp -s "$work/now.sums" "$2" || fail "$3"; ok "$3 ($(wc -l <"$2") files)"; }
fsck_of() { # the file system on a device, read through the device file; nothing is changed
	e2fsck -fn "$DMFUSE_RUN_DIR/dev/$1" >"$work/fsck.log" 2>&1 || { cat "$work/fsck.log" >&2; fail "fsck of $1"; }
	ok "fsck -fn of $1 is clean"
}

PATH=$PATH:/usr/sbin:/sbin
[ "$(id -u)" = 0 ] || { echo "demo: mounting needs root" >&2; exit 1; }
[ -x "$dm" ] || { echo "demo: $dm is missing; run make build" >&2; exit 1; }
command -v mkfs.ext4 >/dev/null || apt-get -q -y install e2fsprogs || { echo "demo: mkfs.ext4 is missing (package e2fsprogs)" >&2; exit 1; }
mkdir -p "$origin_mnt" "$monday_mnt" "$tuesday_mnt" "$mirror_mnt"

say "1. A disk image with real files"
if [ -n "${IMG:-}" ]; then
	cp --sparse=always "$IMG" "$img"
	ok "a copy of $IMG"
else
	truncate -s 192M "$img"
	mkdir "$work/tree" && cp -r "$root"/{blockdev,kcopyd,snapshot,mapper,fs,docs} "$work/tree/"
	head -c 24M /dev/urandom >"$work/tree/photos.bin"
	mkfs.ext4 -q -d "$work/tree" "$img"
	rm -rf "$work/tree"
	ok "$(basename "$img"): ext4, 192 MiB"
fi
before=$(sha256sum <"$img")

say "2. An origin device over it, mounted, in use"
start_daemon
run origin create "$img" disk
run mount disk "$origin_mnt"
( i=0; while :; do i=$((i+1)); head -c $((RANDOM * 4)) /dev/urandom >"$origin_mnt/busy-$((i % 40))"; done ) &
writer=$!
ok "a writer keeps changing files on it"
sleep 0.5

say "3. Two snapshots at different moments, while it writes"
run snapshot create disk monday
echo "written after monday" >"$origin_mnt/news.txt"
sleep 0.5
run snapshot create disk tuesday
sleep 0.5
kill "$writer"; wait "$writer" 2>/dev/null || true; writer=
ok "the writer has stopped"

say "4. Each view is what it must be"
fsck_of monday
fsck_of tuesday
run mount monday "$monday_mnt"
run mount tuesday "$tuesday_mnt"
[ ! -e "$monday_mnt/news.txt" ] && [ "$(cat "$tuesday_mnt/news.txt")" = "written after monday" ] || fail "news.txt"
ok "news.txt is missing on monday and there on tuesday"
sums "$monday_mnt" >"$work/monday.sums"
sums "$tuesday_mnt" >"$work/tuesday.sums"

say "5. Change the origin and one snapshot"
head -c 16M /dev/urandom >"$origin_mnt/big.bin"
rm -f "$origin_mnt"/busy-1* && sync -f "$origin_mnt"
echo "only on tuesday" >"$tuesday_mnt/private.txt" && sync -f "$tuesday_mnt"
same "$monday_mnt" "$work/monday.sums" "monday is unchanged"
grep -v private.txt <(sums "$tuesday_mnt") | cmp -s - "$work/tuesday.sums" || fail "tuesday lost something"
ok "tuesday has its old files and private.txt"
[ ! -e "$origin_mnt/private.txt" ] || fail "private.txt leaked into the origin"
ok "private.txt is not on the origin"
sums "$tuesday_mnt" >"$work/tuesday.sums"
sums "$origin_mnt" >"$work/origin.sums"
run snapshot ls

say "6. kill -9 of the process that serves, with all of it mounted and in use"
worker=$("$dm" version -J | grep -o '"pid":[0-9]*' | cut -d: -f2)
if "$dm" version -J | grep -q '"keeper_pid"'; then
	( while :; do head -c 100000 /dev/urandom >"$origin_mnt/during.bin"; sync -f "$origin_mnt"; done ) &
	writer=$!
	for _ in 1 2 3 4 5; do
		before_kill=$worker
		kill -9 "$worker"
		worker=$("$dm" version -J | grep -o '"pid":[0-9]*' | cut -d: -f2) # waits for the next one
		[ "$worker" != "$before_kill" ] || fail "process $worker was to be dead"
	done
	kill "$writer" 2>/dev/null || true
	rc=0; wait "$writer" 2>/dev/null || rc=$?
	writer=
	[ $rc -eq 143 ] || fail "the writer met an error" # 143: it ran until it was told to end
	rm "$origin_mnt/during.bin" && sync -f "$origin_mnt"
	same "$origin_mnt" "$work/origin.sums" "five kills later the writer has seen no error, and the origin is whole"
	same "$monday_mnt" "$work/monday.sums" "monday too"
else
	ok "this daemon is one process: left out"
fi

say "7. kill -9 of the whole daemon, restart"
for m in "$monday_mnt" "$tuesday_mnt" "$origin_mnt"; do run umount "$m"; done
head -c 4M /dev/urandom >"$work/probe"
dd if="$work/probe" of="$DMFUSE_RUN_DIR/dev/tuesday" bs=64k seek=2560 conv=notrunc,fsync status=none
kill -9 "$daemon"; wait "$daemon" 2>/dev/null || true
ok "daemon $daemon is dead"
start_daemon
cmp -s <(dd if="$DMFUSE_RUN_DIR/dev/tuesday" bs=64k skip=2560 count=64 status=none) "$work/probe" || fail "an answered write is gone"
ok "what was written and answered just before the kill is there"
run mount disk "$origin_mnt"
run mount monday "$monday_mnt"
same "$origin_mnt" "$work/origin.sums" "the origin is back"
same "$monday_mnt" "$work/monday.sums" "monday is back"
run umount "$monday_mnt"
run umount "$origin_mnt"
fsck_of disk
fsck_of monday

say "8. Usage, and away with it"
run snapshot usage monday
run snapshot rm monday
run snapshot rm tuesday
run remove disk
[ "$before" != "$(sha256sum <"$img")" ] || fail "the image did not take the writes of the origin"
ok "the image holds the origin's state"
[ -z "$(find "$work" -name '*.cow*')" ] || fail "a COW file was left behind"

say "9. The same image on a mirror of two legs"
left=$work/left.img right=$work/right.img spare=$work/spare.img
sectors=$(($(stat -c %s "$img") / 512))
cp --sparse=always "$img" "$left"
truncate -s $((sectors * 512)) "$right" "$spare"
run create right --table "0 $sectors linear $right 0"
run mirror create data "$left" right
run message data 0 throttle 40m/s
show mirror status data --wait
run mount data "$mirror_mnt"
same "$mirror_mnt" "$work/origin.sums" "the mirror has the files of the image"

say "10. A leg fails while files are written"
( for i in $(seq 200); do
	head -c $((RANDOM * 8)) /dev/urandom >"$mirror_mnt/kept-$i" || exit 1
	[ $((i % 10)) != 0 ] || sync -f "$mirror_mnt" || exit 1
	if [ "$i" = 50 ]; then touch "$work/fifty"; fi
	while [ "$i" = 150 ] && [ ! -e "$work/broken" ]; do sleep 0.02; done # the rest after the failure
done ) &
writer=$!
for _ in $(seq 300); do [ ! -e "$work/fifty" ] || break; sleep 0.05; done
run fault set right write,flush errno=EIO
touch "$work/broken"
wait "$writer" || fail "a file could not be written"
writer=
sync -f "$mirror_mnt"
ok "the writer noticed nothing: $(ls "$mirror_mnt" | grep -c '^kept-') files"
run mirror status data
! run mirror status data --check >/dev/null || fail "the failed leg does not show"
sums "$mirror_mnt" >"$work/mirror.sums"

say "11. Another leg takes its place"
run mirror replace-leg data right "$spare"
show mirror status data --wait
run umount "$mirror_mnt"
run remove right

say "12. Scrub: are the legs equal?"
show mirror scrub data --wait
fsck_of data
run mount data "$mirror_mnt"
same "$mirror_mnt" "$work/mirror.sums" "every file written before, during and after is there"
run umount "$mirror_mnt"
run mirror rm data
cmp -s "$left" "$spare" || fail "the legs differ"
ok "the two image files are equal"
run shutdown
wait "$daemon" 2>/dev/null || true
daemon=
printf '\n\033[1mdemo: all as it must be, in %s s\033[0m\n' "$SECONDS"
