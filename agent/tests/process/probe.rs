//! Health probes against apps that answer, hang, flood and lie.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use towline_agent::health::{Probe, Verdict};
use towline_protocol::ids::Revision;
use towline_protocol::recipe::{Check, Health, HttpAddress, RevisionAt, SocketName};
use towline_protocol::report::Cause;

use super::{line, run_as, sh};

fn revision() -> Revision {
    "4f2c91e0".repeat(5).parse().unwrap()
}

fn health(check: Check, revision: Option<RevisionAt>, timeout: Duration) -> Health {
    Health {
        check,
        revision,
        passes: 3,
        every: Duration::from_secs(2),
        healthy_for: Duration::from_secs(30),
        timeout,
        start: Duration::ZERO,
    }
}

async fn probe(check: Check, revision: Option<RevisionAt>, timeout: Duration) -> Verdict {
    let health = health(check, revision, timeout);
    let probe = Probe::new(&health, &run_as("probe"), Path::new("/")).unwrap();
    probe.once(Some(&self::revision())).await
}

fn socket(port: u16) -> SocketName {
    SocketName { host: "127.0.0.1".to_owned(), port }
}

fn http(port: u16) -> Check {
    Check::Http(HttpAddress { socket: socket(port), path: "/healthz?q=1".to_owned() })
}

fn detail(verdict: Verdict) -> (Cause, String) {
    match verdict {
        Verdict::Fail(failure) => (failure.cause, failure.detail),
        pass @ Verdict::Pass { .. } => panic!("{pass:?}"),
    }
}

/// Serves one answer: `head`, and then `body` once, or without end.
async fn serve(head: &'static str, body: &'static str, endless: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if answer(&mut stream, head, body, endless).await.is_err() {
                // The probe has heard enough.
            }
        }
    });
    port
}

async fn answer(
    stream: &mut TcpStream,
    head: &str,
    body: &str,
    endless: bool,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    assert!(request.starts_with(b"GET /healthz?q=1 HTTP/1.1\r\n"));
    stream.write_all(head.as_bytes()).await?;
    loop {
        stream.write_all(body.as_bytes()).await?;
        if !endless {
            return stream.shutdown().await;
        }
        if body.is_empty() {
            std::future::pending::<()>().await;
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\n\r\n";
const SOON: Duration = Duration::from_millis(300);
const LONG: Duration = super::LONG;

#[tokio::test]
async fn an_app_that_answers_passes() {
    let body = r#"{"revision":"4f2c91e04f2c91e0"}"#;
    let json = || Some(RevisionAt::Json("/revision".to_owned()));
    let verdict = probe(http(serve(OK, body, false).await), json(), LONG).await;
    assert_eq!(verdict, Verdict::Pass { served: true });
    let verdict = probe(http(serve(OK, body, false).await), None, LONG).await;
    assert_eq!(verdict, Verdict::Pass { served: false });
    let head = "HTTP/1.1 200 OK\r\nX-Revision: 4f2c91e0\r\ncontent-length: 0\r\n\r\n";
    let header = Some(RevisionAt::Header("x-revision".to_owned()));
    let verdict = probe(http(serve(head, "", false).await), header, LONG).await;
    assert_eq!(verdict, Verdict::Pass { served: true });
    let wrong =
        probe(http(serve(OK, r#"{"revision":"0000000"}"#, false).await), json(), LONG).await;
    let (cause, detail) = detail(wrong);
    assert_eq!(cause, Cause::WrongRevision);
    assert!(detail.contains("revision 0000000, not 4f2c91e0"), "{detail}");
}

#[tokio::test]
async fn an_endless_body_is_read_in_part() {
    let port = serve(OK, "0123456789abcdef", true).await;
    let verdict = probe(http(port), None, LONG).await;
    assert_eq!(verdict, Verdict::Pass { served: false }, "the status says all that was asked");
    let port = serve(OK, "0123456789abcdef", true).await;
    let json = Some(RevisionAt::Json("/revision".to_owned()));
    let (cause, detail) = detail(probe(http(port), json, LONG).await);
    assert!(cause == Cause::Unhealthy && detail.contains("longer than 65536"), "{detail}");
}

#[tokio::test]
async fn an_app_that_hangs_fails_in_time() {
    let cases = [("before the head", "", ""), ("in the body", OK, "")];
    for (rule, head, body) in cases {
        let started = Instant::now();
        let port = serve(head, body, true).await;
        let (cause, detail) = detail(probe(http(port), None, SOON).await);
        let expected = format!("GET http://127.0.0.1:{port}/healthz?q=1: no answer within 0.3 s");
        assert_eq!((cause, detail), (Cause::Unhealthy, expected), "{rule}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}

#[tokio::test]
async fn redirects_and_bad_statuses_fail() {
    for (head, part) in [
        ("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\n\r\n", ": status 302"),
        ("HTTP/1.1 503 Nope\r\ncontent-length: 0\r\n\r\n", ": status 503"),
        ("SSH-2.0-OpenSSH\r\n\r\n", "error"),
    ] {
        let (cause, detail) = detail(probe(http(serve(head, "", false).await), None, LONG).await);
        assert_eq!(cause, Cause::Unhealthy);
        assert!(detail.contains(part) && !detail.contains('\n'), "{detail}");
    }
}

#[tokio::test]
async fn a_port_is_open_or_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let verdict = probe(Check::Tcp(socket(port)), None, LONG).await;
    assert_eq!(verdict, Verdict::Pass { served: false });
    drop(listener);
    let (_, tcp) = detail(probe(Check::Tcp(socket(port)), None, LONG).await);
    assert!(tcp.starts_with(&format!("connect to 127.0.0.1:{port}: ")), "{tcp}");
    let (_, http) = detail(probe(http(port), None, LONG).await);
    assert!(http.to_lowercase().contains("connection refused"), "{http}");
}

#[tokio::test]
async fn a_command_passes_by_its_exit() {
    let command = |script: &str| Check::Command(sh(script));
    let verdict = probe(command("exit 0"), None, LONG).await;
    assert_eq!(verdict, Verdict::Pass { served: false });
    let (_, failed) =
        detail(probe(command("echo one; echo 'two\tthree'; exit 4"), None, LONG).await);
    assert!(failed.ends_with("failed with exit status 4 (two three)"), "{failed}");
    let (_, late) = detail(probe(Check::Command(line(&["sleep", "1000"])), None, SOON).await);
    assert!(late.contains("did not end within 0.3 s"), "{late}");
    let (_, missing) = detail(probe(Check::Command(line(&["no-such-check"])), None, LONG).await);
    assert!(missing.contains("could not start the health command"), "{missing}");
}
