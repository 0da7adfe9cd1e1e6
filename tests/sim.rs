//! The machine in a simulated world, one seed after another.

use towline_tests::world::World;

/// One failing seed is one bug report: replay it with `TOWLINE_SIM_SEED=<seed>`.
#[test]
fn an_instance_always_ends_on_a_good_release() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("TOWLINE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TOWLINE_SIM_SEEDS").unwrap_or(2_000),
    };
    for seed in seeds {
        if let Err(broken) = World::new(seed).live(120) {
            panic!(
                "seed {seed}: {broken}\n  replay: TOWLINE_SIM_SEED={seed} cargo test --test sim"
            );
        }
    }
}
