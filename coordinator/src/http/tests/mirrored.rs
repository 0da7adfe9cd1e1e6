//! What goes on while git, or a repository's origin, does not answer.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Either, select};
use futures_util::stream::FuturesUnordered;

use super::*;

const URL: &str = "https://origin.example/web.git";

/// A coordinator whose `web` is mirrored by a git that can be made to hang.
struct Slow {
    here: Here,
    dir: tempfile::TempDir,
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

impl Slow {
    /// One with a rollout that goes on.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = MirrorConfig::new(dir.path().join("mirrors"));
        config.git = dir.path().join("git");
        let at = dir.path().display();
        // Its origin is empty, and is not asked.
        program(
            &config.git,
            &format!(
                "if [ -e {at}/hangs ]; then : > {at}/asked; exec sleep 600; fi\n\
                 case $1 in fetch) exit 0;; esac\nexec git \"$@\""
            ),
        );
        let mirror = Arc::new(Mirror::new(config).unwrap());
        mirror.refresh(URL, Duration::ZERO).await.unwrap();
        let here = Here::mirroring(Some(mirror)).await;
        let set = async |policy| {
            let said = here.change(Method::PUT, "/v1/groups/web", &policy).await;
            assert_eq!(said.status, StatusCode::NO_CONTENT, "{said:?}");
        };
        set(json!({"mirror": false})).await;
        here.tells("i-1", &revision('a'), 1).await;
        let said = here.post("/v1/groups/web/release", &json!({"revision": revision('b')})).await;
        assert_eq!(said.status, StatusCode::OK, "{said:?}");
        set(json!({"repository": URL})).await;
        Self { here, dir }
    }

    fn hang(&self) {
        std::fs::write(self.dir.path().join("hangs"), "").unwrap();
    }

    /// Where git notes that it was asked, since it hangs.
    fn asked(&self) -> PathBuf {
        self.dir.path().join("asked")
    }
}

#[tokio::test]
async fn whoever_steers_does_not_wait_for_git() {
    let slow = Slow::new().await;
    slow.hang();
    for (verb, state) in [("pause", "paused"), ("resume", "running"), ("abort", "aborted")] {
        let path = format!("/v1/groups/web/rollout/{verb}");
        let said = slow.here.post(&path, &json!({"reason": "git hangs"})).await;
        assert_eq!(said.body["state"], state, "{said:?}");
    }
    let said = slow.here.post("/v1/groups/web/rollback", &json!({})).await;
    assert_ne!(said.status, StatusCode::SERVICE_UNAVAILABLE, "{said:?}");
    assert!(!slow.asked().exists(), "git was not asked");
    // A view would have waited.
    let (view, looked) = (slow.here.get("/v1/groups/web/rollout"), async {
        while !slow.asked().exists() {
            tokio::task::yield_now().await;
        }
    });
    match select(std::pin::pin!(view), std::pin::pin!(looked)).await {
        Either::Left((said, _)) => panic!("git was not asked: {said:?}"),
        Either::Right(((), _)) => {}
    }
}

#[tokio::test]
async fn an_origin_that_does_not_answer_keeps_nobody_from_steering() {
    let slow = Slow::new().await;
    slow.hang();
    let ask = |_| slow.here.get("/v1/groups/web/resolve?name=main");
    let mut asking: FuturesUnordered<_> = (0..70).map(ask).collect();
    let refused = asking.next().await.unwrap();
    assert_eq!((refused.status.as_u16(), refused.code()), (503, "unavailable"), "{refused:?}");
    while !slow.asked().exists() {
        tokio::task::yield_now().await;
    }
    let said = slow.here.get("/v1/groups").await;
    assert_eq!(said.status, StatusCode::OK, "who looks is answered: {said:?}");
    let paused = slow.here.post("/v1/groups/web/rollout/pause", &json!({})).await;
    assert_eq!(paused.body["state"], "paused", "{paused:?}");
    let aborted = slow.here.post("/v1/groups/web/rollout/abort", &json!({})).await;
    assert_eq!(aborted.body["state"], "aborted", "{aborted:?}");
    drop(asking);
}
