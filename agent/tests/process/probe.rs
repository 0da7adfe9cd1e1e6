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

/// What an endpoint does once it was asked; each for as long as anybody listens.
#[derive(Debug, Clone, Copy)]
enum Conduct {
    /// Closes, before or after these bytes.
    Close(&'static str),
    /// Says this, and then this without end.
    Flood(&'static str, &'static str),
    /// Says this, and then one byte at a time.
    Trickle(&'static str),
    /// Never answers, and never closes.
    Silence,
    /// Resets the connection.
    Reset,
    /// Promises ten gigabytes, compressed: zeros that are none.
    Bomb,
}

async fn behave(stream: &mut TcpStream, conduct: Conduct) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    match conduct {
        Conduct::Close(text) => stream.write_all(text.as_bytes()).await,
        Conduct::Flood(head, more) => {
            stream.write_all(head.as_bytes()).await?;
            let more = more.repeat(1024);
            loop {
                stream.write_all(more.as_bytes()).await?;
            }
        }
        Conduct::Trickle(head) => {
            stream.write_all(head.as_bytes()).await?;
            loop {
                stream.write_all(b"x").await?;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        Conduct::Silence => std::future::pending().await,
        Conduct::Reset => stream.set_zero_linger(),
        Conduct::Bomb => {
            let head =
                "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 10000000000\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            // The header of a member, and blocks that each stand for 258 bytes of zeros a bit or two.
            stream.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3]).await?;
            loop {
                stream.write_all(&[0; 64 * 1024]).await?;
            }
        }
    }
}

async fn endpoint(conduct: Conduct) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // The probe may have heard enough.
                behave(&mut stream, conduct).await.ok();
            });
        }
    });
    port
}

/// Every row is one rule: no endpoint holds up its probe, fills the agent's memory, or is followed
/// elsewhere; and what answers well enough passes, whatever it says beside.
#[tokio::test]
async fn whatever_an_endpoint_does_costs_bounded_time_and_memory() {
    use Conduct::{Bomb, Close, Flood, Reset, Silence, Trickle};
    let elsewhere = serve(OK, r#"{"revision":"4f2c91e04f2c91e0"}"#, false).await;
    let away: &'static str = Box::leak(
        format!("HTTP/1.1 307 Moved\r\nlocation: http://127.0.0.1:{elsewhere}/\r\n\r\n")
            .into_boxed_str(),
    );
    let json = || Some(RevisionAt::Json("/revision".to_owned()));
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let large = "HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n";
    let late = "no answer within 1 s";
    let cases = [
        ("it redirects", Close(away), json(), Err("status 307")),
        ("and there without end", Flood(away, "x"), json(), Err("status 307")),
        ("it never answers", Silence, None, Err(late)),
        ("it closes at once", Close(""), None, Err("connection closed")),
        ("it resets", Reset, None, Err("GET http")),
        ("it closes in its head", Close("HTTP/1.1 200 OK\r\nx: "), None, Err("GET http")),
        ("it trickles its head", Trickle("HTTP/1.1 200 OK\r\nx: "), None, Err(late)),
        ("it trickles its body", Trickle(OK), json(), Err(late)),
        ("headers without end", Flood("HTTP/1.1 200 OK\r\n", "x: y\r\n"), None, Err("GET http")),
        ("a header without end", Flood("HTTP/1.1 200 OK\r\nx: ", "y"), None, Err("GET http")),
        ("a status line without end", Flood("HTTP/1.1 200 ", "O"), None, Err("GET http")),
        ("news without end", Flood("", "HTTP/1.1 103 Early\r\n\r\n"), None, Err("GET http")),
        ("a body without end", Flood(OK, "x"), json(), Err("longer than 65536")),
        ("chunks without end", Flood(chunked, "1\r\nx\r\n"), json(), Err("longer than 65536")),
        ("a chunk's size without end", Flood(chunked, "1"), json(), Err("GET http")),
        ("ten gigabytes", Flood(large, "x"), json(), Err("longer than 65536")),
        ("where the status does, too", Flood(large, "x"), None, Ok(())),
        ("what is compressed is not unpacked", Bomb, json(), Err("longer than 65536")),
        ("another protocol", Flood("", "\0\u{1}\u{2}"), None, Err("GET http")),
    ];
    let before = super::child::resident_bytes();
    for (rule, conduct, revision, expected) in cases {
        let started = Instant::now();
        let verdict = probe(http(endpoint(conduct).await), revision, Duration::from_secs(1)).await;
        assert!(started.elapsed() < Duration::from_secs(20), "{rule}");
        match (verdict, expected) {
            (Verdict::Pass { served: false }, Ok(())) => {}
            (Verdict::Fail(failure), Err(part)) => {
                assert_eq!(failure.cause, Cause::Unhealthy, "{rule}");
                assert!(failure.detail.contains(part), "{rule}: {}", failure.detail);
                assert!(failure.detail.len() < 400 && !failure.detail.contains('\n'), "{rule}");
            }
            (verdict, expected) => panic!("{rule}: {verdict:?}, not {expected:?}"),
        }
        let grown = super::child::resident_bytes().saturating_sub(before);
        assert!(grown < 24 << 20, "{rule}: grew by {grown} bytes");
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
