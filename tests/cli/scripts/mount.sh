#!/bin/sh
# A file system on a device: suspended under it, given another table, removed.
. ./lib.sh

disk a 131072
disk b 131072
dmsetup create $P-fs --table "0 131072 linear $a 0"
loop=$(losetup -f --show $DM/$P-fs)
FILES=$loop
mkfs.ext4 -q $loop
MNT="$WORK/mnt"
mkdir "$MNT"
mount $loop "$MNT"
echo before >"$MNT/file"
sync -f "$MNT"
dmsetup suspend $P-fs
(echo during >"$MNT/during"; sync -f "$MNT"; touch "$WORK/written") &
writer=$!
dd if=$a of=$b bs=1M iflag=direct oflag=direct conv=fsync 2>/dev/null
dmsetup load $P-fs --table "0 131072 linear $b 0"
[ ! -e "$WORK/written" ] || fail "a write went through a suspended device"
dmsetup resume $P-fs
wait $writer
same during "$(cat "$MNT/during")"
refuses dmsetup remove $P-fs
umount "$MNT"
MNT=
losetup -d $loop
FILES=
fsck.ext4 -fn $b >/dev/null 2>&1 || fail "fsck of the disk that took over"
dmsetup remove --retry $P-fs
