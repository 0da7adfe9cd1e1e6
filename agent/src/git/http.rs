//! The smart protocol over reqwest: one GET for the refs, one POST for each round after it.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};

use super::Secret;
use super::transport::{Context, Meter, TransportError};

/// How many redirects are followed; git's own default is 20, a moved repository needs one.
const REDIRECTS_MAX: usize = 3;

/// How a repository is reached by http.
#[derive(Debug)]
pub(super) struct HttpAccess {
    /// Its configured address.
    pub(super) url: Url,
    /// Sent to that address's host only.
    pub(super) token: Option<Secret>,
    /// The client, with its certificates and deadlines.
    pub(super) client: Client,
}

/// Says that a request could not be answered.
fn unreachable(url: String, source: reqwest::Error) -> TransportError {
    TransportError::Unreachable { url, source: source.without_url() }
}

/// What the requests of one fetch work with.
struct Visit {
    context: Arc<Context>,
    access: Arc<HttpAccess>,
    /// Where the repository is, after redirects.
    base: Mutex<Url>,
}

impl Visit {
    /// Adds the credential where the request goes to the configured host.
    fn authorised(&self, request: RequestBuilder, url: &Url) -> RequestBuilder {
        match &self.access.token {
            Some(token) if same_host(url, &self.access.url) => {
                request.basic_auth(&token.user, Some(&token.password))
            }
            _ => request,
        }
    }

    /// Asks for the refs, and follows where the repository has moved.
    fn refs(&self) -> Result<Response, TransportError> {
        let mut url = at(&self.access.url, "info/refs");
        for _ in 0..=REDIRECTS_MAX {
            let mut request = url.clone();
            request.set_query(Some("service=git-upload-pack"));
            let request = self.authorised(self.access.client.get(request), &url);
            let answer = self.context.wait(url.as_str(), request.send(), unreachable)?;
            if !answer.status().is_redirection() {
                let base = url.path().trim_end_matches("/info/refs").to_owned();
                let mut moved = url.clone();
                moved.set_path(&base);
                *self.base.lock().unwrap_or_else(PoisonError::into_inner) = moved;
                return checked(answer, &url);
            }
            url = moved(&answer, &url)?;
        }
        let reason = "there are too many redirects";
        Err(TransportError::Redirect { url: url.to_string(), reason })
    }

    fn pack(&self, body: Vec<u8>) -> Result<Response, TransportError> {
        let base = self.base.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let url = at(&base, "git-upload-pack");
        let request = self
            .access
            .client
            .post(url.clone())
            .header("content-type", "application/x-git-upload-pack-request")
            .header("accept", "application/x-git-upload-pack-result")
            .body(body);
        let answer =
            self.context.wait(url.as_str(), self.authorised(request, &url).send(), unreachable)?;
        checked(answer, &url)
    }
}

fn at(base: &Url, name: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{name}", base.path().trim_end_matches('/')));
    url
}

fn same_host(one: &Url, other: &Url) -> bool {
    let place = |url: &Url| {
        let host = url.host_str().unwrap_or_default().to_owned();
        (url.scheme().to_owned(), host, url.port_or_known_default())
    };
    place(one) == place(other)
}

fn checked(answer: Response, url: &Url) -> Result<Response, TransportError> {
    let status = answer.status();
    if status == StatusCode::OK {
        return Ok(answer);
    }
    Err(TransportError::Status { url: url.to_string(), status })
}

/// Returns where a redirect of the refs leads, if it may be followed.
fn moved(answer: &Response, from: &Url) -> Result<Url, TransportError> {
    let refuse = |reason| Err(TransportError::Redirect { url: from.to_string(), reason });
    let to = answer.headers().get("location").and_then(|value| value.to_str().ok());
    let Some(mut to) = to.and_then(|to| from.join(to).ok()) else {
        return refuse("it does not say where to");
    };
    to.set_query(None);
    if from.scheme() == "https" && to.scheme() != "https" {
        return refuse("it leads from https to plain http");
    }
    if !matches!(to.scheme(), "https" | "http") || !to.path().ends_with("/info/refs") {
        return refuse("it leads to no git repository");
    }
    if !to.username().is_empty() || to.password().is_some() {
        return refuse("it holds a user or a password");
    }
    Ok(to)
}

