# SPDX-License-Identifier: GPL-2.0
#
# The tests of the tools in the first kernel. At the end it starts the next one.

. /lib.sh

test_status() {
	expect 0 luoctl status
	said "live update  normal"
	said "not loaded"
	expect 0 luoctl --json status
	said '"support": "on"'
	json status
}

# Nobody else's business is disturbed by a look.
test_no_device() {
	exec 8<>/dev/liveupdate
	expect 0 luoctl status
	expect 0 luoctl list
	expect 1 luoctl hold x
	said "one process at a time has the device open"
	exec 8>&-
}

# What a user is told who is not root.
test_unprivileged() {
	mkdir -p /etc
	echo "nobody:x:65534:65534::/:/bin/sh" >/etc/passwd
	chmod 1777 /tmp
	expect 1 su nobody -c "luoctl hold mine 1=/data"
	said "only root may open the device"
	expect 0 su nobody -c "luoctl status"
	expect 4 luoctl show mine
}

# The first of all, and so the one that the command line of this kernel corrupts.
test_hold_ruined() {
	expect 0 luoctl hold --detach ruined 1=/data
}

test_hold() {
	expect 0 luoctl --json hold --detach vm-0 1=/data 0x2=/sparse
	json hold
	expect 0 luoctl list
	said "vm-0"
	said "luoctl("
	expect 0 luoctl show vm-0
	said "0x2"
	said "memfd-"
	expect 0 luoctl --json show vm-0
	json show
	expect 0 luoctl --json list
	json list
}

test_monitor() {
	local pid
	luoctl --json monitor >$out 2>$err &
	pid=$!
	for i in $(seq 100); do
		grep -q '"source":"kernel"' $out && break
		usleep 50000
	done
	kill $pid
	said '"state":"prepared"'
	json monitor
}

test_hold_twice() {
	expect 1 luoctl hold vm-0
	said "an outgoing session has this name"
	expect 1 luoctl --json hold vm-0
	said '"hint":"an outgoing session has this name'
	json_failure hold-twice
}

test_hold_nothing_left() {
	expect 1 luoctl hold broken 1=/data 2=/no/such/file
	said "/no/such/file"
	expect 4 luoctl show broken
	# A user that detaches it learns of errors until the session is held.
	expect 1 sh -c 'exec luoctl hold --detach broken 1=/data >/dev/full'
	expect 4 luoctl show broken
}

test_hold_names() {
	expect 2 luoctl hold ""
	expect 2 luoctl hold "$(head -c 64 /dev/zero | tr '\0' x)"
	expect 0 luoctl hold --detach "$(printf 'od\377d \033[2J')" 1=/data
	expect 0 luoctl list
	said 'od\xffd \x1b[2J'
}

# A descriptor of another process, which is preserved itself.
test_hold_descriptor() {
	local pid fd
	hold preserve c-api "from C" >/tmp/c 2>&1 &
	sleep 1
	grep -q preserved /tmp/c || fail "$(cat /tmp/c)"
	# Its memfd is closed by now; a session is no file that can be preserved.
	pid=$(pidof hold)
	expect 0 luoctl show c-api
	fd=$(sed -n 's/.*descriptor //p' $out)
	expect 1 luoctl hold wrong 1=pid:$pid:$fd
	said "no file handler"
	expect 1 luoctl hold wrong 1=pid:$pid:99
	expect 1 luoctl hold wrong 1=fd:99
}

test_run() {
	expect 0 luoctl run svc -- sh -c \
		'echo $LISTEN_FDS $LISTEN_FDNAMES; [ $LISTEN_PID = $$ ]; readlink /proc/self/fd/3'
	said "1 svc"
	said "anon_inode:[luo_session] svc"
	expect 7 luoctl run svc -- sh -c 'exit 7'
	expect 127 luoctl run svc -- /no/such/program
}

test_sessions_for_later() {
	for name in wrong-token no-space rest unfinished discarded run; do
		expect 0 luoctl hold --detach $name 1=/data 2=/sparse
	done
	expect 0 luoctl hold --detach big 1=/big
}

test_check() {
	expect 0 luoctl check /boot/kernel --cmdline "liveupdate=on kho=on"
	said "root luo-v1"
	said "(note)"
	said "fine"
	expect 0 luoctl --json check /boot/kernel --cmdline "liveupdate=on kho=on"
	json check
}

test_check_formats() {
	local line
	expect 0 luoctl check /boot/kernel --cmdline "liveupdate=on kho=on"
	while read -r line; do
		said "$line" || return 1
	done </sys/kernel/liveupdate/formats
	grep -q "handler memfd-" /sys/kernel/liveupdate/formats || fail "no handler is listed"
}

