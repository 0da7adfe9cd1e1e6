//! The client against a server on loopback that answers as each test says.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use towline_protocol::api::{Code, GroupView};

use super::*;
use crate::config::Token;
use crate::exit::Exit;

/// What the server does with a connection, each in its turn.
enum Reply {
    /// Answers with these bytes.
    Say(Vec<u8>),
    /// Reads the request and hangs up.
    HangUp,
}

struct Server {
    address: Url,
    requests: Arc<Mutex<Vec<String>>>,
    work: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.work.abort();
    }
}

fn answer(status: &str, headers: &str, body: &str) -> Reply {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n");
    Reply::Say(format!("{head}{headers}\r\n{body}").into_bytes())
}

impl Server {
    async fn start(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let heard = requests.clone();
        let work = tokio::spawn(async move {
            for reply in replies {
                let (mut socket, _) = listener.accept().await.unwrap();
                let request = read_request(&mut socket).await;
                heard.lock().unwrap().push(request);
                if let Reply::Say(bytes) = reply {
                    // A client that has heard enough hangs up.
                    drop(socket.write_all(&bytes).await);
                    drop(socket.shutdown().await);
                }
            }
        });
        Self { address, requests, work }
    }

    fn client(&self) -> Client {
        client(self.address.clone())
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn read_request(socket: &mut tokio::net::TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        let mut piece = [0; 4096];
        let count = socket.read(&mut piece).await.unwrap();
        assert!(count > 0, "the request is whole");
        bytes.extend_from_slice(&piece[..count]);
    }
}

/// Limits under which nothing waits.
pub(crate) fn limits() -> Limits {
    Limits {
        waits: vec![Duration::ZERO; 2],
        stream_waits: (Duration::ZERO, Duration::ZERO),
        body_bytes_max: 10_000,
        event_bytes_max: 10_000,
        ..Limits::default()
    }
}

/// Makes a client of a server on loopback.
pub(crate) fn client(address: Url) -> Client {
    // Another test of this process may have installed it.
    drop(rustls::crypto::ring::default_provider().install_default());
    let token = Token::parse("tlo_secret");
    Client::new(&Connection { address, socket: None, ca_file: None, token }, limits()).unwrap()
}

async fn get(server: &Server) -> Result<GroupView, ClientError> {
    server.client().get(&["groups", "web"], &[]).await
}

#[tokio::test]
async fn a_refusal_is_told_as_it_came() {
    let refusal = r#"{"error":{"code":"not-found","message":"no group webb","hint":"see `towline group list`"}}"#;
    let server = Server::start(vec![answer("404 Not Found", "", refusal)]).await;
    let error = get(&server).await.unwrap_err();
    assert_eq!(error.to_string(), "no group webb");
    assert_eq!(error.hint().as_deref(), Some("see `towline group list`"));
    assert!(error.is_not_found());
    assert_eq!(error.exit(), Exit::Failed);
    let request = &server.requests()[0];
    assert!(request.starts_with("get /v1/groups/web http/1.1\r\n"), "{request}");
    assert!(request.contains("authorization: bearer tlo_secret"), "{request}");
    assert!(!request.contains(IDEMPOTENCY_HEADER), "reading needs no key: {request}");
}

#[tokio::test]
async fn what_is_busy_or_away_is_to_be_tried_later() {
    let busy = r#"{"error":{"code":"unavailable","message":"the store is busy"}}"#;
    let many = r#"{"error":{"code":"too-many","message":"too often"}}"#;
    let cases = [
        ("busy", answer("503 Service Unavailable", "retry-after: 1\r\n", busy)),
        ("too often", answer("429 Too Many Requests", "", many)),
        ("a load balancer alone", answer("502 Bad Gateway", "", "<html>\n<h1>502</h1>")),
    ];
    for (rule, reply) in cases {
        let server = Server::start(vec![reply]).await;
        let error = get(&server).await.expect_err(rule);
        assert_eq!(error.exit(), Exit::TryLater, "{rule}: {error}");
        assert!(error.hint().is_some(), "{rule}");
    }
}

#[tokio::test]
async fn what_is_not_the_coordinators_answer_is_named() {
    let page = "<html>\u{1b}[31m <h1>502 Bad Gateway</h1>".to_owned() + &"x".repeat(5_000);
    let server = Server::start(vec![answer("502 Bad Gateway", "", &page)]).await;
    let said = get(&server).await.unwrap_err().to_string();
    assert!(said.contains("502") && said.contains("Bad Gateway") && said.len() < 200, "{said}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
    let server = Server::start(vec![answer("404 Not Found", "", "no such page")]).await;
    let error = get(&server).await.unwrap_err();
    assert_eq!(error.exit(), Exit::Failed);
    assert!(!error.is_not_found(), "who answered knows no groups");
    let server = Server::start(vec![answer("200 OK", "", "<html>welcome")]).await;
    let error = get(&server).await.unwrap_err();
    assert!(matches!(error, ClientError::Malformed(_)), "{error}");
}

#[tokio::test]
async fn an_answer_without_an_end_is_given_up() {
    let body = format!("{{\"x\":\"{}", "x".repeat(20_000));
    let server = Server::start(vec![answer("200 OK", "", &body)]).await;
    let error = get(&server).await.unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { .. }), "{error}");
    let body = "y".repeat(20_000);
    let server = Server::start(vec![answer("500 Internal Server Error", "", &body)]).await;
    let error = get(&server).await.unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { .. }), "of an error too: {error}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let location = "location: http://127.0.0.1:1/elsewhere\r\n";
    let server = Server::start(vec![answer("307 Temporary Redirect", location, "")]).await;
    let error = get(&server).await.unwrap_err();
    assert!(error.to_string().contains("http://127.0.0.1:1/elsewhere"), "{error}");
    assert_eq!(error.exit(), Exit::Config);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_change_is_tried_again_with_the_same_key() {
    let done = answer("200 OK", "", "{}");
    let server = Server::start(vec![Reply::HangUp, Reply::HangUp, done]).await;
    let body = serde_json::json!({"reason": "x"});
    let path = ["groups", "web", "rollout", "pause"];
    server.client().change_only(Method::POST, &path, &body).await.unwrap();
    let requests = server.requests();
    let key = |request: &String| {
        let line = request.lines().find(|line| line.starts_with(IDEMPOTENCY_HEADER));
        line.expect("each change has a key").to_owned()
    };
    let keys: Vec<_> = requests.iter().map(key).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|other| *other == keys[0]), "{keys:?}");
    assert!(
        requests.iter().all(|request| request.ends_with("{\"reason\":\"x\"}")),
        "the same body"
    );

    let server = Server::start(vec![answer("200 OK", "", "{}")]).await;
    server.client().change_only(Method::POST, &path, &body).await.unwrap();
    assert_ne!(key(&server.requests()[0]), keys[0], "another change has another key");
}

