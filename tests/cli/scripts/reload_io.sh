#!/bin/sh
# Another table is brought in under I/O: no write is lost, none fails.
. ./lib.sh

disk one 40960
disk two 40960
dmsetup create $P-live --table "0 40960 linear $one 0"
# The writer: numbered blocks, each durable before the next.
(
	i=0
	while [ $i -lt 200 ] && [ ! -e "$WORK/enough" ]; do
		printf '%08d' $i | dd of=$DM/$P-live bs=4096 seek=$i conv=notrunc,fsync 2>/dev/null || { echo $i >"$WORK/failed"; exit 1; }
		echo $i >"$WORK/done"
		i=$((i + 1))
	done
) &
writer=$!
until_true 20 test -s "$WORK/done"
n=0
while [ $n -lt 6 ]; do
	dmsetup suspend $P-live
	same Suspended "$(dmsetup info -c --noheadings -o suspended $P-live)"
	# Nobody writes now: the other disk becomes a copy, and takes over.
	if [ $((n % 2)) = 0 ]; then from=$one to=$two; else from=$two to=$one; fi
	dd if=$from of=$to bs=1M iflag=direct oflag=direct conv=fsync 2>/dev/null
	echo "0 40960 linear $to 0" | dmsetup reload $P-live
	same LIsw "$(dmsetup info -c --noheadings -o attr $P-live)"
	dmsetup resume $P-live
	same L--w "$(dmsetup info -c --noheadings -o attr $P-live)"
	n=$((n + 1))
done
touch "$WORK/enough"
wait $writer || fail "the writer met an error at block $(cat "$WORK/failed")"
last=$(cat "$WORK/done")
i=0
while [ $i -le "$last" ]; do
	same "$(printf '%08d' $i)" "$(dd if=$DM/$P-live bs=4096 skip=$i count=1 2>/dev/null | head -c 8)"
	i=$((i + 1))
done
# A table that does not fit is refused at resume, and the old one goes on.
dmsetup suspend $P-live
dmsetup reload $P-live --table "0 81920 linear $one 0"
refuses dmsetup resume $P-live
dmsetup resume $P-live
same "0 40960 linear" "$(dmsetup table $P-live | cut -d' ' -f1-3)"
dmsetup load $P-live --table "0 8 zero"
dmsetup clear $P-live
same L--w "$(dmsetup info -c --noheadings -o attr $P-live)"
dmsetup remove $P-live
