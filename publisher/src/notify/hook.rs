//! Sends notifications to an address, from a thread of its own behind a bounded queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Url};

use crate::error::CommandError;

/// Notifications that wait at most.
const QUEUE: usize = 1024;
/// Attempts for each.
const ATTEMPTS: u32 = 3;
/// Pause before the second; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// For one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the end waits for what is in the queue.
const LAST: Duration = Duration::from_secs(20);

/// An address that is told.
#[derive(Debug)]
pub(super) struct Hook {
    queue: Mutex<Option<SyncSender<String>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    ended: Mutex<Receiver<()>>,
}

impl Hook {
    pub(super) fn start(url: Url, token: Option<&str>, undelivered: Arc<AtomicU64>) -> Result<Hook, CommandError> {
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                CommandError::config(std::io::Error::other(
                    "the token for notifications has characters that no header may have",
                ))
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        // Err means that somebody in this process installed a provider before; any will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("cvmfs-publisher/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // A redirect would carry the token elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .build()
            .map_err(CommandError::failed)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CommandError::failed)?;
        let (queue, waiting) = sync_channel::<String>(QUEUE);
        let (end, ended) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            for body in waiting {
                if let Err(why) = runtime.block_on(deliver(&client, &url, body)) {
                    undelivered.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(host = url.host_str(), why, "a notification was not delivered");
                }
            }
            let _ = end.send(());
        });
        Ok(Hook { queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)), ended: Mutex::new(ended) })
    }

    /// Puts a notification into the queue; false if it is full.
    pub(super) fn send(&self, body: String) -> bool {
        self.queue.lock().as_ref().is_some_and(|queue| queue.try_send(body).is_ok())
    }

    /// Waits until everything is sent, or too long.
    pub(super) fn finish(&self) {
        drop(self.queue.lock().take());
        let begun = Instant::now();
        let ended = self.ended.lock().recv_timeout(LAST);
        match (ended, self.thread.lock().take()) {
            (Ok(()) | Err(RecvTimeoutError::Disconnected), Some(thread)) => drop(thread.join()),
            (Err(RecvTimeoutError::Timeout), _) => {
                tracing::warn!(
                    seconds = begun.elapsed().as_secs(),
                    "the receiver of notifications is too slow; the last are lost"
                );
            }
            _ => {}
        }
    }
}

async fn deliver(client: &Client, url: &Url, body: String) -> Result<(), String> {
    let mut why = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(PAUSE * 2_u32.pow(attempt - 1)).await;
        }
        match client.post(url.clone()).body(body.clone()).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => {
                why = format!("answered {}", answer.status());
                let status = answer.status();
                let is_passing = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
                if !is_passing {
                    break;
                }
            }
            // The address may hold a secret.
            Err(error) => why = error.without_url().to_string(),
        }
    }
    Err(why)
}
