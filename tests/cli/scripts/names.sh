#!/bin/sh
# Names that udev cannot have, and messages, targets, selections.
. ./lib.sh

dmsetup create "$P-a b" --table "0 8 zero"
same "$P-a b" "$(dmsetup info -c --noheadings -o name "$P-a b")"
same "$P-a\\x20b" "$(dmsetup info -c --noheadings -o mangled_name "$P-a b")"
test -e "$DM/$P-a\\x20b" || fail "the node has another name"
same "$P-a\\x20b" "$(dmsetup --manglename none info -c --noheadings -o name "$P-a\\x20b")"
dmsetup create $P-z1 --table "0 8 zero"
dmsetup create $P-z2 --table "0 16 error"
same "$P-z2" "$(dmsetup info -c --noheadings -o name -S "name=~^$P-z && segments=1 && name!=$P-z1")"
same "DM_NAME='$P-z1' DM_SUSPENDED='Active'" "$(dmsetup info -c --nameprefixes --noheadings --separator ' ' -o name,suspended $P-z1)"
same "DM_NAME=$P-z1" "$(dmsetup info -c --nameprefixes --unquoted --noheadings -o name $P-z1)"
same "$P-z2" "$(dmsetup ls --target error | grep "^$P" | cut -f1)"
same "$DM/$P-z2" "$(dmsetup ls --target error --exec 'echo' | grep "$P" | sed "s,.*/,$DM/,")"
same "$P-z1
$P-z2" "$(dmsetup info -c --noheadings -o name -O name -S "name=~^$P-z")"
same "$P-z2
$P-z1" "$(dmsetup info -c --noheadings -o name -O -name -S "name=~^$P-z")"
refuses dmsetup message $P-z1 0 hello
dmsetup targets | grep -Eq '^linear +v[0-9]+\.[0-9]+\.[0-9]+$' || fail "targets"
dmsetup remove -S "name=~^$P-"
same "" "$(dmsetup ls | grep "^$P" || :)"
