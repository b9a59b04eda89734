//! A served registry, asked over loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde_json::json;

use crate::test_util::{Shape, ask, exposed, get};
use crate::{CertificateEnd, Exposed, Health, encode, listen};

mod deploy;

/// Counts how often it was asked.
struct Asked {
    registry: Registry,
    asked: Counter,
    certificate: CertificateEnd,
    is_serving: AtomicBool,
}

impl Asked {
    fn new() -> Self {
        let (mut registry, asked) = (Registry::default(), Counter::default());
        registry.register("segvault_asked", "How often it was asked", asked.clone());
        let certificate = CertificateEnd::register(&mut registry);
        Self { registry, asked, certificate, is_serving: AtomicBool::new(true) }
    }
}

impl Exposed for Asked {
    fn metrics(&self) -> String {
        self.asked.inc();
        encode(&self.registry)
    }

    fn health(&self) -> Health {
        let is_serving = self.is_serving.load(Ordering::Relaxed);
        Health { is_serving, body: json!({ "status": if is_serving { "serving" } else { "stopping" } }) }
    }
}

async fn served() -> (SocketAddr, Arc<Asked>) {
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (addr, asked) = (listener.local_addr(), Arc::new(Asked::new()));
    tokio::spawn(listener.serve(asked.clone()));
    (addr, asked)
}

/// Asks from a thread that may block.
async fn on_thread<T: Send + 'static>(ask: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> T {
    tokio::task::spawn_blocking(ask).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_scrape_is_as_new_as_the_question() {
    let (addr, asked) = served().await;
    for times in 1..=3 {
        let (code, content_type, page) = on_thread(move || get(addr, "/metrics")).await;
        assert_eq!((code, content_type.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
        assert!(page.contains(&format!("\nsegvault_asked_total {times}\n")), "{page}");
    }
    assert_eq!(asked.asked.get(), 3);
}

#[tokio::test]
async fn the_certificate_is_shown_while_there_is_one() {
    let (addr, asked) = served().await;
    let name = "segvault_tls_certificate_not_after_timestamp_seconds";
    let (_, _, page) = on_thread(move || get(addr, "/metrics")).await;
    assert!(!page.contains(name), "{page}");
    asked.certificate.set(Some(1_800_000_000));
    let (_, _, page) = on_thread(move || get(addr, "/metrics")).await;
    assert!(page.contains(&format!("\n{name} 1800000000\n")), "{page}");
    let shape = Shape { kind: "gauge".to_owned(), unit: "seconds".to_owned(), ..Shape::default() };
    assert_eq!(exposed(&page)[name], shape);
    asked.certificate.set(None);
    let (_, _, page) = on_thread(move || get(addr, "/metrics")).await;
    assert!(!page.contains(name), "{page}");
}

#[tokio::test]
async fn health_is_in_the_code_and_in_the_body() {
    let (addr, asked) = served().await;
    let json = "application/json".to_owned();
    let page = on_thread(move || get(addr, "/health")).await;
    assert_eq!(page, (200, json.clone(), "{\"status\":\"serving\"}\n".to_owned()));
    asked.is_serving.store(false, Ordering::Relaxed);
    let page = on_thread(move || get(addr, "/health")).await;
    assert_eq!(page, (503, json, "{\"status\":\"stopping\"}\n".to_owned()));
}

#[tokio::test]
async fn other_questions_are_refused() {
    let (addr, asked) = served().await;
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", 404),
        ("GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        ("POST /metrics HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi", 405),
        ("nonsense\r\n\r\n", 400),
    ];
    for (request, expected) in cases {
        let (code, _, _) = on_thread(move || ask(addr, request)).await;
        assert_eq!(code, expected, "{request}");
    }
    let too_long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(64 << 10));
    let answer = tokio::task::spawn_blocking(move || ask(addr, &too_long)).await.unwrap();
    assert!(answer.is_err() || answer.is_ok_and(|(code, _, _)| code == 431));
    assert_eq!(asked.asked.get(), 0);
    let (code, _, _) = on_thread(move || get(addr, "/health")).await;
    assert_eq!(code, 200, "it goes on");
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let (addr, _asked) = served().await;
    let error = listen(addr).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("listen on {addr} for metrics: ")), "{error}");
}
