# SPDX-License-Identifier: GPL-2.0
#
# The tests of the tools where live update is off.

. /lib.sh
number=200

test_off_status() {
	expect 3 luoctl status
	said "boot with liveupdate=on"
	expect 3 luoctl --json status
	json off-status
	expect 3 luoctl hold x
	said "liveupdate=on"
	expect 3 luoctl monitor
	expect 3 luoctl wait
}

run_tests off_status
