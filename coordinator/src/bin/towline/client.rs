//! The coordinator's API from the outside: one request, one answer; and the stream of a rollout.
//!
//! ```text
//!   get, change ──► attempt ──► judge ──┬─► the answer
//!                     ▲                 ├─► Refused: the one error shape
//!                     └── not reached ◄─┴─► anything else, by name
//!   watch ────────► events, until the stream ends
//! ```
//!
//! Invariants
//! - A change carries one idempotency key through all of its attempts: it has one effect.
//! - Redirects are not followed: a token goes where it was sent, and nowhere else.
//! - Nothing is read without a limit, and nothing waits without one.

use std::fs;
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Certificate, Method, RequestBuilder, Response, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;
use towline_protocol::api::{IDEMPOTENCY_HEADER, Page, Refusal};
use url::Url;

use crate::client::error::{Cause, ClientError};
use crate::client::sse::{Event, Parser};
use crate::config::Connection;

pub(crate) mod error;
pub(crate) mod sse;

/// The most pages of one list that are asked for.
const PAGES_MAX: usize = 200;

/// How long things may take, and how large they may be.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Until there is a connection.
    pub(crate) connect: Duration,
    /// For one attempt as a whole: a release may wait for the mirror.
    pub(crate) total: Duration,
    /// Between two pieces of a stream; a coordinator says something every 15 s or so.
    pub(crate) idle: Duration,
    /// How long to wait before each further attempt.
    pub(crate) waits: Vec<Duration>,
    /// How long to wait before a stream that broke is asked for again: at first, and at most.
    pub(crate) stream_waits: (Duration, Duration),
    /// The largest answer, in bytes.
    pub(crate) body_bytes_max: usize,
    /// The largest event of a stream, in bytes.
    pub(crate) event_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            total: Duration::from_secs(90),
            idle: Duration::from_secs(75),
            // Long enough for a coordinator that is started again.
            waits: [200, 600, 1_500].map(Duration::from_millis).to_vec(),
            stream_waits: (Duration::from_millis(300), Duration::from_secs(10)),
            body_bytes_max: 16 << 20,
            event_bytes_max: 4 << 20,
        }
    }
}

/// A client of one coordinator.
pub(crate) struct Client {
    http: reqwest::Client,
    /// As it was named, for messages.
    address: Url,
    /// What requests are made of; a socket has no name, and any will do.
    base: Url,
    authorization: Option<HeaderValue>,
    limits: Limits,
}

