//! Units of systemd, as they are in `dist/`.

use std::path::Path;

use super::Settings;

const SERVICE: &str = include_str!("../../dist/cvmfs-snapshotter.service");
const SOCKET: &str = include_str!("../../dist/cvmfs-snapshotter.socket");

/// Names and texts, for a program at this place and with this socket.
pub fn texts(settings: &Settings, binary: &Path) -> [(&'static str, String); 2] {
    let service = SERVICE.replace("/usr/bin/cvmfs-snapshotter", &binary.display().to_string());
    let socket = SOCKET.replace("/run/cvmfs-snapshotter/snapshotter.sock", &settings.address);
    [("cvmfs-snapshotter.service", service), ("cvmfs-snapshotter.socket", socket)]
}

/// Commands that make the changes effective.
pub fn next(engines: &[&str]) -> Vec<String> {
    let mut commands = vec![
        "systemctl daemon-reload".to_owned(),
        "systemctl enable --now cvmfs-snapshotter.socket cvmfs-snapshotter.service".to_owned(),
    ];
    commands.extend(engines.iter().map(|engine| format!("systemctl restart {engine}")));
    commands.push("cvmfs-snapshotter doctor".to_owned());
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_and_socket_are_those_of_this_machine() {
        let settings = Settings { name: "x".into(), address: "/run/other.sock".into(), root: "/r".into() };
        let [(_, service), (_, socket)] = texts(&settings, Path::new("/opt/bin/cvmfs-snapshotter"));
        assert!(service.contains("\nExecStart=/opt/bin/cvmfs-snapshotter serve\n"));
        assert!(socket.contains("\nListenStream=/run/other.sock\n"));
        for line in ["Type=notify", "KillMode=process", "Restart=always", "RestartSec=100ms", "OOMScoreAdjust=-999"] {
            assert!(service.lines().any(|found| found == line), "{line}");
        }
    }
}
