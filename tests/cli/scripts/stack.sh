#!/bin/sh
# Three deep: striped over two linear ones, a snapshot of it through an origin.
. ./lib.sh

disk a 16384
disk b 16384
disk cow 16384
dmsetup create $P-l1 --table "0 8192 linear $a 4096"
dmsetup create $P-l2 --table "0 8192 linear $b 0"
dmsetup create $P-stripe --table "0 16384 striped 2 64 $DM/$P-l1 0 $DM/$P-l2 0"
dmsetup create $P-origin --table "0 16384 snapshot-origin $DM/$P-stripe"
dd if=/dev/urandom of="$WORK/before" bs=1M count=8 2>/dev/null
dd if="$WORK/before" of=$DM/$P-origin bs=1M conv=notrunc,fsync 2>/dev/null

dmsetup suspend $P-origin
dmsetup create $P-snap --table "0 16384 snapshot $DM/$P-stripe $cow P 16"
dmsetup resume $P-origin
dd if=/dev/urandom of=$DM/$P-origin bs=64k count=10 seek=3 conv=notrunc,fsync 2>/dev/null
cmp "$WORK/before" $DM/$P-snap || fail "the snapshot changed with its origin"
cmp -s "$WORK/before" $DM/$P-origin && fail "the origin did not change"
dmsetup status $P-snap | grep -Eq '^0 16384 snapshot [0-9]+/16384 [0-9]+$' || fail "status: $(dmsetup status $P-snap)"

same "2" "$(dmsetup deps $P-stripe | cut -d' ' -f1)"
dmsetup ls --tree -o ascii,notrunc | grep -q -- "$P-l1" || fail "the tree has no $P-l1"
[ "$(dmsetup ls --tree -o ascii,nodevice | grep -c "^$P-snap\|^$P-origin")" = 2 ] || fail "roots: $(dmsetup ls --tree -o ascii)"
# From below it does not come apart.
refuses dmsetup remove $P-l1
refuses dmsetup remove $P-stripe
dmsetup remove $P-snap
dmsetup remove $P-origin
dmsetup remove $P-stripe
dmsetup remove $P-l1 $P-l2
