//! How fast and how often: the bandwidth limit of uploads, and the pauses between tries.

use std::time::{Duration, Instant};

/// A bandwidth limit. What is sent in one go may pass it, the mean does not.
pub struct Pace {
    /// Bytes per second; 0 is no limit.
    rate: f64,
    /// When what has been sent so far is paid for.
    free: Instant,
}

impl Pace {
    /// At most `mib_per_s` MiB (2^20 bytes) a second; 0 is no limit.
    pub fn new(mib_per_s: f64) -> Pace {
        Pace { rate: mib_per_s * (1 << 20) as f64, free: Instant::now() }
    }

    /// How long to wait before `bytes` may be sent; counts them as sent.
    pub fn wait_for(&mut self, bytes: usize, now: Instant) -> Duration {
        if self.rate <= 0.0 {
            return Duration::ZERO;
        }
        // Idle time is not saved up.
        let start = self.free.max(now);
        self.free = start + Duration::from_secs_f64((bytes as f64 / self.rate).min(1e6));
        start - now
    }
}

/// Pause before try `attempt` + 1 (counted from 1): 1 s, 2 s, 4 s … up to a minute, times 0.5 to 1.5 by chance, so that
/// many jobs that met the same outage do not come back together.
pub fn pause(attempt: u32) -> Duration {
    use std::hash::{BuildHasher, Hasher};
    let chance = std::collections::hash_map::RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
    Duration::from_secs_f64(2f64.powi(attempt.saturating_sub(1).min(6) as i32).min(60.0) * (0.5 + chance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_stays_at_the_limit_and_idle_time_is_not_saved() {
        let mut pace = Pace::new(1.0);
        let now = Instant::now() + Duration::from_secs(5);
        assert_eq!(pace.wait_for(1 << 20, now), Duration::ZERO);
        assert_eq!(pace.wait_for(2 << 20, now), Duration::from_secs(1));
        assert_eq!(pace.wait_for(1, now), Duration::from_secs(3));
        assert_eq!(pace.wait_for(1, now + Duration::from_secs(60)), Duration::ZERO);
        assert_eq!(Pace::new(0.0).wait_for(usize::MAX, now), Duration::ZERO);
    }

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        for attempt in [1, 2, 5, 7, 40] {
            let (mean, p) = (2f64.powi(attempt - 1).min(60.0), pause(attempt as u32).as_secs_f64());
            assert!((0.5 * mean..=1.5 * mean).contains(&p), "{attempt}: {p}");
        }
        assert!((0..20).map(|_| pause(3)).collect::<std::collections::HashSet<_>>().len() > 10);
    }
}
