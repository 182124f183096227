//! Asks a container engine over CRI for what the kubelet asks it for, one call a command, and prints the answer as JSON.
//!
//! Sandboxes use the network of the host, so that no network plugin has to be set up. Containers write their logs below
//! `/var/log/pods/<sandbox's name>`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

const USAGE: &str = "usage: cri SOCKET COMMAND

  version                          of the engine behind the socket
  pull IMAGE                       → image
  images                           → images
  remove-image IMAGE
  image-fs                         → filesystems, as the kubelet sees them
  sandbox NAME                     → sandbox
  run SANDBOX NAME IMAGE WORD…     → container, log
  exec CONTAINER WORD…             → status, stdout, stderr
  state CONTAINER                  → state, exit_code
  sandbox-state SANDBOX            → state
  remove SANDBOX                   with its containers";

/// As long as the kubelet waits for a pull that makes no progress.
const TIMEOUT: Duration = Duration::from_secs(60);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime of one thread");
    match runtime.block_on(call(&words)) {
        Ok(answer) => println!("{answer}"),
        Err(error) => {
            eprintln!("Error: {error:#}");
            std::process::exit(1);
        }
    }
}

async fn call(words: &[String]) -> Result<Value> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [socket, command, arguments @ ..] = words.as_slice() else { bail!("{USAGE}") };
    let channel = Endpoint::from_shared(format!("unix:{socket}"))?
        .timeout(TIMEOUT)
        .connect()
        .await
        .with_context(|| format!("connect to {socket}"))?;
    let engine =
        Engine { images: ImageServiceClient::new(channel.clone()), runtime: RuntimeServiceClient::new(channel) };
    engine.call(command, arguments).await.with_context(|| format!("{command} {}", arguments.join(" ")))
}

struct Engine {
    images: ImageServiceClient<Channel>,
    runtime: RuntimeServiceClient<Channel>,
}

impl Engine {
    async fn call(mut self, command: &str, arguments: &[&str]) -> Result<Value> {
        Ok(match (command, arguments) {
            ("version", []) => {
                let answer = self.runtime.version(VersionRequest::default()).await?.into_inner();
                json!({"name": answer.runtime_name, "version": answer.runtime_version})
            }
            ("pull", [name]) => {
                let answer =
                    self.images.pull_image(PullImageRequest { image: Some(image(name)), ..Default::default() }).await?;
                json!({"image": answer.into_inner().image_ref})
            }
            ("images", []) => {
                let answer = self.images.list_images(ListImagesRequest::default()).await?.into_inner();
                json!({"images": answer.images.into_iter().map(|i| json!({"id": i.id, "tags": i.repo_tags, "size": i.size})).collect::<Vec<_>>()})
            }
            ("remove-image", [name]) => {
                self.images.remove_image(RemoveImageRequest { image: Some(image(name)) }).await?;
                json!({})
            }
            ("image-fs", []) => {
                let answer = self.images.image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
                let describe = |usage: FilesystemUsage| json!({"mountpoint": usage.fs_id.map(|id| id.mountpoint), "bytes": usage.used_bytes.map(|bytes| bytes.value)});
                json!({"filesystems": answer.image_filesystems.into_iter().map(describe).collect::<Vec<_>>()})
            }
            ("sandbox", [name]) => {
                let request = RunPodSandboxRequest { config: Some(sandbox(name)), ..Default::default() };
                json!({"sandbox": self.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id})
            }
            ("run", [pod, name, image_name, words @ ..]) => self.run(pod, name, image_name, words).await?,
            ("exec", [container, words @ ..]) => {
                let cmd = words.iter().map(ToString::to_string).collect();
                let request = ExecSyncRequest { container_id: container.to_string(), cmd, timeout: 30 };
                let answer = self.runtime.exec_sync(request).await?.into_inner();
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                json!({"status": answer.exit_code, "stdout": text(&answer.stdout), "stderr": text(&answer.stderr)})
            }
            ("state", [container]) => {
                let request = ContainerStatusRequest { container_id: container.to_string(), verbose: false };
                let status = self.runtime.container_status(request).await?.into_inner().status.context("no status")?;
                json!({"state": status.state().as_str_name(), "exit_code": status.exit_code})
            }
            ("sandbox-state", [pod]) => {
                json!({"state": self.status_of(pod).await?.state().as_str_name()})
            }
            ("remove", [pod]) => {
                self.runtime.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.to_string() }).await?;
                self.runtime.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod.to_string() }).await?;
                json!({})
            }
            _ => bail!("{USAGE}"),
        })
    }

    async fn status_of(&mut self, pod: &str) -> Result<PodSandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_string(), verbose: false };
        self.runtime.pod_sandbox_status(request).await?.into_inner().status.context("no status")
    }

    /// Creates a container in a sandbox and starts it.
    async fn run(&mut self, pod: &str, name: &str, image_name: &str, words: &[&str]) -> Result<Value> {
        let pod_name = self.status_of(pod).await?.metadata.context("a sandbox without a name")?.name;
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_string(), attempt: 0 }),
            image: Some(image(image_name)),
            command: words.iter().map(ToString::to_string).collect(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig::default()),
            ..Default::default()
        };
        let config_of_pod = sandbox(&pod_name);
        let log = format!("{}/{}", config_of_pod.log_directory, config.log_path);
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_string(),
            config: Some(config),
            sandbox_config: Some(config_of_pod),
        };
        let container_id = self.runtime.create_container(request).await?.into_inner().container_id;
        self.runtime.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
        Ok(json!({"container": container_id, "log": log}))
    }
}

fn image(name: &str) -> ImageSpec {
    ImageSpec { image: name.to_string(), ..Default::default() }
}

/// The sandbox of a pod that is known by its name alone.
fn sandbox(name: &str) -> PodSandboxConfig {
    let namespaces = NamespaceOption { network: NamespaceMode::Node.into(), ..Default::default() };
    let security_context = LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_string(),
            uid: name.to_string(),
            namespace: "default".to_string(),
            attempt: 0,
        }),
        log_directory: format!("/var/log/pods/{name}"),
        linux: Some(LinuxPodSandboxConfig { security_context: Some(security_context), ..Default::default() }),
        ..Default::default()
    }
}
