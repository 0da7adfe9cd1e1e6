//! Listens, over TCP with or without TLS and on a Unix socket, and hands each connection to the routes.
//!
//! Whoever comes by the Unix socket is root, or the coordinator's own user, and may do everything: that is
//! how the first token is made. Every connection has a place among so many; beyond that, new ones wait in
//! the backlog.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// How many connections may wait to be accepted: the kernel's own limit on this kind of host
/// (`somaxconn`). A default of 128 drops a fleet that reconnects.
const BACKLOG: i32 = 4096;

/// How long a TLS handshake may take, and the head of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long connections have to end by themselves when the coordinator stops.
const GOODBYE: Duration = Duration::from_secs(5);

/// How a connection came in; requests carry it as an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// By the Unix socket.
    Local,
    /// By TCP.
    Net,
}

/// Why it cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An address.
    #[error("could not listen on {address}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The socket.
    #[error("could not listen on {}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Binds an address.
///
/// # Errors
///
/// Where it is taken, or not this host's.
pub fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    listen().map_err(|source| ListenError::Address { address, source })
}

/// Binds the Unix socket, for root and the coordinator's own user alone.
///
/// # Errors
///
/// Where it cannot be made. Whoever calls has the store, so that no other coordinator listens there.
pub fn bind_socket(path: &Path) -> Result<UnixListener, ListenError> {
    let listen = || -> io::Result<UnixListener> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    listen().map_err(|source| ListenError::Socket { path: path.to_owned(), source })
}

/// Serves connections until told to stop; then lets those that there are end.
#[derive(Debug, Clone)]
pub struct Server {
    router: Router,
    places: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Returns a server of these routes, for so many connections at a time.
    #[must_use]
    pub fn new(router: Router, connections: usize, stop: CancellationToken) -> Self {
        Self {
            router,
            places: Arc::new(Semaphore::new(connections)),
            stop,
            tasks: TaskTracker::new(),
        }
    }

    /// Accepts connections over TCP, with TLS where there is a certificate.
    pub async fn serve(self, listener: TcpListener, tls: Option<TlsAcceptor>) {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    cannot_accept(&error).await;
                    continue;
                }
            };
            // A poll's answer is one small packet that must not wait for another one.
            stream.set_nodelay(true).ok();
            let (own, tls) = (self.clone(), tls.clone());
            self.tasks.spawn(async move {
                match tls {
                    None => own.talk(stream, Door::Net).await,
                    Some(tls) => match tokio::time::timeout(PATIENCE, tls.accept(stream)).await {
                        Ok(Ok(stream)) => own.talk(stream, Door::Net).await,
                        Ok(Err(error)) => debug!(%peer, %error, "no TLS came about"),
                        Err(_) => debug!(%peer, "a TLS handshake took too long"),
                    },
                }
                drop(place);
            });
        }
    }

    /// Accepts connections on the Unix socket.
    pub async fn serve_socket(self, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    let own = self.clone();
                    self.tasks.spawn(async move { own.talk(stream, Door::Local).await });
                }
                Err(error) => cannot_accept(&error).await,
            }
        }
    }

    async fn talk(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, door: Door) {
        let router = self.router.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut router = router.clone();
            async move {
                let mut request: Request = request.map(Body::new);
                request.extensions_mut().insert(door);
                let answer = tower_call(&mut router, request).await;
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            // What a parked poll holds: two kilobytes are more than a request's head takes.
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!(%error, "a connection ended");
                }
            }
            () = self.stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(GOODBYE, connection).await.ok();
            }
        }
    }

    /// Waits until all connections have ended, or their time is over.
    pub async fn ended(self) {
        self.tasks.close();
        tokio::time::timeout(GOODBYE * 2, self.tasks.wait()).await.ok();
    }
}

async fn tower_call(router: &mut Router, request: Request) -> axum::response::Response {
    use hyper::service::Service;
    let service = hyper_util::service::TowerToHyperService::new(router.clone());
    match service.call(request).await {
        Ok(answer) => answer,
        Err(never) => match never {},
    }
}

/// Out of descriptors, most likely: a moment later some may be free.
async fn cannot_accept(error: &io::Error) {
    warn!(%error, "could not accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}
