#!/bin/sh
# A linear device: create, write through it, rename, uuid, info, remove.
. ./lib.sh

disk base 20480
echo "0 20480 linear $base 0" | dmsetup create $P-lin
same 10485760 "$(blockdev --getsize64 $DM/$P-lin 2>/dev/null || stat -c %s $DM/$P-lin)"
dd if=/dev/urandom of="$WORK/data" bs=64k count=8 2>/dev/null
dd if="$WORK/data" of=$DM/$P-lin bs=64k seek=2 conv=notrunc,fsync 2>/dev/null
dd if=$base of="$WORK/back" bs=64k skip=2 count=8 iflag=direct 2>/dev/null
cmp "$WORK/data" "$WORK/back" || fail "what was written is not below"

same "0 20480 linear" "$(dmsetup table $P-lin | cut -d' ' -f1-3)"
dmsetup rename $P-lin $P-other
refuses dmsetup info $P-lin
dmsetup rename $P-other --setuuid TEST-$P
same TEST-$P "$(dmsetup info -c --noheadings -o uuid $P-other)"
refuses dmsetup rename $P-other --setuuid AGAIN
same $P-other "$(dmsetup info -c --noheadings -o name -u TEST-$P)"
same "$P-other:L--w:1:0" "$(dmsetup info -c --noheadings -o name,attr,segments,open $P-other)"

refuses dmsetup create $P-other --table "0 8 zero"
refuses dmsetup create $P-bad --table "0 20480 linear $base 10"
refuses dmsetup info $P-bad

dmsetup create $P-ro --readonly --table "0 8 zero"
refuses dd if=/dev/zero of=$DM/$P-ro bs=512 count=1 conv=notrunc
same r "$(dmsetup info -c --noheadings -o attr $P-ro | cut -c4)"
dmsetup remove $P-ro $P-other
refuses dmsetup remove $P-other
