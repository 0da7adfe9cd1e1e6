//! The machine in a simulated world, one seed after another.

use std::sync::atomic::{AtomicU64, Ordering};

use towline_tests::fleet;
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

/// Many instances, one or two coordinators, operators, and a network: 1,000 seeds, or as many as
/// `TOWLINE_SIM_SEEDS` says. `TOWLINE_SIM_SEED=<seed>` replays one, and prints all that happens in it.
#[test]
fn a_fleet_keeps_its_promises_and_converges() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("TOWLINE_SIM_SEED") {
        let mut world = fleet::World::new(seed, true);
        let outcome = world.live(TROUBLES);
        let trace = world.trace().join("\n");
        assert!(outcome.is_ok(), "{trace}\nseed {seed}: {}", outcome.unwrap_err());
        return;
    }
    let seeds = number("TOWLINE_SIM_SEEDS").unwrap_or(1_000);
    // Each world is one thread's; several worlds at a time.
    let next = AtomicU64::new(0);
    let worker = || -> Option<u64> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return None;
            }
            if fleet::World::new(seed, false).live(TROUBLES).is_err() {
                next.store(seeds, Ordering::Relaxed);
                return Some(seed);
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let broken = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        let ended = workers.into_iter().map(|worker| worker.join().unwrap());
        ended.flatten().min()
    });
    if let Some(seed) = broken {
        // The same again, with what led there.
        let broken = fleet::World::new(seed, true).live(TROUBLES).unwrap_err();
        panic!("seed {seed}: {broken}\n  replay: TOWLINE_SIM_SEED={seed} cargo test --test sim");
    }
}

/// How much trouble a fleet has.
const TROUBLES: usize = 60;
