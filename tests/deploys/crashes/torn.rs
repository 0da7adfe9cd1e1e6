//! The agent's own files, cut short or filled with noise: it tells, and converges.

use std::fs;
use std::path::Path;

use towline_tests::random::Random;

use super::{Lane, Source, is_all};

/// What becomes of a file.
#[derive(Debug, Clone, Copy)]
enum Harm {
    /// Only so many bytes of a thousand are left.
    Cut(usize),
    /// Bytes from a seed.
    Noise(u64),
    /// A directory of its name.
    Directory,
}

impl Harm {
    fn all() -> Vec<Harm> {
        let mut all = vec![Harm::Cut(0), Harm::Cut(20), Harm::Noise(1), Harm::Directory];
        if is_all() {
            all.extend((5..100).step_by(9).map(Harm::Cut));
            all.extend((2..12).map(Harm::Noise));
        }
        all
    }

    fn be_done(self, path: &Path) {
        let bytes = fs::read(path).unwrap_or_default();
        match self {
            Harm::Cut(thousandths) => {
                fs::write(path, &bytes[..bytes.len() * thousandths / 1_000]).expect("it is ours");
            }
            Harm::Noise(seed) => {
                let mut random = Random::new(seed);
                let noise = (0..bytes.len().max(64)).map(|_| u8::try_from(random.below(256)));
                let noise: Vec<u8> = noise.map(|byte| byte.expect("below 256")).collect();
                fs::write(path, noise).expect("it is ours");
            }
            Harm::Directory => {
                fs::remove_file(path).ok();
                fs::create_dir(path).expect("it is ours");
                fs::write(path.join("x"), "").expect("it is ours");
            }
        }
    }
}

#[test]
fn a_file_of_the_agents_that_is_torn_is_told_and_the_agent_converges() {
    let mut source = Source::new();
    let mut lane = Lane::new(&source);
    let (old, good, next) = (source.good(), source.good(), source.good());
    for revision in [&old, &good] {
        lane.host.target(revision);
        let (code, log) = lane.once();
        assert_eq!(code, 0, "{log}");
    }
    lane.keep("serving");
    let marker = |revision: &str| format!("releases/{revision}.json");
    // The file; what is said of it; whether a directory of its name, which only a person makes, is moved.
    let rules: [(String, &str, bool); 9] = [
        (".towline/journal.json".to_owned(), "the journal was broken", false),
        (".towline/journal.json.new".to_owned(), "", false),
        (".towline/status.json".to_owned(), "", false),
        (".towline/status.json.new".to_owned(), "", false),
        (".towline/current".to_owned(), "", false),
        (".towline/lock".to_owned(), "", false),
        (".towline/git/HEAD".to_owned(), "", true),
        (marker(&good), "", false),
        (marker(&old), "", false),
    ];
    let mut wrong = Vec::new();
    for (name, said, is_moved) in &rules {
        for harm in Harm::all() {
            if matches!(harm, Harm::Directory) && !is_moved {
                continue;
            }
            lane.reset("serving");
            harm.be_done(&lane.dir().join(name));
            lane.host.target(&next);
            let (code, log) = lane.once();
            let outcome = if log.contains("panicked") || code != 0 {
                Err(format!("it ended with {code}"))
            } else if !log.contains(said) {
                Err(format!("it does not say: {said}"))
            } else {
                lane.recovers(&source, &next, 0)
            };
            if let Err(what) = outcome {
                wrong.push(format!("{name}, {harm:?}: {what}\n{log}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// The status is what a person asks for: what it cannot be read from is named.
#[test]
fn a_status_that_is_torn_is_named_and_written_anew() {
    let mut source = Source::new();
    let mut lane = Lane::new(&source);
    let good = source.good();
    lane.host.target(&good);
    assert_eq!(lane.once().0, 0);
    let path = lane.dir().join(".towline/status.json");
    for harm in Harm::all().into_iter().filter(|harm| !matches!(harm, Harm::Directory)) {
        harm.be_done(&path);
        let output = lane.host.command("status").output().expect("the agent was built");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{harm:?}: {said}");
        assert!(said.contains("could not read") && said.contains("status.json"), "{said}");
        lane.recovers(&source, &good, 0).expect("it is as it was");
    }
}
