//! Our own daemon: does it answer containerd, and does it answer people?

use std::time::Duration;

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::Check;
use crate::config::Config;
use crate::control;

const PATIENCE: Duration = Duration::from_secs(10);
/// The service that has to be well.
const SERVICE: &str = "containerd.services.snapshots.v1.Snapshots";

/// Asks both sockets.
pub async fn examine(config: &Config) -> Vec<Check> {
    let address = config.address.display();
    let advice = "systemctl status cvmfs-snapshotter, or start `cvmfs-snapshotter serve`";
    let health = match tokio::time::timeout(PATIENCE, health(config)).await {
        Ok(Ok(true)) => Check::ok("daemon", format!("answers on {address}")),
        Ok(Ok(false)) => Check::fail("daemon", format!("is not well on {address}"), advice),
        Ok(Err(error)) => {
            Check::fail("daemon", format!("does not answer on {address}: {}", error.root_cause()), advice)
        }
        Err(_) => {
            Check::fail("daemon", format!("does not answer on {address} within {} s", PATIENCE.as_secs()), advice)
        }
    };
    let control = config.control();
    let status = match control::ask_status(&control).await {
        Ok(status) if status.version == env!("CARGO_PKG_VERSION") => {
            Check::ok("control socket", format!("answers on {}", control.display()))
        }
        Ok(status) => Check::warn(
            "control socket",
            format!("the daemon is of version {}, this program of {}", status.version, env!("CARGO_PKG_VERSION")),
            "systemctl restart cvmfs-snapshotter; containers go on",
        ),
        Err(error) => Check::fail("control socket", error.to_string(), advice),
    };
    vec![health, status]
}

async fn health(config: &Config) -> anyhow::Result<bool> {
    let channel = containerd_client::connect(&config.address).await?;
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let answer = HealthClient::new(channel).check(request).await.map_err(crate::containerd::said)?;
    Ok(answer.into_inner().status() == ServingStatus::Serving)
}
