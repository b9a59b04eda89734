//! What systemd wants to know of a service. Without systemd nothing is said.

use std::time::Duration;

use sd_notify::NotifyState;

/// The service can do its work.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// It is about to end.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    notify(&[NotifyState::Status(text)]);
}

/// Says again and again that the service lives, as often as systemd wants to hear it; never ends.
pub async fn watchdog() {
    let Some(every) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval((every / 2).max(Duration::from_millis(10)));
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "sd_notify");
    }
}
