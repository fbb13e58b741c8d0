//! Times as the indexes keep them: whole microseconds since 1970, negative before.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The microsecond in which `time` lies; times beyond the year 290000 end there.
pub(crate) fn micros_of(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
        Err(before) => {
            let nanos = before.duration().as_nanos();
            i64::try_from(nanos.div_ceil(1_000)).map_or(i64::MIN, |micros| -micros)
        }
    }
}

/// The beginning of a microsecond. One that [`SystemTime`] can't express is 1970.
pub(crate) fn time_of(micros: i64) -> SystemTime {
    let distance = Duration::from_micros(micros.unsigned_abs());
    let time = if micros < 0 {
        UNIX_EPOCH.checked_sub(distance)
    } else {
        UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microseconds_round_trip_and_finer_times_are_cut() {
        for micros in [0, 1, -1, 1_700_000_000_123_456, -1_000_001, i64::MAX / 2] {
            assert_eq!(micros_of(time_of(micros)), micros, "{micros}");
        }
        assert_eq!(micros_of(UNIX_EPOCH + Duration::from_nanos(1_999)), 1);
        assert_eq!(micros_of(UNIX_EPOCH - Duration::from_nanos(1)), -1);
    }
}