impl Client {
    /// Makes a client; nothing is sent yet.
    pub(crate) fn new(connection: &Connection, limits: Limits) -> Result<Self, ClientError> {
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("towline/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            // The environment's proxies are for the web, not for the fleet's own network.
            .no_proxy()
            .connect_timeout(limits.connect);
        if let Some(path) = &connection.ca_file {
            let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
                ClientError::Certificates { path: path.clone(), source }
            };
            let pem = fs::read(path).map_err(|error| failed(error.into()))?;
            let certificates =
                Certificate::from_pem_bundle(&pem).map_err(|error| failed(error.into()))?;
            if certificates.is_empty() {
                return Err(failed("it holds no certificate".into()));
            }
            http = http.tls_certs_only(certificates);
        }
        let base = match &connection.socket {
            Some(path) => {
                http = http.unix_socket(path.as_path());
                Url::parse("http://localhost").expect("it is an address")
            }
            None => connection.address.clone(),
        };
        let authorization = connection.token.as_ref().map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.secret()))
                .expect("a token is visible ASCII");
            value.set_sensitive(true);
            value
        });
        Ok(Self {
            http: http.build().map_err(|error| ClientError::SetUp(Cause(error)))?,
            address: connection.address.clone(),
            base,
            authorization,
            limits,
        })
    }

    /// Returns how long to wait before a stream that broke is asked for again: at first, and at most.
    pub(crate) fn stream_waits(&self) -> (Duration, Duration) {
        self.limits.stream_waits
    }

    /// Reads something.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, ClientError> {
        let body = self.send(&Method::GET, &self.url(path, query), None).await?;
        parse(&body)
    }

    /// Reads all pages of a list.
    pub(crate) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Vec<T>, ClientError> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        for _ in 0..PAGES_MAX {
            let mut query = query.to_vec();
            query.extend(after.as_deref().map(|after| ("after", after)));
            let page: Page<T> = self.get(path, &query).await?;
            items.extend(page.items);
            match page.next {
                Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                _ => return Ok(items),
            }
        }
        Err(ClientError::TooMany { items: items.len() })
    }

    /// Changes something, and returns the answer.
    pub(crate) async fn change<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: &B,
    ) -> Result<T, ClientError> {
        parse(&self.change_only(method, path, body).await?)
    }

    /// Changes something whose answer says nothing more than that it is done.
    pub(crate) async fn change_only<B: Serialize>(
        &self,
        method: Method,
        path: &[&str],
        body: &B,
    ) -> Result<Vec<u8>, ClientError> {
        let body = serde_json::to_vec(body).map_err(ClientError::Request)?;
        self.send(&method, &self.url(path, &[]), Some(body)).await
    }

    /// Removes something.
    pub(crate) async fn delete(&self, path: &[&str]) -> Result<(), ClientError> {
        self.send(&Method::DELETE, &self.url(path, &[]), None).await.map(drop)
    }

    /// Begins to follow a stream of events.
    pub(crate) async fn watch(&self, path: &[&str]) -> Result<Events, ClientError> {
        let url = self.url(path, &[]);
        let request = self.http.get(url.clone()).header(ACCEPT, "text/event-stream");
        let answer = tokio::time::timeout(self.limits.idle, self.authorized(request).send());
        let answer = match answer.await {
            Ok(answer) => answer.map_err(|error| self.not_sent(error, false))?,
            Err(_) => {
                let address = self.address.clone();
                return Err(ClientError::TimedOut { address, is_change: false });
            }
        };
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let is_stream = kind.is_some_and(|kind| kind.starts_with("text/event-stream"));
        if answer.status().is_success() && is_stream {
            let parser = Parser::new(self.limits.event_bytes_max);
            let address = self.address.clone();
            return Ok(Events { answer, parser, idle: self.limits.idle, address });
        }
        let status = answer.status().as_u16();
        let body = self.judge(answer, false).await?;
        Err(ClientError::foreign(status, &body))
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .expect("an http address has a path")
            .pop_if_empty()
            .push("v1")
            .extend(path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value.clone()),
            None => request,
        }
    }

    /// Sends a request, again where the coordinator was not reached or the connection broke.
    async fn send(
        &self,
        method: &Method,
        url: &Url,
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, ClientError> {
        let key = if *method == Method::GET { None } else { Some(idempotency_key()?) };
        let mut waits = self.limits.waits.iter();
        loop {
            let ended = self.attempt(method, url, body.as_deref(), key.as_deref()).await;
            match ended {
                Err(error) if error.is_passing() => match waits.next() {
                    Some(wait) => tokio::time::sleep(jittered(*wait)).await,
                    None => return Err(error),
                },
                ended => return ended,
            }
        }
    }

    async fn attempt(
        &self,
        method: &Method,
        url: &Url,
        body: Option<&[u8]>,
        key: Option<&str>,
    ) -> Result<Vec<u8>, ClientError> {
        let request = self.http.request(method.clone(), url.clone()).timeout(self.limits.total);
        let mut request = self.authorized(request).header(ACCEPT, "application/json");
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_HEADER, key);
        }
        if let Some(body) = body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_vec());
        }
        let is_change = key.is_some();
        let answer = request.send().await.map_err(|error| self.not_sent(error, is_change))?;
        self.judge(answer, is_change).await
    }

    fn not_sent(&self, error: reqwest::Error, is_change: bool) -> ClientError {
        ClientError::of_request(error, &self.address, is_change)
    }

    /// Reads an answer, and says what it is.
    async fn judge(&self, mut answer: Response, is_change: bool) -> Result<Vec<u8>, ClientError> {
        let status = answer.status();
        if status.is_redirection() {
            let location = answer.headers().get(LOCATION);
            let location = location.and_then(|value| value.to_str().ok()).unwrap_or("nowhere");
            let location = location.chars().take(200).collect();
            return Err(ClientError::Redirected { address: self.address.clone(), location });
        }
        let mut body = Vec::new();
        while let Some(piece) =
            answer.chunk().await.map_err(|error| self.not_sent(error, is_change))?
        {
            if body.len() + piece.len() > self.limits.body_bytes_max {
                return Err(ClientError::TooLarge { bytes_max: self.limits.body_bytes_max });
            }
            body.extend_from_slice(&piece);
        }
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) => Err(ClientError::Refused(Box::new(refusal.error))),
            Err(_) => Err(ClientError::foreign(status.as_u16(), &body)),
        }
    }
}

/// The events of a stream, as they come.
pub(crate) struct Events {
    answer: Response,
    parser: Parser,
    idle: Duration,
    address: Url,
}

impl Events {
    /// Waits for the next event; `None` when the stream has ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(event) = self.parser.next() {
                return Ok(Some(event));
            }
            let piece = tokio::time::timeout(self.idle, self.answer.chunk()).await;
            let piece = piece
                .map_err(|_| ClientError::TimedOut {
                    address: self.address.clone(),
                    is_change: false,
                })?
                .map_err(|error| ClientError::of_request(error, &self.address, false))?;
            match piece {
                Some(piece) => self.parser.feed(&piece).map_err(ClientError::Stream)?,
                None => return Ok(None),
            }
        }
    }
}

/// Reads an answer's JSON.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(ClientError::Malformed)
}

fn idempotency_key() -> Result<String, ClientError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| ClientError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns a wait between half of it and all of it, so that many clients do not come at once.
pub(crate) fn jittered(wait: Duration) -> Duration {
    let mut byte = [u8::MAX];
    // Without randomness the wait is a little longer; that is all.
    if getrandom::fill(&mut byte).is_err() {
        return wait;
    }
    wait.mul_f64(0.5 + f64::from(byte[0]) / 510.0)
}

#[cfg(test)]
pub(crate) mod tests;
