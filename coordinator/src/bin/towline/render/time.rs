//! Times as people read them. Times of day are UTC and say so with a `Z`: a line of this output that is
//! pasted elsewhere means the same to everybody, and a fleet is in more than one zone.

use towline_protocol::time::Timestamp;

const DAY_S: u64 = 24 * 3600;

/// Returns how long something takes or is ago: `40 s`, `42 min`, `5 h`, `19 d`.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / DAY_S),
    }
}

/// Returns how long ago something was.
pub(crate) fn ago(at: Timestamp, now: Timestamp) -> String {
    span(now.since(at).as_secs())
}

/// Returns a time of day: `14:02:11Z`.
pub(crate) fn clock(at: Timestamp) -> String {
    let second = at.0 / 1000 % DAY_S;
    format!("{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Returns a day: `2026-09-21`.
pub(crate) fn day(at: Timestamp) -> String {
    let (year, month, day) = civil(at.0 / 1000 / DAY_S);
    format!("{year}-{month:02}-{day:02}")
}

/// Returns a day and a time of day: `2026-09-21 14:02:11Z`.
pub(crate) fn moment(at: Timestamp) -> String {
    format!("{} {}", day(at), clock(at))
}

/// Returns when something was, as short as can be told apart: today's by its clock, others by their day.
pub(crate) fn when(at: Timestamp, now: Timestamp) -> String {
    if now.since(at).as_secs() < DAY_S { clock(at) } else { day(at) }
}

/// Returns the Gregorian date of a day since 1970: years begin in March, so that the leap day is last.
fn civil(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097; // days in 400 years
    let days = days.saturating_add(719_468); // since 0000-03-01
    let (era, day_of_era) = (days / ERA, days % ERA);
    let leaps = day_of_era / 1_460 + day_of_era / (ERA - 1) - day_of_era / 36_524;
    let year_of_era = (day_of_era - leaps) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_in_one_unit() {
        let cases = [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 min"),
            (42 * 60 + 59, "42 min"),
            (7_200, "2 h"),
            (47 * 3600, "47 h"),
            (19 * DAY_S, "19 d"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(span(seconds), expected);
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (951_868_799, "2000-02-29 23:59:59Z"),
            (951_868_800, "2000-03-01 00:00:00Z"),
            (1_709_164_800, "2024-02-29 00:00:00Z"),
            (1_735_689_599, "2024-12-31 23:59:59Z"),
            (1_735_689_600, "2025-01-01 00:00:00Z"),
            (1_790_000_000, "2026-09-21 14:13:20Z"),
            (4_107_542_400, "2100-03-01 00:00:00Z"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(moment(Timestamp(seconds * 1000)), expected);
        }
        assert!(!moment(Timestamp(u64::MAX)).is_empty(), "no time is too late to be told");
    }

    #[test]
    fn what_was_today_is_told_by_its_clock() {
        let now = Timestamp(1_790_000_000_000);
        assert_eq!(when(Timestamp(1_789_990_000_000), now), "11:26:40Z");
        assert_eq!(when(Timestamp(1_789_800_000_000), now), "2026-09-19");
    }
}
