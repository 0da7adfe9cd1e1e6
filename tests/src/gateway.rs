//! The way to npm's registry, which can be closed: a proxy on loopback that tunnels and counts.
//!
//! npm asks for a tunnel by `CONNECT` and encrypts what goes through it, so nothing is read or altered
//! here. A registry over plain http is not asked this way, and cannot be taken away by it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

/// A request for a tunnel is a few hundred bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A proxy that runs until it is dropped.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    open: watch::Sender<bool>,
    tunnels: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Starts a proxy; `upstream` is another one to go through, as `host:port`.
    #[must_use]
    pub fn start(upstream: Option<String>) -> Self {
        let (open, is_open) = watch::channel(true);
        let (stop, stopped) = oneshot::channel();
        let (send, receive) = std::sync::mpsc::channel();
        let tunnels = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&tunnels);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("the kernel grants an epoll descriptor").block_on(async move {
                let listener =
                    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
                send.send(listener.local_addr().expect("it is bound")).expect("it is waited for");
                tokio::select! {
                    () = accept(listener, upstream, is_open, count) => {}
                    _ = stopped => {}
                }
            });
        });
        let address = receive.recv().expect("the thread has just begun");
        Self { address, open, tunnels, stop: Some(stop), thread: Some(thread) }
    }

    /// What a program that is to use it finds in its environment.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        let url = format!("http://{}", self.address);
        vec![("HTTPS_PROXY".to_owned(), url.clone()), ("https_proxy".to_owned(), url)]
    }

    /// Ends all tunnels and refuses new ones, or lets them through again.
    pub fn set_open(&self, is_open: bool) {
        self.open.send_replace(is_open);
    }

    /// How many tunnels were made so far.
    #[must_use]
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed, and a second one here would hide the first.
            drop(thread.join());
        }
    }
}

async fn accept(
    listener: TcpListener,
    upstream: Option<String>,
    open: watch::Receiver<bool>,
    count: Arc<AtomicUsize>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let (upstream, mut open, count) = (upstream.clone(), open.clone(), Arc::clone(&count));
        tokio::spawn(async move {
            tokio::select! {
                // Whichever side ends a tunnel, the other one sees its end.
                end = tunnel(client, upstream, &count) => drop(end),
                _ = open.wait_for(|is_open| !is_open) => {}
            }
        });
    }
}

async fn tunnel(
    mut client: TcpStream,
    upstream: Option<String>,
    count: &AtomicUsize,
) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES_MAX || client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head);
    let mut words = text.split_ascii_whitespace();
    let (Some("CONNECT"), Some(place)) = (words.next(), words.next()) else {
        return client.write_all(b"HTTP/1.1 405 Tunnels only\r\n\r\n").await;
    };
    let Ok(mut server) = TcpStream::connect(upstream.as_deref().unwrap_or(place)).await else {
        return client.write_all(b"HTTP/1.1 502 Cannot connect\r\n\r\n").await;
    };
    count.fetch_add(1, Ordering::Relaxed);
    match upstream {
        // It answers for itself.
        Some(_) => server.write_all(&head).await?,
        None => client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await?,
    }
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
