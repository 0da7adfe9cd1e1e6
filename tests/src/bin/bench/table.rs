//! One line per figure: median, spread, goal, and whether it was reached.

use std::fs;

/// What is measured, over several rounds.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    pub(crate) fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    fn spread(&self) -> String {
        format!("{:.1} to {:.1}", self.0[0], self.0[self.0.len() - 1])
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut samples = Self::default();
        values.into_iter().for_each(|value| samples.push(value));
        samples
    }
}

/// Prints what the lines below mean.
pub(crate) fn head() {
    println!("\n{:<52} {:>10} {:>20} {:>3}", "figure", "median", "least to most", "n");
}

/// Prints a figure; `goal` is the most that it may be.
pub(crate) fn row(name: &str, unit: &str, samples: &Samples, goal: Option<f64>) {
    let median = samples.median();
    let said = goal.map_or(String::new(), |goal| {
        let share = median / goal;
        let verdict = if share <= 1.0 { "reached" } else { "MISSED" };
        format!("goal {goal:.1}: {verdict}, {share:.2} of it")
    });
    let n = samples.0.len();
    println!("{name:<52} {:>10} {:>20} {n:>3}  {said}", show(median, unit), samples.spread());
}

/// Prints a ratio of two medians.
pub(crate) fn ratio(name: &str, small: &Samples, large: &Samples, goal: f64) {
    let found = large.median() / small.median();
    let verdict = if found >= goal { "reached" } else { "MISSED" };
    println!(
        "{name:<52} {:>10} {:>20} {:>3}  goal 1/{goal:.1}: {verdict}",
        format!("1/{found:.1}"),
        "",
        ""
    );
}

/// Prints a line that explains the one above.
pub(crate) fn note(text: &str) {
    println!("  {text}");
}

fn show(value: f64, unit: &str) -> String {
    format!("{value:.1} {unit}")
}

/// How busy the machine is: absolute figures of a busy one mean little.
pub(crate) fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
