//! What a service shows of itself to a monitoring system: its metrics and its health, over plain HTTP.
//!
//! It has an address of its own, apart from where the fleet speaks: whoever scrapes needs no certificate, and finds no
//! way from here to anything but two pages. They show names, sizes and times, never what is in a log. What changes by
//! itself (who is connected, how old the newest point is) is looked up when a page is asked for, so that a page is never
//! older than the question.

mod certificate;
mod server;

#[cfg(any(test, feature = "test-util"))]
pub mod test_util;
#[cfg(test)]
mod tests;

use prometheus_client::registry::{Metric, Registry};

pub use certificate::CertificateEnd;
pub use server::{ListenError, Listener, listen};

/// A service that can be looked at.
pub trait Exposed: Send + Sync + 'static {
    /// Its metrics as they are now, in the text format of Prometheus. Not called twice at the same time.
    fn metrics(&self) -> String;

    /// How it is.
    fn health(&self) -> Health;
}

/// How a service is.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// Whether it does what it is there for; the page's status code says so.
    pub is_serving: bool,
    /// The page: an object with at least `status`.
    pub body: serde_json::Value,
}

/// Registers a metric and returns it.
pub fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// The metrics of a registry in the text format of Prometheus, version 0.0.4.
pub fn encode(registry: &Registry) -> String {
    let mut text = String::new();
    prometheus_client::encoding::prometheus_text::encode(&mut text, registry).expect("a string takes all text");
    text
}
