//! A mirror over real repositories, by the real git.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::*;

mod clones;

const NOW: Duration = Duration::ZERO;
const ZERO_DISTANCE: Distance = Distance { behind: 0, ahead: 0 };

/// A repository that is fetched from, and a mirror of it.
struct World {
    dir: TempDir,
    url: String,
    mirror: Mirror,
}

impl World {
    fn new() -> World {
        World::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut MirrorConfig)) -> World {
        World::within(tempfile::tempdir().unwrap(), change)
    }

    fn within(dir: TempDir, change: impl FnOnce(&mut MirrorConfig)) -> World {
        let origin = dir.path().join("origin");
        fs::create_dir(&origin).unwrap();
        let url = format!("file://{}", origin.display());
        let mut config = MirrorConfig::new(dir.path().join("mirror"));
        config.allow_file = true;
        change(&mut config);
        let world = World { mirror: Mirror::new(config).unwrap(), dir, url };
        world.git(&["init", "--quiet", "--bare", "--initial-branch=main"], "");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs git in the origin.
    fn git(&self, arguments: &[&str], input: &str) -> String {
        git_in(&self.path("origin"), arguments, input)
    }

    /// Returns the one clone of the mirror.
    fn clone(&self) -> PathBuf {
        let mut found = fs::read_dir(self.path("mirror")).unwrap().map(|e| e.unwrap().path());
        let clone = found.next().unwrap();
        assert_eq!(found.next(), None, "nothing is left beside the clone");
        assert!(clone.extension().is_some_and(|end| end == "git"));
        clone
    }

    /// Writes a commit without files, and lets a ref point at it.
    fn commit(&self, name: &str, message: &str, parents: &[&Revision]) -> Revision {
        let tree = self.git(&["mktree"], "");
        let mut arguments = vec!["commit-tree", &tree];
        for parent in parents {
            arguments.extend(["-p", parent.as_str()]);
        }
        let id = self.git(&arguments, message);
        self.git(&["update-ref", name, &id], "");
        id.parse().unwrap()
    }

    async fn resolve(&self, name: &str) -> Result<Resolved, MirrorError> {
        self.mirror.resolve(&self.url, name).await
    }

    async fn refresh(&self) -> Result<(), MirrorError> {
        self.mirror.refresh(&self.url, NOW).await
    }

    /// How many times git was run to fetch, by a program that [`counting`] made.
    fn fetches(&self) -> usize {
        fs::read_to_string(self.path("fetches")).unwrap_or_default().lines().count()
    }
}

