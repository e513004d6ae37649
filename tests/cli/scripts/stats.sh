#!/bin/sh
# Statistics: what a program reads and writes is counted in its region.
. ./lib.sh

disk a 8192
dmsetup create $P-s --table "0 8192 linear $a 0"
same "$P-s: Created new region with 4 area(s) as region ID 0" "$(dmsetup stats create --areas 4 --bounds 1ms,1s $P-s)"
same "0: 0+8192 2048 dmstats - histogram:1,1000" "$(dmsetup message $P-s 0 @stats_list)"
dd if=/dev/zero of=$DM/$P-s bs=4096 count=8 conv=notrunc,fsync 2>/dev/null
dd if=/dev/zero of=$DM/$P-s bs=4096 count=2 seek=768 conv=notrunc,fsync 2>/dev/null
sectors() { dmstats print --regionid 0 $P-s | awk '{print $8}' | paste -sd' '; }
same "64 0 0 16" "$(sectors)"
requests=$(dmstats print --regionid 0 $P-s | awk '{s += $6} END {print s}')
binned=$(dmstats print --regionid 0 $P-s | awk '{split($15, h, ":"); s += h[1] + h[2] + h[3]} END {print s}')
[ "$requests" = "$binned" ] || fail "$requests writes, $binned in the histogram"
dmstats clear --allregions $P-s
same "0 0 0 0" "$(sectors)"
dmstats delete --allregions $P-s
same "" "$(dmstats list --allprograms --noheadings $P-s)"
dmsetup remove $P-s