/// The transport of one fetch.
pub(super) struct Http {
    visit: Arc<Visit>,
}

impl Http {
    pub(super) fn new(context: Arc<Context>, access: Arc<HttpAccess>) -> Self {
        let base = Mutex::new(access.url.clone());
        Self { visit: Arc::new(Visit { context, access, base }) }
    }
}

impl SmartSubtransport for Http {
    fn action(
        &self,
        _url: &str,
        service: Service,
    ) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        if !matches!(service, Service::UploadPackLs | Service::UploadPack) {
            return Err(git2::Error::from_str("an agent never pushes"));
        }
        let is_refs = matches!(service, Service::UploadPackLs);
        Ok(Box::new(Exchange {
            visit: Arc::clone(&self.visit),
            is_refs,
            body: Vec::new(),
            answer: None,
            chunk: Vec::new(),
            read: 0,
            meter: Meter::new(is_refs),
        }))
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// One request and its answer.
struct Exchange {
    visit: Arc<Visit>,
    is_refs: bool,
    body: Vec<u8>,
    answer: Option<Response>,
    chunk: Vec<u8>,
    read: usize,
    meter: Meter,
}

impl Exchange {
    fn fill(&mut self) -> Result<bool, TransportError> {
        let answer = match &mut self.answer {
            Some(answer) => answer,
            None => {
                let answer = if self.is_refs {
                    self.visit.refs()?
                } else {
                    self.visit.pack(std::mem::take(&mut self.body))?
                };
                self.answer.insert(answer)
            }
        };
        let url = answer.url().clone();
        let context = &self.visit.context;
        let chunk = context.wait(url.as_str(), answer.chunk(), unreachable)?;
        let Some(chunk) = chunk else { return Ok(false) };
        self.chunk = chunk.to_vec();
        self.read = 0;
        self.meter.came(context, url.as_str(), &self.chunk).map_err(|error| match error {
            TransportError::Refused { said } => {
                let said = discreet(said, self.visit.access.token.as_ref());
                TransportError::Refused { said }
            }
            other => other,
        })?;
        Ok(true)
    }
}

/// Leaves out words that hold the credential: a server may repeat what it was sent.
fn discreet(said: String, token: Option<&Secret>) -> String {
    let holds = |token: &Secret| {
        said.contains(&token.password) || said.to_ascii_lowercase().contains("basic ")
    };
    if token.is_some_and(holds) {
        return "something that repeats the credential, and is not shown".to_owned();
    }
    said
}

impl Read for Exchange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read >= self.chunk.len() {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => return Err(self.visit.context.keep(error)),
            }
        }
        let length = buffer.len().min(self.chunk.len() - self.read);
        buffer[..length].copy_from_slice(&self.chunk[self.read..self.read + length]);
        self.read += length;
        Ok(length)
    }
}

impl Write for Exchange {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.body.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_repeats_the_credential_is_not_quoted() {
        let token = Secret { user: "bot".to_owned(), password: "s3cret".to_owned() };
        for said in ["you sent s3cret", "you sent Basic Ym90OnMzY3JldA=="] {
            assert!(!discreet(said.to_owned(), Some(&token)).contains(said), "{said}");
        }
        assert_eq!(discreet("not our ref".to_owned(), Some(&token)), "not our ref");
    }

    #[test]
    fn a_host_is_the_same_with_its_port_and_scheme_only() {
        let url = |text: &str| Url::parse(text).unwrap();
        let own = url("https://git.example/a.git");
        assert!(same_host(&own, &url("https://git.example:443/b.git")));
        for other in ["http://git.example/", "https://git.example:8443/", "https://example/"] {
            assert!(!same_host(&own, &url(other)), "{other}");
        }
    }
}