#[tokio::test]
async fn a_refused_change_is_not_tried_again() {
    let refusal = r#"{"error":{"code":"conflict","message":"a rollout goes on"}}"#;
    let server = Server::start(vec![answer("409 Conflict", "", refusal)]).await;
    let path = ["groups", "web", "release"];
    let ended = server.client().change_only(Method::POST, &path, &()).await;
    assert!(matches!(ended, Err(ClientError::Refused(body)) if body.code == Code::Conflict));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn where_nobody_listens_it_is_said_and_hinted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let error = client(address).get::<GroupView>(&["groups", "web"], &[]).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    assert_eq!(error.exit(), Exit::TryLater);
    assert!(error.hint().unwrap().contains("--coordinator"));
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.starts_with("Connection refused"), "only what matters: {cause}");
}

#[tokio::test]
async fn all_pages_of_a_list_are_read_once() {
    let page = |body: &str| answer("200 OK", "", body);
    let server = Server::start(vec![
        page(r#"{"items":[1,2],"next":"b/2"}"#),
        page(r#"{"items":[3],"next":null}"#),
    ])
    .await;
    let items: Vec<u32> = server.client().list(&["instances"], &[("group", "web")]).await.unwrap();
    assert_eq!(items, [1, 2, 3]);
    assert!(
        server.requests()[1].contains("?group=web&after=b%2f2 "),
        "what a page names is quoted"
    );
    let same = r#"{"items":[1],"next":"x"}"#;
    let server = Server::start(vec![page(same), page(same)]).await;
    let items: Vec<u32> = server.client().list(&["instances"], &[]).await.unwrap();
    assert_eq!(items, [1, 1], "a list that leads to itself ends");
}

#[tokio::test]
async fn what_is_named_in_a_path_stays_one_step_of_it() {
    let server = Server::start(vec![answer("200 OK", "", "{}")]).await;
    let path = ["tokens", "../x y?z", "revoke"];
    server.client().change_only(Method::POST, &path, &()).await.unwrap();
    let request = &server.requests()[0];
    assert!(request.starts_with("post /v1/tokens/..%2fx%20y%3fz/revoke "), "{request}");
}

#[tokio::test]
async fn a_stream_is_read_event_by_event() {
    let body = ": hello\n\nevent: rollout\ndata: {\"a\":1}\n\nevent: rollout\ndata: {\"a\":2}\n\n";
    let stream = answer("200 OK", "content-type: text/event-stream\r\n", body);
    let server = Server::start(vec![stream]).await;
    let mut events = server.client().watch(&["groups", "web", "rollout", "watch"]).await.unwrap();
    let mut heard = Vec::new();
    while let Some(event) = events.next().await.unwrap() {
        heard.push(event.data);
    }
    assert_eq!(heard, ["{\"a\":1}", "{\"a\":2}"]);

    let server = Server::start(vec![answer("200 OK", "content-type: text/html\r\n", "<p>")]).await;
    let ended = server.client().watch(&["groups", "web", "rollout", "watch"]).await;
    assert!(matches!(ended, Err(ClientError::Foreign { .. })), "a page is no stream");
    let refusal = r#"{"error":{"code":"unauthenticated","message":"no token is given"}}"#;
    let server = Server::start(vec![answer("401 Unauthorized", "", refusal)]).await;
    let Err(error) = server.client().watch(&["groups", "web", "rollout", "watch"]).await else {
        panic!("it is refused");
    };
    assert!(error.hint().unwrap().contains("--token-file"));
    let endless = format!("data: {}\n\n", "x".repeat(20_000));
    let stream = answer("200 OK", "content-type: text/event-stream\r\n", &endless);
    let server = Server::start(vec![stream]).await;
    let mut events = server.client().watch(&["x"]).await.unwrap();
    assert!(matches!(events.next().await, Err(ClientError::Stream(_))));
}

#[tokio::test]
async fn who_speaks_tls_where_none_is_due_or_the_other_way_round_is_told() {
    // What a server that wants TLS says to a request without: an alert.
    let alert = Reply::Say(vec![21, 3, 3, 0, 2, 2, 22]);
    let server = Server::start(vec![alert]).await;
    let error = get(&server).await.unwrap_err();
    assert!(matches!(error, ClientError::OtherScheme { .. }), "{error:?}");
    assert_eq!(error.exit(), Exit::Config);
    let hint = error.hint().unwrap();
    assert!(hint.contains(&server.address.as_str().replace("http:", "https:")), "{hint}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let work = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        drop(socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
        let mut piece = [0; 4096];
        drop(socket.read(&mut piece).await);
    });
    let plain = client(format!("https://127.0.0.1:{port}").parse().unwrap());
    let error = plain.get::<GroupView>(&["groups", "web"], &[]).await.unwrap_err();
    work.abort();
    assert!(matches!(error, ClientError::OtherScheme { .. }), "{error:?}");
    let hint = error.hint().unwrap();
    assert!(hint.contains(&format!("http://127.0.0.1:{port}")), "{hint}");
}

#[tokio::test]
async fn of_what_broke_off_only_a_change_may_have_been_carried_out() {
    let hang_up = || vec![Reply::HangUp, Reply::HangUp, Reply::HangUp];
    let server = Server::start(hang_up()).await;
    let error = get(&server).await.unwrap_err();
    assert!(matches!(error, ClientError::Broken { is_change: false, .. }), "{error:?}");
    assert!(!error.hint().unwrap().contains("carried out"), "it only read");
    let server = Server::start(hang_up()).await;
    let ended = server.client().change_only(Method::POST, &["tokens"], &()).await;
    assert!(ended.unwrap_err().hint().unwrap().contains("carried out"));
}

#[tokio::test]
async fn a_certificate_of_an_unknown_ca_is_not_trusted() {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    drop(rustls::crypto::ring::default_provider().install_default());
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let work = tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            if let Ok(mut socket) = acceptor.accept(socket).await {
                let mut piece = [0; 4096];
                drop(socket.read(&mut piece).await);
                let Reply::Say(bytes) = answer("200 OK", "", "7") else { unreachable!() };
                drop(socket.write_all(&bytes).await);
                drop(socket.shutdown().await);
            }
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let address: Url = format!("https://localhost:{port}").parse().unwrap();
    let mut ended = Vec::new();
    for certified in [&other, &own] {
        let ca_file = dir.path().join("ca.pem");
        fs::write(&ca_file, certified.cert.pem()).unwrap();
        let connection = Connection {
            address: address.clone(),
            socket: None,
            ca_file: Some(ca_file),
            token: None,
        };
        let client = Client::new(&connection, limits()).unwrap();
        ended.push(client.get::<u32>(&["x"], &[]).await);
    }
    let error = ended[0].as_ref().unwrap_err();
    assert!(matches!(error, ClientError::Untrusted { .. }), "{error:?}");
    assert_eq!(error.exit(), Exit::Config);
    assert!(error.hint().unwrap().contains("--ca-file"));
    assert_eq!(*ended[1].as_ref().unwrap(), 7, "its own CA is trusted");
    work.abort();

    fs::write(dir.path().join("ca.pem"), "no certificate").unwrap();
    let ca_file = Some(dir.path().join("ca.pem"));
    let empty = Client::new(&Connection { address, socket: None, ca_file, token: None }, limits());
    assert!(matches!(empty, Err(ClientError::Certificates { .. })));
}
