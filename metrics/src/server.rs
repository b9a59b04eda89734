//! The two pages, `/metrics` and `/health`.
//!
//! A connection answers one request and has a few seconds for it, and there are few at a time: a scraper that hangs, or
//! anybody who can reach the address, costs a service that has other things to do next to nothing.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::prometheus_text;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::{Exposed, Health};

/// From accepting a connection to the last byte of its answer.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(10);

/// Connections at a time; further ones wait in the kernel's queue. One or two monitoring systems scrape.
const CONNECTIONS_MAX: usize = 16;

/// Largest head of a request.
const HEAD_LEN_MAX: usize = 16 << 10;

/// Pause when the process is out of file descriptors or memory for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The address for metrics cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("listen on {addr} for metrics: {source}")]
pub struct ListenError {
    /// Which.
    addr: SocketAddr,
    /// Why.
    source: io::Error,
}

/// Binds `addr`; port 0 is any that is free.
pub async fn listen(addr: SocketAddr) -> Result<Listener, ListenError> {
    let failed = |source| ListenError { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let local_addr = listener.local_addr().map_err(failed)?;
    Ok(Listener { listener, local_addr })
}

/// A bound address.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    local_addr: SocketAddr,
}

impl Listener {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Answers until the future is dropped, which ends all connections.
    pub async fn serve(self, exposed: Arc<dyn Exposed>) -> Infallible {
        let pages = Arc::new(Pages { exposed, asking: Mutex::new(()) });
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(timeout(CONNECTION_DEADLINE, answer(stream, pages.clone())));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept a connection for metrics");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn answer(stream: TcpStream, pages: Arc<Pages>) {
    let service = service_fn(move |request: Request<_>| {
        let response = pages.answer(request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = http1::Builder::new();
    let connection = http.keep_alive(false).max_buf_size(HEAD_LEN_MAX).serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection for metrics broke");
    }
}

struct Pages {
    exposed: Arc<dyn Exposed>,
    /// Metrics are brought up to date and written by one at a time.
    asking: Mutex<()>,
}

impl Pages {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            let mut response = page(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n".to_owned());
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/metrics" => {
                let _alone = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
                page(StatusCode::OK, prometheus_text::CONTENT_TYPE, self.exposed.metrics())
            }
            "/health" => {
                let Health { is_serving, body } = self.exposed.health();
                let code = if is_serving { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                page(code, "application/json", format!("{body}\n"))
            }
            _ => page(StatusCode::NOT_FOUND, "text/plain", "there are /metrics and /health\n".to_owned()),
        }
    }
}

fn page(code: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
