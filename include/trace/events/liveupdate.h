/* SPDX-License-Identifier: GPL-2.0 */

/*
 * What the Live Update Orchestrator does with sessions and files.
 *
 * All events have the same fields. What does not apply is empty or 0: a session
 * as a whole has no token and no handler, and of what is quarantined not even
 * the session need be known.
 */

#undef TRACE_SYSTEM
#define TRACE_SYSTEM liveupdate

#if !defined(_TRACE_LIVEUPDATE_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_LIVEUPDATE_H

#include <linux/tracepoint.h>

DECLARE_EVENT_CLASS(liveupdate,

	TP_PROTO(const char *session, u64 token, const char *handler, u64 ns, int result),

	TP_ARGS(session, token, handler, ns, result),

	TP_STRUCT__entry(
		__string(session, session)
		__field(u64, token)
		__string(handler, handler)
		__field(u64, ns)
		__field(int, result)
	),

	TP_fast_assign(
		__assign_str(session);
		__entry->token = token;
		__assign_str(handler);
		__entry->ns = ns;
		__entry->result = result;
	),

	TP_printk("session=%s token=%#llx handler=%s ns=%llu result=%d",
		  __get_str(session), __entry->token, __get_str(handler),
		  __entry->ns, __entry->result)
);

#define DEFINE_LIVEUPDATE_EVENT(name)						\
DEFINE_EVENT(liveupdate, name,							\
	TP_PROTO(const char *session, u64 token, const char *handler, u64 ns,	\
		 int result),							\
	TP_ARGS(session, token, handler, ns, result))

/* A session is made; a file is given to it, or taken out again. */
DEFINE_LIVEUPDATE_EVENT(liveupdate_create);
DEFINE_LIVEUPDATE_EVENT(liveupdate_preserve);
DEFINE_LIVEUPDATE_EVENT(liveupdate_unpreserve);

/* At the kexec: a file is frozen, a session is written down. */
DEFINE_LIVEUPDATE_EVENT(liveupdate_freeze);
DEFINE_LIVEUPDATE_EVENT(liveupdate_serialize);

/* Early in boot: a session is read, or something of it is found corrupt. */
DEFINE_LIVEUPDATE_EVENT(liveupdate_validate);
DEFINE_LIVEUPDATE_EVENT(liveupdate_quarantine);

/* A file is made anew; a session with all its files is finished. */
DEFINE_LIVEUPDATE_EVENT(liveupdate_retrieve);
DEFINE_LIVEUPDATE_EVENT(liveupdate_finish);

#endif /* _TRACE_LIVEUPDATE_H */

/* This part must be outside protection. */
#include <trace/define_trace.h>
