#!/bin/sh
# The concise form goes out and in again.
. ./lib.sh

disk a 4096
dmsetup create --concise "$P-c1,UUID-$P-1,,rw,0 2048 linear $a 0,2048 2048 linear $a 2048;$P-c2,,,ro,0 8 zero"
same "L--w:2" "$(dmsetup info -c --noheadings -o attr,segments $P-c1)"
same "L--r:1" "$(dmsetup info -c --noheadings -o attr,segments $P-c2)"
text=$(dmsetup table --concise $P-c1)
case $text in "$P-c1,UUID-$P-1,"*",rw,0 2048 linear "*" 0,2048 2048 linear "*" 2048") ;; *) fail "concise: $text" ;; esac
dmsetup remove $P-c1
echo "$text" | dmsetup create --concise
same "$text" "$(dmsetup table --concise $P-c1)"
refuses dmsetup create --concise "$P-c3,,,rw"
refuses dmsetup create --concise "$P-c4,,,rw,0 8 zero;$P-c5,,,no,0 8 zero"
dmsetup info $P-c4 >/dev/null || fail "what comes before a mistake is made"
dmsetup remove $P-c4 $P-c1 $P-c2
