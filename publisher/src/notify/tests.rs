use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::progress::{Event, Progress as _, Silent};
use crate::report::Outcome;

fn options(file: Option<&Path>, url: Option<&str>) -> Notifications {
    Notifications {
        file: file.map(Path::to_owned),
        notify_url: url.map(|url| url.parse().unwrap()),
        stratum1_timeout: Duration::from_secs(60),
        ..Notifications::default()
    }
}

fn start(options: &Notifications) -> Notifier {
    Notifier::start(options, &Stop::default()).unwrap().unwrap()
}

/// Answers requests with these statuses, the last for all that follow; hands out head and body of each.
fn server(statuses: &'static [u16]) -> (String, Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (send, requests) = channel();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().enumerate() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if reader.read_line(&mut head).unwrap() == 0 {
                    break;
                }
            }
            let lower = head.to_ascii_lowercase();
            let length = lower.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()).unwrap_or("0");
            let mut body = vec![0; length.trim().parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            let status = statuses[n.min(statuses.len() - 1)];
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            std::io::Write::write_all(reader.get_mut(), answer.as_bytes()).unwrap();
            if send.send((lower, String::from_utf8(body).unwrap())).is_err() {
                return;
            }
        }
    });
    (url, requests)
}

fn lines(file: &Path) -> Vec<serde_json::Map<String, serde_json::Value>> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_pass_is_told_in_the_words_of_the_existing_tool() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("notifications");
    let notifier = start(&options(Some(&file), None));
    let telling = notifier.telling(Arc::new(Silent));
    let (image, layer) = ("https://quay.io/a/b:1", "sha256:11");
    for event in [
        Event::ImageStarted { image, layers: 1, total: Some(9) },
        Event::LayerBytes { image, layer, done: 4, total: Some(9) },
        Event::LayerBytes { image, layer, done: 9, total: Some(9) },
        Event::LayerFinished { image, layer, bytes: 9, known: false },
        Event::LayerFinished { image, layer: "sha256:22", bytes: 0, known: true },
        Event::ImageStage { image, stage: "flattening" },
        Event::ImageStage { image, stage: "publishing" },
        Event::ImagePublished {
            image,
            path: "quay.io/a/b:1",
            flat: ".flat/aa/aabb",
            layers: &["sha256:11".to_owned()],
            revision: 7,
        },
        Event::ImageFinished { image, outcome: Outcome::Added, error: None, seconds: 1.0 },
        Event::ImageStarted { image: "bad", layers: 1, total: None },
        Event::LayerBytes { image: "bad", layer: "sha256:33", done: 1, total: None },
        Event::ImageFinished { image: "bad", outcome: Outcome::Failed, error: Some("cut"), seconds: 1.0 },
    ] {
        telling.event(event);
    }
    drop((telling, notifier));
    let lines = lines(&file);
    let actions: Vec<&str> = lines.iter().map(|line| line["action"].as_str().unwrap()).collect();
    assert_eq!(
        actions,
        [
            "start_ducc",
            "start_image_conversion",
            "start_layer_conversion",
            "end_layer_conversion",
            "start_flat_conversion",
            "end_flat_conversion",
            "publish_layer",
            "publish_flat_image",
            "end_image_conversion",
            "start_image_conversion",
            "start_layer_conversion",
            "end_layer_conversion",
            "end_image_conversion",
            "end_ducc",
        ]
    );
    assert!(lines.iter().all(|line| line.values().all(serde_json::Value::is_string)), "strings only");
    assert!(lines.iter().all(|line| line.keys().is_sorted()), "sorted keys");
    assert_eq!(
        (&lines[2]["id"], &lines[3]["status"], &lines[3]["size_bytes"]),
        (&lines[3]["id"], &"ok".into(), &"9".into())
    );
    assert_ne!(lines[2]["id"], lines[4]["id"]);
    assert_eq!(lines[7]["private_path"], ".flat/aa/aabb");
    assert_eq!((&lines[11]["status"], &lines[11]["error"]), (&"error".into(), &"cut".into()));
    assert_eq!((&lines[12]["status"], &lines[12]["outcome"]), (&"error".into(), &"failed".into()));
    let time = lines[0]["time"].as_str().unwrap();
    assert!(time::PrimitiveDateTime::parse(time, TIME).is_ok(), "{time}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o117, 0, "nothing for others");
}

#[test]
fn an_address_is_told_until_it_listens() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    std::fs::write(&token, "secret\n").unwrap();
    let (url, requests) = server(&[503, 204]);
    let notifier = start(&Notifications { notify_token_file: Some(token), ..options(None, Some(&url)) });
    let (first, second) = (requests.recv().unwrap(), requests.recv().unwrap());
    assert_eq!(first.1, second.1, "again");
    assert!(first.0.starts_with("post /hook") && first.0.contains("authorization: bearer secret"), "{}", first.0);
    let channels = notifier.channels.clone();
    drop(notifier);
    assert!(requests.recv().unwrap().1.contains("end_ducc"));
    assert_eq!(channels.undelivered.load(Ordering::Relaxed), 0);
}

#[test]
fn what_is_refused_or_too_much_is_counted_and_holds_nobody_up() {
    let (url, requests) = server(&[403]);
    let notifier = start(&options(None, Some(&url)));
    assert!(requests.recv().unwrap().1.contains("start_ducc"));
    let channels = notifier.channels.clone();
    drop(notifier);
    assert_eq!(channels.undelivered.load(Ordering::Relaxed), 2, "refused once, not asked again");

    // Accepts connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let hook = Hook::start(url.parse().unwrap(), None, Arc::default()).unwrap();
    let taken = (0..5000).filter(|n| hook.send(n.to_string())).count();
    assert!((1024..5000).contains(&taken), "a bounded queue: {taken}");
}

#[test]
fn a_file_that_cannot_be_written_fails_nothing() {
    let notifier = start(&options(Some(Path::new("/nowhere/at/all")), None));
    assert_eq!(notifier.undelivered(), 1);
}
