//! `pull`: one line a layer while it goes on, and what came out of it.

use std::io::{self, Write as _};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::pull::{Done, How, Pulled, Wish, pull as run};

/// Pulls an image. A signal ends it; the next pull goes on from there.
pub async fn pull(config: &Config, wish: &Wish, json: bool) -> anyhow::Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let report = |done: &Done| {
        let _ = writeln!(io::stderr(), "{}", line(done));
    };
    let stopped = |code| {
        let _ = writeln!(io::stderr(), "stopped; what is there is kept for a day, the next pull goes on from it");
        Ok(ExitCode::from(code))
    };
    let pulled = tokio::select! {
        pulled = Box::pin(run(config, wish, &report)) => pulled?,
        _ = interrupt.recv() => return stopped(130),
        _ = terminate.recv() => return stopped(143),
    };
    super::print(&if json { serde_json::to_string_pretty(&pulled)? } else { text(&pulled) })?;
    Ok(ExitCode::SUCCESS)
}

fn line(done: &Done) -> String {
    let what = match &done.how {
        How::Present => "present".to_owned(),
        How::Lazily(Some(repository)) => format!("lazily from {repository}"),
        How::Lazily(None) => "lazily".to_owned(),
        How::Downloaded { bytes, reason } => {
            let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            format!("downloaded {}{reason}", size(*bytes))
        }
    };
    let digest = done.layer.hex();
    format!("layer {:<3} {} {what}", done.number, &digest[..12])
}

fn text(pulled: &Pulled) -> String {
    let layers = pulled.layers;
    format!(
        "{} {}\n{} layers: {} lazily, {} downloaded, {} present; {} from the registry in {:.1} s",
        pulled.image,
        pulled.digest,
        layers.lazy + layers.downloaded + layers.present,
        layers.lazy,
        layers.downloaded,
        layers.present,
        size(pulled.bytes),
        pulled.seconds
    )
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn size(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} bytes"),
        1000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use image::digest::Digest;

    use super::*;
    use crate::pull::Layers;

    #[test]
    fn a_layer_is_a_line() {
        let layer = Digest::of(b"");
        let say = |how| line(&Done { number: 3, layer, how });
        assert_eq!(say(How::Present), "layer 3   e3b0c44298fc present");
        assert_eq!(say(How::Lazily(Some("a.b".into()))), "layer 3   e3b0c44298fc lazily from a.b");
        let reason = Some("not in a.b".to_owned());
        assert_eq!(
            say(How::Downloaded { bytes: 3_140_000, reason }),
            "layer 3   e3b0c44298fc downloaded 3.1 MB (not in a.b)"
        );
        assert_eq!([size(0), size(999), size(1999)], ["0 bytes", "999 bytes", "2 kB"]);
    }

    #[test]
    fn the_result_is_two_lines() {
        let layers = Layers { lazy: 11, downloaded: 1, present: 0 };
        let (image, digest) = ("docker.io/library/x:1".to_owned(), "sha256:1".to_owned());
        assert_eq!(
            text(&Pulled { image, digest, layers, bytes: 3_100_000, seconds: 0.44 }),
            "docker.io/library/x:1 sha256:1\n12 layers: 11 lazily, 1 downloaded, 0 present; 3.1 MB from the registry in 0.4 s"
        );
    }
}
