//! Into the engines of this machine, through their own sockets and commands.
//!
//! | engine | way |
//! |---|---|
//! | Docker | `POST /images/load` on its socket |
//! | containerd | `ctr images import -` |
//! | Podman | `podman load` |
//!
//! Whether the engine then runs the image is its own affair: Docker needs the graph driver or the snapshotter, containerd the
//! snapshotter. Podman has nothing of the kind and gets its images from an additional store, see [`crate::podman_store`].

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::text::printable;

/// Where Docker listens.
pub const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// An engine that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most of an engine's answer that is read, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// An engine and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// Docker
    Docker {
        /// its socket
        socket: PathBuf,
    },
    /// containerd
    Containerd {
        /// its socket; nothing: where `ctr` looks
        address: Option<PathBuf>,
        /// namespace of the image
        namespace: String,
        /// which one unpacks; nothing: that of the configuration
        snapshotter: Option<String>,
    },
    /// Podman
    Podman,
}

/// The socket of Docker: what the user says, else `DOCKER_HOST`, else the usual one.
pub fn docker_socket(given: Option<&Path>, docker_host: Option<&str>) -> anyhow::Result<PathBuf> {
    match (given, docker_host.filter(|host| !host.is_empty())) {
        (Some(socket), _) => Ok(socket.to_owned()),
        (None, Some(host)) => match host.strip_prefix("unix://") {
            Some(path) => Ok(path.into()),
            None => bail!("DOCKER_HOST is {host}; only unix:// sockets are supported, name one with --socket"),
        },
        (None, None) => Ok(DOCKER_SOCKET.into()),
    }
}

impl Engine {
    /// Gives the engine an archive of [`crate::output::archive`].
    pub async fn load(&self, archive: Vec<u8>) -> anyhow::Result<()> {
        match self {
            Self::Docker { socket } => docker(socket, archive).await,
            Self::Containerd { address, namespace, snapshotter } => {
                let mut command = Command::new("ctr");
                if let Some(address) = address {
                    command.arg("--address").arg(address);
                }
                command.args(["--namespace", namespace, "images", "import"]);
                if let Some(snapshotter) = snapshotter {
                    command.args(["--snapshotter", snapshotter]);
                }
                command.arg("-");
                run(command, archive).await
            }
            Self::Podman => {
                let mut command = Command::new("podman");
                command.arg("load");
                run(command, archive).await
            }
        }
    }
}

async fn docker(socket: &Path, archive: Vec<u8>) -> anyhow::Result<()> {
    let client = reqwest::Client::builder().unix_socket(socket).timeout(PATIENCE).no_proxy().build()?;
    let request =
        client.post("http://localhost/images/load?quiet=1").header("content-type", "application/x-tar").body(archive);
    let mut answer = request.send().await.with_context(|| {
        format!("Docker does not answer on {}; is it running, and may you use it?", socket.display())
    })?;
    let status = answer.status();
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.context("Docker's answer was cut")? {
        body.extend_from_slice(&part[..part.len().min(MAX_ANSWER - body.len())]);
    }
    match docker_error(&body) {
        Some(error) => bail!("Docker refuses the image: {error}"),
        None if !status.is_success() => bail!("Docker answers {status}"),
        None => Ok(()),
    }
}

/// What went wrong, if anything: Docker says so in the middle of a stream of messages that began with status 200.
fn docker_error(body: &[u8]) -> Option<String> {
    let messages = serde_json::Deserializer::from_slice(body).into_iter::<serde_json::Value>();
    let texts = messages.map_while(Result::ok).filter_map(|message| {
        let text = message.get("error").or_else(|| message.get("message")).and_then(|text| text.as_str())?;
        Some(printable(text, 500))
    });
    texts.into_iter().next()
}

async fn run(mut command: Command, archive: Vec<u8>) -> anyhow::Result<()> {
    let name = command.as_std().get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{name} can't be run; is it installed?"))?;
    let mut input = child.stdin.take().context("the standard input is a pipe")?;
    let give = async {
        // A program that has seen enough closes its end; its status says what it thinks of the image.
        let _ = input.write_all(&archive).await;
        drop(input);
    };
    let work = async { tokio::join!(give, child.wait_with_output()).1 };
    let output = tokio::time::timeout(PATIENCE, work)
        .await
        .with_context(|| format!("{name} did not end within {} s", PATIENCE.as_secs()))?
        .with_context(|| format!("{name} can't be waited for"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}): {}", output.status, printable(said.trim(), 500));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_s_errors_are_found_in_its_stream_of_messages() {
        for (body, error) in [
            ("", None),
            (r#"{"stream":"Loaded image: x:1\n"}"#, None),
            (
                "{\"stream\":\"a\"}\r\n{\"errorDetail\":{\"message\":\"bad\\u001b tar\"},\"error\":\"bad\\u001b tar\"}",
                Some("bad\u{fffd} tar"),
            ),
            (r#"{"message":"permission denied"}"#, Some("permission denied")),
            ("<html>", None),
        ] {
            assert_eq!(docker_error(body.as_bytes()).as_deref(), error, "{body}");
        }
    }

    #[test]
    fn the_socket_is_the_one_that_docker_s_own_program_would_take() {
        let given = Path::new("/x.sock");
        for (given, host, expected) in [
            (Some(given), Some("unix:///y.sock"), Some("/x.sock")),
            (None, Some("unix:///y.sock"), Some("/y.sock")),
            (None, Some(""), Some("/var/run/docker.sock")),
            (None, None, Some("/var/run/docker.sock")),
            (None, Some("tcp://127.0.0.1:2375"), None),
        ] {
            assert_eq!(docker_socket(given, host).ok().as_deref(), expected.map(Path::new), "{host:?}");
        }
    }

    #[tokio::test]
    async fn a_program_that_fails_is_quoted_and_one_that_is_absent_is_named() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        // More than a pipe holds, so that a reader that stops early is noticed.
        let archive = vec![b'x'; 1 << 20];
        run(shell("test $(wc -c) = 1048576"), archive.clone()).await.unwrap();
        let error = run(shell("echo no such thing >&2; exit 3"), archive.clone()).await.unwrap_err();
        assert!(error.to_string().contains("no such thing"), "{error}");
        let error = run(Command::new("surely-not-installed"), archive).await.unwrap_err();
        assert!(error.to_string().contains("surely-not-installed can't be run"), "{error}");
    }
}
