// SPDX-License-Identifier: GPL-2.0

/* Defines the tracepoints of live update, which Rust code cannot. */

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/liveupdate.h>
