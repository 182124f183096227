//! What an engine has to be told to ask the mirror first, ready to be copied.

use std::net::SocketAddr;

use clap::ValueEnum;

/// An engine that can use a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// containerd, and with it Kubernetes, nerdctl, and Docker 28 and newer with the containerd image store
    Containerd,
    /// Docker, for names of Docker Hub
    Docker,
    /// Podman, CRI-O, Buildah, Skopeo
    Podman,
}

/// Registries that Podman is told of unless others are named: it has no default for all.
const REGISTRIES: [&str; 3] = ["docker.io", "quay.io", "ghcr.io"];

/// The lines for an engine. `resolve`: are tags answered? `registries`: those that Podman is told of.
pub fn print(engine: Engine, listen: SocketAddr, resolve: bool, registries: &[String]) -> String {
    match engine {
        Engine::Containerd => {
            let capabilities = if resolve { r#""pull", "resolve""# } else { r#""pull""# };
            format!(
                "# /etc/containerd/certs.d/_default/hosts.toml\n\
                 # for all registries; without a server of its own, each registry stays the last resort.\n\
                 # config.toml has to say where certs.d is: config_path = \"/etc/containerd/certs.d\"\n\
                 # Docker 28 and newer with the containerd image store read it as /etc/docker/certs.d/_default/hosts.toml\n\
                 [host.\"http://{listen}\"]\n  capabilities = [{capabilities}]\n"
            )
        }
        // JSON has no comments, so the file can be copied as it is.
        Engine::Docker => format!("{{\n  \"registry-mirrors\": [\"http://{listen}\"]\n}}\n"),
        Engine::Podman => {
            let mut text = "# /etc/containers/registries.conf.d/50-cvmfs-mirror.conf\n\
                            # one block for each registry whose images are published; in the place of a mirror, a port stands behind _\n"
                .to_owned();
            let usual = REGISTRIES.map(str::to_owned);
            for registry in if registries.is_empty() { &usual } else { registries } {
                let place = registry.replace(':', "_");
                let digests = if resolve { "" } else { "pull-from-mirror = \"digest-only\"\n" };
                text.push_str(&format!(
                    "\n[[registry]]\nlocation = \"{registry}\"\n\n[[registry.mirror]]\nlocation = \"{listen}/{place}\"\ninsecure = true\n{digests}"
                ));
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_gets_lines_that_it_can_read() {
        let listen = "127.0.0.1:5080".parse().unwrap();
        let usual = |engine, listen, resolve| print(engine, listen, resolve, &[]);
        let hosts: toml::Table = usual(Engine::Containerd, listen, true).parse().unwrap();
        let host = &hosts["host"]["http://127.0.0.1:5080"];
        assert_eq!(host["capabilities"].as_array().unwrap().len(), 2);
        assert!(hosts.get("server").is_none());
        let daemon: serde_json::Value = serde_json::from_str(&usual(Engine::Docker, listen, true)).unwrap();
        assert_eq!(daemon["registry-mirrors"][0], "http://127.0.0.1:5080");
        for (resolve, digest_only) in [(true, None), (false, Some("digest-only"))] {
            let conf: toml::Table = usual(Engine::Podman, listen, resolve).parse().unwrap();
            let mirror = &conf["registry"][0]["mirror"][0];
            assert_eq!(mirror["location"].as_str(), Some("127.0.0.1:5080/docker.io"));
            assert_eq!(mirror.get("pull-from-mirror").and_then(|value| value.as_str()), digest_only);
        }
        let text = print(Engine::Podman, listen, true, &["registry.example.org:5000".to_owned()]);
        let conf: toml::Table = text.parse().unwrap();
        assert_eq!(conf["registry"].as_array().unwrap().len(), 1);
        let place = &conf["registry"][0]["mirror"][0]["location"];
        assert_eq!(place.as_str(), Some("127.0.0.1:5080/registry.example.org_5000"));
    }
}