fn git_in(dir: &Path, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("git")
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .envs([("PATH", "/usr/local/bin:/usr/bin:/bin"), ("LC_ALL", "C")])
        .envs([("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null")])
        .envs([("GIT_AUTHOR_NAME", "Ada"), ("GIT_AUTHOR_EMAIL", "ada@example.com")])
        .envs([("GIT_COMMITTER_NAME", "Cy"), ("GIT_COMMITTER_EMAIL", "cy@example.com")])
        .envs([("GIT_AUTHOR_DATE", "1700000000 +0000")])
        .envs([("GIT_COMMITTER_DATE", "1700000060 +0000")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "git {arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Writes a program. By another process: a file that is open here cannot be run.
fn program(path: &Path, text: &str) {
    let mut child = Command::new("/bin/sh")
        .args(["-c", "cat > \"$0\" && chmod 0755 \"$0\""])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    write!(child.stdin.take().unwrap(), "#!/bin/sh\n{text}\n").unwrap();
    assert!(child.wait().unwrap().success());
}

/// Makes git write a line for each fetch.
fn counting(config: &mut MirrorConfig) {
    let dir = config.dir.parent().unwrap().to_owned();
    config.git = dir.join("git");
    let count = dir.join("fetches").display().to_string();
    program(&config.git, &format!("case $1 in fetch) echo x >> {count};; esac\nexec git \"$@\""));
}

fn cause(error: &MirrorError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// One repository with everything that a name can be mistaken for; each row is a rule.
#[tokio::test]
async fn names_mean_what_is_documented() {
    let world = World::new();
    let marker = world.path("marker");
    // A thousand commits, so that some share their first four digits.
    let mut history = String::new();
    for number in 1..=1000 {
        let message = format!("Step {number}");
        history.push_str(&format!(
            "commit refs/heads/main\nmark :{number}\ncommitter Cy <cy@example.com> {} +0000\n\
             data {}\n{message}\n",
            1_700_000_000 + number,
            message.len(),
        ));
    }
    world.git(&["fast-import", "--quiet"], &history);
    let list = world.git(&["rev-list", "main"], "");
    let ids: Vec<Revision> = list.lines().map(|id| id.parse().unwrap()).collect();
    let (tip, old) = (&ids[0], &ids[500]);
    let shared = |digits: usize| {
        let begin = |id: &Revision| id.as_str()[..digits].to_owned();
        let twice = ids
            .iter()
            .map(begin)
            .find(|one| ids.iter().filter(|id| id.as_str().starts_with(one)).count() > 1);
        twice.expect("some share their first digits")
    };
    let short = |id: &Revision, digits: usize| id.as_str()[..digits].to_owned();
    let tree = world.git(&["mktree"], "");
    world.git(&["tag", "-a", "-m", "one", "v1", old.as_str()], "");
    world.git(&["tag", "-a", "-m", "of a tag", "v1-again", "v1"], "");
    world.git(&["tag", "light", old.as_str()], "");
    world.git(&["tag", "a-tree", &tree], "");
    world.git(&["branch", "both", tip.as_str()], "");
    world.git(&["tag", "both", old.as_str()], "");
    world.git(&["branch", "same", old.as_str()], "");
    world.git(&["tag", "same", old.as_str()], "");
    world.git(&["branch", "Feature/Grün", old.as_str()], "");
    let taken = short(old, 10);
    world.git(&["branch", &taken, tip.as_str()], "");
    let fine = short(tip, 12);
    world.git(&["branch", &fine, tip.as_str()], "");
    world.git(&["branch", "refs/heads/evil", tip.as_str()], "");
    world.git(&["update-ref", &format!("refs/heads/{old}"), tip.as_str()], "");
    let tag_id = world.git(&["rev-parse", "refs/tags/v1"], "");
    // Whoever may push could let one commit stand for another.
    world.git(&["update-ref", &format!("refs/replace/{old}"), tip.as_str()], "");
    world.git(&["update-ref", "refs/pull/1/head", tip.as_str()], "");

    let means = [
        ("a full id", tip.to_string(), tip, Kind::Id),
        ("in capitals", tip.to_string().to_uppercase(), tip, Kind::Id),
        ("a full id, whatever branches are called", old.to_string(), old, Kind::Id),
        ("an abbreviation", short(old, 12), old, Kind::Abbreviation),
        ("an abbreviation in capitals", short(old, 12).to_uppercase(), old, Kind::Abbreviation),
        ("a branch", "main".to_owned(), tip, Kind::Branch),
        ("letters of any kind", "Feature/Grün".to_owned(), old, Kind::Branch),
        ("an annotated tag", "v1".to_owned(), old, Kind::Tag),
        ("a tag of a tag", "v1-again".to_owned(), old, Kind::Tag),
        ("a plain tag", "light".to_owned(), old, Kind::Tag),
        ("branch and tag that agree", "same".to_owned(), old, Kind::Branch),
        ("a branch named after its own commit", fine.clone(), tip, Kind::Branch),
        ("exactly the branch", "refs/heads/both".to_owned(), tip, Kind::Branch),
        ("exactly the tag", "refs/tags/both".to_owned(), old, Kind::Tag),
        ("exactly the branch of digits", format!("refs/heads/{taken}"), tip, Kind::Branch),
        ("a branch called like a ref", "refs/heads/refs/heads/evil".to_owned(), tip, Kind::Branch),
    ];
    for (rule, name, revision, kind) in means {
        let found = world.resolve(&name).await.unwrap();
        assert_eq!((&found.revision, found.kind), (revision, kind), "{rule}");
    }

    let marked = format!("--upload-pack=touch {}", marker.display());
    let refused = [
        ("a branch and a tag that differ", "both".to_owned(), "ambiguous"),
        ("a branch called like another commit", taken.clone(), "ambiguous"),
        ("digits that two share", shared(4), "ambiguous"),
        ("a tree", tree.clone(), "not-commit"),
        ("digits of a tree", tree[..8].to_owned(), "not-commit"),
        ("a tag's own id", tag_id, "not-commit"),
        ("a tag of a tree", "a-tree".to_owned(), "not-commit"),
        ("no such branch", "mian".to_owned(), "unknown"),
        ("no such commit", "0".repeat(40), "unknown"),
        ("three digits", short(tip, 3), "unknown"),
        ("not by another way", "refs/heads/evil".to_owned(), "unknown"),
        ("no ref of a pull request", "refs/pull/1/head".to_owned(), "name"),
        ("not what it may stand for", format!("refs/replace/{old}"), "name"),
        ("the head of the clone", "HEAD".to_owned(), "unknown"),
        ("an option", marked.clone(), "name"),
        ("a short option", "-h".to_owned(), "name"),
        ("a branch's name and more", "main --all".to_owned(), "name"),
        ("a range", format!("{old}..{tip}"), "name"),
        ("a parent", "main^".to_owned(), "name"),
    ];
    for (rule, name, expected) in refused {
        let error = world.resolve(&name).await.expect_err(rule);
        let found = match &error {
            MirrorError::Ambiguous { meanings, .. } => {
                assert!(meanings.len() > 1, "{rule}: {error}");
                "ambiguous"
            }
            MirrorError::NotCommit { .. } => "not-commit",
            MirrorError::Unknown { .. } => "unknown",
            MirrorError::Name { .. } => "name",
            _ => "something else",
        };
        assert_eq!(found, expected, "{rule}: {}", cause(&error));
        assert!(error.is_about_name() && !error.is_temporary(), "{rule}");
        assert!(error.hint().is_some(), "{rule}");
    }
    let error = world.resolve("mai").await.unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("main")), "{error}");
    for bad in ["--upload-pack=x", "main --all", "main^{tree}"] {
        let error = world.mirror.is_on_branch(&world.url, tip, bad).await.unwrap_err();
        assert!(matches!(error, MirrorError::Name { .. }), "{bad}: {error}");
    }
    assert!(!marker.exists(), "nothing was run");

    // Nothing but branches and tags came, and what stands for something else is not heeded.
    let clone = world.clone();
    let refs = git_in(&clone, &["for-each-ref", "--format=%(refname)"], "");
    assert!(refs.lines().all(|r| r.starts_with("refs/heads/") || r.starts_with("refs/tags/")));
    git_in(&clone, &["update-ref", &format!("refs/replace/{old}"), tip.as_str()], "");
    let subject = |commit: CommitInfo| commit.subject;
    assert_eq!(world.mirror.commit(&world.url, old).await.map(subject).unwrap(), "Step 500");
    let distance = world.mirror.distance(&world.url, old, tip).await.unwrap();
    assert_eq!(distance, Some(Distance { behind: 500, ahead: 0 }));

    // Distances are counted so many at a time, and then known.
    let many = &ids[..150];
    for expected in [100, 150] {
        let described = world.mirror.describe(&world.url, many, Some(tip)).await.unwrap();
        assert_eq!(described.len(), many.len());
        let counted = described.values().filter(|one| one.distance.is_some()).count();
        assert_eq!(counted, expected);
    }
}

#[tokio::test]
async fn what_is_on_a_branch_follows_the_origin() {
    let world = World::new();
    let (mirror, url) = (&world.mirror, world.url.as_str());
    let base = world.commit("refs/heads/main", "base", &[]);
    let left = world.commit("refs/heads/main", "left", &[&base]);
    let right = world.commit("refs/heads/side", "right", &[&base]);
    let right = world.commit("refs/heads/side", "more", &[&right]);
    let merge = world.commit("refs/heads/main", "merge", &[&left, &right]);
    let foreign = world.commit("refs/heads/foreign", "unrelated", &[]);
    let pull = world.commit("refs/pull/1/head", "from a fork", &[&base]);
    let unknown: Revision = "12345678".repeat(5).parse().unwrap();
    let cases = [
        ("its tip", &merge, "main", true),
        ("its history", &base, "main", true),
        ("through a merge", &right, "main", true),
        ("ahead of it", &merge, "side", false),
        ("another history", &foreign, "main", false),
        ("of a pull request", &pull, "main", false),
        ("not known", &unknown, "main", false),
    ];
    for (rule, revision, branch, expected) in cases {
        let found = mirror.is_on_branch(url, revision, branch).await.unwrap();
        assert_eq!(found, expected, "{rule}");
    }
    let error = mirror.is_on_branch(url, &base, "mainn").await.unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("main")), "{error}");

    let distances = [
        ("itself", &merge, &merge, Some(ZERO_DISTANCE)),
        ("behind by a merge", &base, &merge, Some(Distance { behind: 4, ahead: 0 })),
        ("ahead by a merge", &merge, &left, Some(Distance { behind: 0, ahead: 3 })),
        ("both", &left, &right, Some(Distance { behind: 2, ahead: 1 })),
        ("nothing in common", &foreign, &merge, None),
        ("not known", &unknown, &merge, None),
        ("to what is not known", &merge, &unknown, None),
    ];
    for (rule, from, to, expected) in distances {
        assert_eq!(mirror.distance(url, from, to).await.unwrap(), expected, "{rule}");
    }
    let all = [merge.clone(), base.clone(), foreign.clone(), unknown.clone()];
    let described = mirror.describe(url, &all, Some(&merge)).await.unwrap();
    assert_eq!(described.keys().len(), 3, "what is not known is left out");
    assert_eq!(described[&base].distance, Some(Distance { behind: 4, ahead: 0 }));
    assert_eq!(described[&foreign].distance, None);
    let commit = &described[&base].commit;
    assert_eq!((commit.subject.as_str(), commit.author.as_str()), ("base", "Ada"));
    assert_eq!(commit.authored.0, 1_700_000_000_000);
    let error = mirror.commit(url, &unknown).await.unwrap_err();
    assert!(matches!(error, MirrorError::Unknown { .. }), "{error}");

    // Fetched once more, because it was not there just now.
    world.git(&["branch", "late", base.as_str()], "");
    assert!(mirror.is_on_branch(url, &base, "late").await.unwrap());

    // Pushed a moment after the last fetch, and released at once.
    world.git(&["update-ref", "refs/heads/late", merge.as_str()], "");
    assert!(mirror.is_on_branch(url, &merge, "late").await.unwrap(), "a no is a fresh one");

    // Pushed by force, and one branch in the place of a folder of branches.
    world.git(&["update-ref", "refs/heads/main", left.as_str()], "");
    world.git(&["branch", "-D", "side"], "");
    world.git(&["branch", "side/new", base.as_str()], "");
    world.refresh().await.unwrap();
    assert!(!mirror.is_on_branch(url, &merge, "main").await.unwrap(), "no longer");
    assert!(mirror.is_on_branch(url, &left, "main").await.unwrap());
    assert_eq!(mirror.commit(url, &merge).await.unwrap().subject, "merge", "still known");
    assert_eq!(world.resolve("side/new").await.unwrap().revision, base);
    assert!(world.resolve("side").await.is_err(), "a branch that is gone is gone here");
    assert_eq!(world.resolve(merge.as_str()).await.unwrap().kind, Kind::Id);
}

