//! A server of one request a connection, whose answers the test writes.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// A request that waits for its answer.
pub(super) struct Request {
    pub(super) name: String,
    pub(super) bearer: Option<String>,
    pub(super) body: Value,
    answer: oneshot::Sender<Vec<u8>>,
}

impl Request {
    pub(super) fn answer(self, status: &str, body: &str) {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}");
        let text = format!("{head}\r\n\r\n{body}");
        self.raw(text.as_bytes());
    }

    pub(super) fn json(self, body: &Value) {
        self.answer("200 OK", &body.to_string());
    }

    pub(super) fn nothing(self) {
        self.answer("204 No Content", "");
    }

    /// Sends these bytes, and lets go of the connection.
    pub(super) fn raw(self, bytes: &[u8]) {
        drop(self.answer.send(bytes.to_vec()));
    }

    pub(super) fn number(&self) -> u64 {
        self.body["seq"].as_u64().unwrap()
    }
}

/// A server on a port of its own.
pub(super) struct Server {
    pub(super) address: String,
    pub(super) requests: mpsc::UnboundedReceiver<Request>,
}

impl Server {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (sender, requests) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, sender.clone()));
            }
        });
        Self { address, requests }
    }

    /// The next request, which must be of this name.
    pub(super) async fn next(&mut self, name: &str) -> Request {
        let request = self.requests.recv().await.unwrap();
        assert_eq!(request.name, name, "{}", request.body);
        request
    }

    /// The next request of this name; what comes before it gets no news.
    pub(super) async fn await_next(&mut self, name: &str) -> Request {
        loop {
            let request = self.requests.recv().await.unwrap();
            if request.name == name {
                return request;
            }
            request.nothing();
        }
    }
}

/// Serves one request a connection.
async fn serve(mut stream: TcpStream, sender: mpsc::UnboundedSender<Request>) -> Option<()> {
    let mut bytes = Vec::new();
    let (head, mut body) = loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            break (String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end + 4..].to_vec());
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let field = |name: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let length = field("content-length").unwrap().parse::<usize>().unwrap();
    while body.len() < length {
        stream.read_buf(&mut body).await.ok()?;
    }
    let path = head.split(' ').nth(1).unwrap();
    let name = path.strip_prefix("/v1/agent/").expect(path).to_owned();
    let bearer =
        field("authorization").map(|value| value.strip_prefix("Bearer ").unwrap().to_owned());
    let (answer, answered) = oneshot::channel();
    let body = serde_json::from_slice(&body).unwrap();
    sender.send(Request { name, bearer, body, answer }).ok()?;
    stream.write_all(&answered.await.ok()?).await.ok()?;
    // An answer without an end keeps its connection.
    stream.read_buf(&mut bytes).await.ok().map(drop)
}
