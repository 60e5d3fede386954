# SPDX-License-Identifier: GPL-2.0
#
# The tests of the tools in the second kernel: failures first, and what was not
# destroyed by them.

. /lib.sh
number=100

# Whether a file has the checksum that the first kernel gave.
sum_of() {
	local sums=${luo_sums%,} number=$2
	[ "$(sha256sum "$1" | cut -c1-16)" = "$(echo "$sums" | cut -d, -f"$number")" ] ||
		fail "$1 has other contents"
}

waiting() {
	expect 0 luoctl show "$1"
	said "state      waiting"
}

test_updated() {
	expect 0 luoctl status
	said "live update  updated"
	expect 0 luoctl list
	said "incoming  waiting"
	said 'od\xffd \x1b[2J'
	expect 1 luoctl wait --state=normal --timeout=100ms
	expect 0 luoctl wait --state=updated --timeout=10
	expect 0 luoctl --json wait --state=updated
	json wait
}

test_no_such_session() {
	expect 4 luoctl retrieve nobody 1=/tmp/x
	expect 4 luoctl discard nobody --yes
	expect 4 luoctl show nobody
	expect 4 luoctl --json show nobody
	said '"exit":4'
	json_failure no-such-session
	[ ! -e /tmp/x ] || fail "a file was made"
}

# Nothing is taken if the result cannot be written.
test_output_impossible() {
	expect 1 luoctl retrieve vm-0 1=/no/such/directory/x
	said "/no/such/directory/x"
	waiting vm-0
	echo mine >/tmp/mine
	expect 1 luoctl retrieve vm-0 1=/tmp/mine
	said "--force"
	[ "$(cat /tmp/mine)" = mine ] || fail "it was overwritten"
	waiting vm-0
	expect 2 luoctl retrieve vm-0
	expect 2 luoctl retrieve vm-0 1=/tmp/a 1=/tmp/b
	waiting vm-0
}

test_retrieve() {
	mkdir /ram
	mount -t ramfs ram /ram
	expect 0 luoctl --json retrieve vm-0 1=/ram/data 2=/tmp/sparse
	said '"finished": true'
	said '"copied": true'
	said '"copied": false'
	json retrieve
	mv /ram/data /tmp/data
	sum_of /tmp/data 1
	sum_of /tmp/sparse 2
	[ "$(du -k /tmp/sparse | cut -f1)" -lt 100 ] || fail "its holes are filled"
	expect 4 luoctl retrieve vm-0 1=/tmp/again
	rm /tmp/data /tmp/sparse
}

test_retrieve_all() {
	expect 0 luoctl retrieve "$(printf 'od\377d \033[2J')" --all /tmp/odd
	sum_of /tmp/odd/0x1 1
}

test_wrong_token() {
	expect 1 luoctl retrieve wrong-token 1=/tmp/1 7=/tmp/7
	said "0x7"
	said "can be retrieved again"
	[ ! -e /tmp/1 ] && [ ! -e /tmp/7 ] || fail "there is a file"
	[ -z "$(ls -A /tmp | grep luoctl)" ] || fail "there is a temporary file"
	expect 0 luoctl retrieve wrong-token 1=/tmp/1 2=/tmp/2
	sum_of /tmp/1 1
	sum_of /tmp/2 2
	rm /tmp/1 /tmp/2
	expect 4 luoctl retrieve wrong-token 1=/tmp/1
	sleep 1
	! pidof luoctl-keeper >/dev/null || fail "a keeper is left"
}

test_no_space() {
	mkdir -p /small
	mount -t tmpfs -o size=100k small /small
	expect 1 luoctl retrieve no-space 1=/small/x
	said "No space left"
	[ -z "$(ls -A /small)" ] || fail "there is a file"
	umount /small
	expect 0 luoctl retrieve no-space 1=/tmp/1 2=/tmp/2
	sum_of /tmp/1 1
	rm /tmp/1 /tmp/2
}

# SIGKILL while the copy goes on, and an agent that dies of it is all that is lost.
test_killed() {
	local pid
	mkdir -p /out
	# Where a file has to be copied.
	mount -t ramfs out /out
	luoctl retrieve big 1=/out/big >/tmp/big 2>&1 &
	pid=$!
	for i in $(seq 200); do
		[ -n "$(find /out -name '.luoctl-*' -size +1000k)" ] && break
		usleep 10000
	done
	kill -9 $pid 2>/dev/null || fail "it was done before it could be killed"
	wait $pid || true
	[ ! -e /out/big ] || fail "there is a file already"
	expect 0 luoctl list
	said "luoctl-keeper("
	expect 0 luoctl retrieve big 1=/out/big
	sum_of /out/big 3
	umount /out
}

test_rest() {
	expect 0 luoctl retrieve rest 1=/tmp/1
	said "not finished, since nobody has retrieved 0x2"
	rm /tmp/1
	expect 0 luoctl retrieve rest 1=/tmp/1 --keep
	expect 0 luoctl retrieve rest 1=/tmp/1 --force --discard-rest
	said "finished"
	expect 4 luoctl retrieve rest 2=/tmp/2
	rm /tmp/1
}

# Nothing helps, and luoctl says so.
test_ruined() {
	expect 1 luoctl retrieve ruined 1=/tmp/1
	said "its record was corrupted on the way"
	[ ! -e /tmp/1 ] || fail "there is a file"
	expect 0 luoctl discard ruined --yes
}

test_finish() {
	expect 1 luoctl finish unfinished
	said "nobody has retrieved 0x1, 0x2"
	waiting unfinished
	expect 0 luoctl retrieve unfinished --all /tmp/u --keep
	expect 0 luoctl --json finish unfinished
	json finish
	expect 4 luoctl retrieve unfinished 1=/tmp/1
}

test_discard() {
	expect 1 luoctl discard discarded
	said "--yes"
	waiting discarded
	expect 0 luoctl --json discard discarded --yes
	json discard
	expect 4 luoctl show discarded
}

# A program that does not finish its session loses nothing either.
test_run_again() {
	expect 3 luoctl run run -- sh -c 'exit 3'
	said "did not finish"
	expect 0 luoctl run run -- sh -c 'readlink /proc/self/fd/3'
	said "anon_inode:[luo_session] run"
	expect 0 luoctl retrieve run 1=/tmp/1 2=/tmp/2
	sum_of /tmp/2 2
}

test_c_api() {
	expect 0 hold retrieve c-api
	said "from C"
	expect 4 luoctl retrieve c-api 1=/tmp/c
}

test_all_finished() {
	expect 0 luoctl wait --state=normal --timeout=10
	expect 0 luoctl status
	said "live update  normal"
}

run_tests updated no_such_session output_impossible retrieve retrieve_all wrong_token no_space killed \
	rest ruined finish discard run_again c_api all_finished
