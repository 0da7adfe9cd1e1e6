//! Requests as no client of ours would send them, over TCP and TLS; and the certificates for that.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// How long an answer may take: longer than the coordinator waits for a body.
const PATIENCE: Duration = Duration::from_secs(45);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its status; 0: there was none.
    pub status: u16,
    /// The lines before its body.
    pub head: String,
    /// Its body.
    pub body: String,
}

impl Reply {
    fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// Its body as JSON; null where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// The code of a refusal; empty where it is none.
    #[must_use]
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// The field that a refusal blames; empty where it blames none.
    #[must_use]
    pub fn field(&self) -> String {
        self.json()["error"]["field"].as_str().unwrap_or_default().to_owned()
    }
}

/// Writes a request whose connection ends with its answer. `headers`: whole lines.
#[must_use]
pub fn request(method: &str, path: &str, headers: &[String], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for line in headers {
        head.push_str(line);
        head.push_str("\r\n");
    }
    if !body.is_empty() {
        head.push_str("content-type: application/json\r\n");
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    [head.as_bytes(), body].concat()
}

/// Sends bytes, and reads the answer to its end. `ca_file`: over TLS, trusting these.
///
/// # Panics
///
/// Where nobody listens.
#[must_use]
pub fn send(port: u16, ca_file: Option<&Path>, bytes: &[u8]) -> Reply {
    let stream = connect(port);
    match ca_file {
        None => exchange(stream, bytes),
        Some(ca_file) => {
            let mut roots = RootCertStore::empty();
            let read = CertificateDer::pem_file_iter(ca_file).expect("it is PEM");
            roots.add_parsable_certificates(read.map(|read| read.expect("it is PEM")));
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("the provider has them")
                .with_root_certificates(roots)
                .with_no_client_auth();
            let name = ServerName::try_from("127.0.0.1").expect("it is an address");
            let tls = ClientConnection::new(Arc::new(config), name).expect("it is valid");
            exchange(StreamOwned::new(tls, stream), bytes)
        }
    }
}

/// Connects, with patience for whatever comes.
///
/// # Panics
///
/// Where nobody listens.
#[must_use]
pub fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
    stream
}

/// Reads what there is to the end of the connection, or until it breaks.
#[must_use]
pub fn read(mut stream: impl Read) -> Reply {
    let mut answer = Vec::new();
    // One who has refused a body may reset the connection behind the answer.
    stream.read_to_end(&mut answer).ok();
    Reply::of(&answer)
}

fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> Reply {
    // It may be refused before all of it was sent.
    stream.write_all(bytes).ok();
    stream.flush().ok();
    read(stream)
}

/// An authority that issues certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    /// Its own certificate, in PEM.
    pub file: PathBuf,
}

/// A certificate and its key, in PEM.
#[derive(Debug)]
pub struct Certificate {
    /// The certificate.
    pub file: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority whose files are in `dir`.
    #[must_use]
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("there are random bytes");
        let own = params.self_signed(&key).expect("it is its own");
        let file = dir.join(format!("{name}.pem"));
        fs::write(&file, own.pem()).expect("the directory is ours");
        Self { issuer: Issuer::new(params, key), dir: dir.to_owned(), file }
    }

    /// Issues a certificate for one host.
    #[must_use]
    pub fn issue(&self, host: &str) -> Certificate {
        let params = CertificateParams::new(vec![host.to_owned()]).expect("a valid name");
        let key = KeyPair::generate().expect("there are random bytes");
        let made = params.signed_by(&key, &self.issuer).expect("the authority signs");
        let name = self.file.file_stem().and_then(|name| name.to_str()).expect("it is text");
        let file = self.dir.join(format!("{name}-{host}.pem"));
        let certificate = Certificate { key: file.with_extension("key"), file };
        fs::write(&certificate.file, made.pem()).expect("the directory is ours");
        fs::write(&certificate.key, key.serialize_pem()).expect("the directory is ours");
        certificate
    }
}
