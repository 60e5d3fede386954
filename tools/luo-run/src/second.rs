// SPDX-License-Identifier: GPL-2.0

//! A time in whole seconds, as programs write it into what they leave for their next start.
//!
//! A program that finds that it ended in this second, or later, may believe neither the clock nor what
//! it left: memcached begins with an empty cache. So the next start waits, in the same kernel as in the
//! next one, whose clock may come from one that counts in seconds.

use serde::{
    Deserialize,
    Serialize, //
};
use std::{
    thread,
    time::{
        Duration,
        Instant,
        SystemTime,
        UNIX_EPOCH, //
    },
};

/// No wait is longer: then the clock was set.
const MOST: Duration = Duration::from_secs(3);

/// A second of the host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Second(u64);

impl Second {
    /// This one.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self(since.map_or(0, |since| since.as_secs()))
    }

    /// Waits until it is over.
    pub fn wait(self) {
        let begin = Instant::now();
        while Self::now() <= self && begin.elapsed() < MOST {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits() {
        let now = Second::now();
        now.wait();
        assert!(Second::now() > now);

        // What is over takes no time, and a clock that was set back not forever.
        let begin = Instant::now();
        now.wait();
        assert!(begin.elapsed() < Duration::from_millis(500));
        Second(u64::MAX).wait();
        assert!(begin.elapsed() < 2 * MOST);
    }
}
