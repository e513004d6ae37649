#!/bin/sh
# wait in the background ends with an event; deferred removal; --retry.
. ./lib.sh

dmsetup create $P-w --table "0 8 zero"
nr=$(dmsetup info -c --noheadings -o events $P-w)
dmsetup wait $P-w "$nr" &
waiter=$!
sleep 0.5
kill -0 $waiter || fail "wait ended without an event"
dmsetup rename $P-w $P-w2
wait $waiter || fail "wait ended with $?"
same $((nr + 1)) "$(dmsetup info -c --noheadings -o events $P-w2)"
dmsetup wait $P-w2 "$nr" # it happened already

exec 9<$DM/$P-w2
same 1 "$(dmsetup info -c --noheadings -o open $P-w2)"
refuses dmsetup remove $P-w2
dmsetup remove --deferred $P-w2
dmsetup info $P-w2 | grep -q 'DEFERRED REMOVE' || fail "not marked: $(dmsetup info $P-w2)"
dmsetup message $P-w2 0 @cancel_deferred_remove
dmsetup info $P-w2 | grep -q 'DEFERRED REMOVE' && fail "still marked"
dmsetup remove --deferred $P-w2
exec 9<&-
gone() { ! dmsetup info $P-w2 >/dev/null 2>&1; }
until_true 20 gone

dmsetup create $P-r --table "0 8 zero"
(exec 9<$DM/$P-r; touch "$WORK/open"; until [ -e "$WORK/close" ]; do sleep 0.1; done) &
until_true 10 test -e "$WORK/open"
refuses dmsetup remove $P-r
(sleep 0.5; touch "$WORK/close") &
dmsetup remove --retry $P-r
wait

dmsetup create $P-f --table "0 8 zero"
exec 9<$DM/$P-f
refuses dmsetup remove --force $P-f
same error "$(dmsetup table $P-f | awk '{print $3}')"
refuses dd if=$DM/$P-f of=/dev/null bs=512 count=1 iflag=direct
exec 9<&-
dmsetup remove --retry $P-f