test_check_off() {
	expect 2 luoctl check /boot/kernel --cmdline "liveupdate=off kho=on"
	said "live update would be off"
	expect 2 luoctl check /boot/kernel --cmdline "liveupdate=on kho=off"
	said "Kexec Handover would be off"
	expect 2 luoctl check /boot/kernel --cmdline "liveupdate=on kho=on mem=64M"
	said "hides memory"
}

# A kernel with the C LUO reads what is written for it only. It will be, if nobody has chosen otherwise.
test_check_c() {
	local choice=/sys/module/liveupdate/parameters/abi
	expect 0 luoctl check /boot/c --cmdline "liveupdate=on kho=on"
	said "described anew as luo-v5"
	echo fdt >$choice
	expect 2 luoctl check /boot/c --cmdline "liveupdate=on kho=on"
	said "this kernel hands over as luo-v1, but the image reads luo-v5 only"
	said "session 'vm-0': token 0x1: the image has no file handler"
	not_said "luo-session-v2"
	echo auto >$choice
}

test_check_garbage() {
	head -c 1000000 /boot/kernel >/tmp/cut
	expect 2 luoctl check /tmp/cut --cmdline "liveupdate=on kho=on"
	said "truncated"
	expect 2 luoctl check /init --cmdline "liveupdate=on kho=on"
	said "is no kernel image"
	expect 2 luoctl check /no/such/file --cmdline "liveupdate=on kho=on"
	expect 2 luoctl check /boot/kernel --initrd /no/such --cmdline "liveupdate=on kho=on"
	rm /tmp/cut
}

test_kexec_not_loaded() {
	expect 3 luoctl kexec
	said "no next kernel is loaded"
	expect 3 luoctl update
}

test_update_refused() {
	expect 1 luoctl update /boot/kernel --initrd /boot/initrd --cmdline "liveupdate=off"
	said "not updated, nothing has changed"
	expect 3 luoctl kexec
	expect 0 luoctl update --dry-run /boot/kernel --initrd /boot/initrd --append kho=on
	expect 0 luoctl --json update --dry-run /boot/kernel --initrd /boot/initrd --append kho=on
	json dry-run
	expect 3 luoctl --json kexec
	json_failure not-loaded
}

test_load() {
	expect 1 luoctl load /init --cmdline x
	said "not a kernel of this architecture"
	expect 0 luoctl load /boot/kernel --initrd /boot/initrd --cmdline "quiet"
	said "liveupdate=on is missing"
	expect 0 luoctl --json load /boot/kernel --initrd /boot/initrd --cmdline "quiet"
	said '"loaded": true'
	json load
	expect 0 luoctl status
	said "next kernel  loaded"
	expect 0 luoctl --json unload
	said '"loaded": false'
	json unload
	expect 3 luoctl kexec
}

# What is preserved is described as the loaded image reads it.
test_load_format() {
	local abi=/sys/kernel/liveupdate/abi
	expect 0 luoctl load /boot/c --cmdline "liveupdate=on kho=on"
	grep -q "outgoing luo-v5" $abi || fail "for a C kernel: $(cat $abi)"
	expect 0 luoctl load /boot/kernel --initrd /boot/initrd --cmdline "liveupdate=on kho=on"
	grep -q "outgoing fdt" $abi || fail "for this kernel: $(cat $abi)"
	expect 0 luoctl unload
}

# Linux 7.2 does not say what it reads.
test_load_older() {
	local abi=/sys/kernel/liveupdate/abi
	expect 0 luoctl load /boot/older --cmdline "liveupdate=on kho=on"
	grep -q "outgoing luo-v5" $abi || fail "for Linux 7.2: $(cat $abi)"
	expect 0 luoctl unload
}

test_agent_missing() {
	expect 3 luoctl subscribe vm-0
	said "luod does not run"
}

head -c 300001 /dev/urandom >/data
dd if=/dev/urandom of=/sparse bs=4096 count=1 seek=100000 2>/dev/null
dd if=/dev/urandom of=/chunk bs=65536 count=16 2>/dev/null
for i in $(seq 96); do cat /chunk; done >/big
run_tests status no_device unprivileged hold_ruined hold monitor hold_twice \
	hold_nothing_left hold_names hold_descriptor run check check_formats sessions_for_later \
	check_off check_c check_garbage kexec_not_loaded update_refused load load_format \
	load_older agent_missing
sums=$(sha256sum /data /sparse /big | cut -c1-16 | tr '\n' ,)
luoctl load /boot/kernel --initrd /boot/initrd --append "luo.stage=2 luo.sums=$sums" >/tmp/load 2>&1 &&
	luoctl kexec >>/tmp/load 2>&1
say "not ok 99 kexec # $(cat /tmp/load | tr '\n' ' ')"
