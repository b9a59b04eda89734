//! Until when a service's own certificate is valid.

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// A metric that may be absent is a family, also without labels.
type NoLabels = [(&'static str, &'static str); 0];

/// The metric `segvault_tls_certificate_not_after_timestamp_seconds`, the same in every role. Absent without TLS.
#[derive(Clone, Debug, Default)]
pub struct CertificateEnd(Family<NoLabels, Gauge>);

impl CertificateEnd {
    /// Registers the metric.
    pub fn register(registry: &mut Registry) -> Self {
        let end = Self::default();
        registry.register(
            "segvault_tls_certificate_not_after_timestamp_seconds",
            "When the certificate in use ends",
            end.0.clone(),
        );
        end
    }

    /// Says when it ends, seconds since 1970.
    pub fn set(&self, not_after: Option<i64>) {
        match not_after {
            Some(seconds) => _ = self.0.get_or_create(&[]).set(seconds),
            None => self.0.clear(),
        }
    }
}