/// Does something to a clone.
type Way<'a> = &'a dyn Fn(&Path);

#[tokio::test]
async fn an_origin_that_is_away_changes_no_answer() {
    let world = World::with(counting);
    let (mirror, url) = (&world.mirror, world.url.as_str());
    let first = world.commit("refs/heads/main", "first", &[]);
    let error = mirror.commit(url, &first).await.unwrap_err();
    assert!(matches!(error, MirrorError::Empty { .. }) && error.is_temporary(), "{error}");
    assert_eq!(world.fetches(), 0, "a view does not fetch");
    let next = world.commit("refs/heads/main", "next", &[&first]);
    world.refresh().await.unwrap();

    fs::rename(world.path("origin"), world.path("away")).unwrap();
    let error = world.refresh().await.unwrap_err();
    assert!(matches!(error, MirrorError::Fetch { .. }) && error.is_temporary(), "{error}");
    assert!(error.to_string().starts_with("could not fetch file:///"), "{error}");
    assert!(world.resolve("main").await.unwrap_err().is_temporary(), "a branch may have moved");
    assert!(world.resolve("0123456").await.unwrap_err().is_temporary(), "it may be there");
    let error = mirror.is_on_branch(url, &first, "main").await.unwrap_err();
    assert!(error.is_temporary(), "nobody knows: {error}");
    assert_eq!(world.resolve(first.as_str()).await.unwrap().revision, first);
    assert_eq!(world.resolve(&first.as_str()[..12]).await.unwrap().revision, first);
    assert_eq!(mirror.commit(url, &next).await.unwrap().subject, "next");
    let distance = mirror.distance(url, &first, &next).await.unwrap();
    assert_eq!(distance, Some(Distance { behind: 1, ahead: 0 }));

    let minute = Duration::from_secs(60);
    let before = world.fetches();
    assert!(mirror.refresh(url, minute).await.is_err(), "the last one counts, as it was");
    assert_eq!(world.fetches(), before);
    fs::rename(world.path("away"), world.path("origin")).unwrap();
    world.refresh().await.unwrap();
    mirror.refresh(url, minute).await.unwrap();
    assert!(mirror.is_on_branch(url, &first, "main").await.unwrap());
    assert_eq!(world.fetches(), before + 1, "both took what had just been fetched");
}

/// Handlers of requests run on any thread.
#[test]
fn every_question_can_be_asked_from_any_thread() {
    fn goes_anywhere<T: Send>(_: T) {}
    let world = World::new();
    let (mirror, url) = (&world.mirror, world.url.as_str());
    let revision: Revision = "12345678".repeat(5).parse().unwrap();
    goes_anywhere(mirror.check());
    goes_anywhere(mirror.refresh(url, NOW));
    goes_anywhere(mirror.resolve(url, "main"));
    goes_anywhere(mirror.is_on_branch(url, &revision, "main"));
    goes_anywhere(mirror.commit(url, &revision));
    goes_anywhere(mirror.distance(url, &revision, &revision));
    goes_anywhere(mirror.describe(url, std::slice::from_ref(&revision), None));
    goes_anywhere(mirror);
}
