//! A clean end: whoever works looks here whether the operator wants it to stop.
//!
//! Network reads end at once, nothing new is begun, what is ready is still published, and locks and leases are given back. A second
//! signal ends the process where it stands: that is safe too, but others wait for its lease.

use std::io;
use std::pin::Pin;
use std::process;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::error::{ExitStatus, Signal};

/// Whether to stop. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    token: CancellationToken,
    signal: Arc<OnceLock<Signal>>,
}

impl Stop {
    /// Asks everybody to stop.
    pub fn ask(&self, signal: Signal) {
        let _ = self.signal.set(signal);
        self.token.cancel();
    }

    /// What asked, if something did.
    pub fn asked(&self) -> Option<Signal> {
        self.token.is_cancelled().then(|| self.signal.get().copied().unwrap_or(Signal::Terminate))
    }

    /// Ready when somebody asks.
    pub async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Asks at SIGINT and SIGTERM; the second one ends the process.
    pub fn at_signals(&self, runtime: &Handle) -> io::Result<()> {
        let _inside = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = self.clone();
        runtime.spawn(async move {
            loop {
                let signal = tokio::select! {
                    _ = interrupt.recv() => Signal::Interrupt,
                    _ = terminate.recv() => Signal::Terminate,
                };
                if stop.asked().is_some() {
                    process::exit(ExitStatus::from(signal).code().into());
                }
                tracing::info!("stopping; a second signal ends the process at once");
                stop.ask(signal);
            }
        });
        Ok(())
    }

    /// A stream that fails as soon as somebody asks.
    pub fn guard<R>(&self, inner: R) -> Guarded<R> {
        Guarded { inner, stopped: Box::pin(self.token.clone().cancelled_owned()) }
    }
}

/// See [`Stop::guard`].
#[derive(Debug)]
pub struct Guarded<R> {
    inner: R,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Guarded<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.stopped.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::other(STOPPED)));
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

/// What images say that were under way.
pub const STOPPED: &str = "stopped before it was complete; the next run goes on from what was stored";

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn a_read_that_waits_ends_when_somebody_asks() {
        let stop = Stop::default();
        let (silent, _open) = tokio::io::duplex(16);
        let mut guarded = stop.guard(silent);
        let read = tokio::spawn(async move { guarded.read_u8().await });
        tokio::task::yield_now().await;
        assert_eq!(stop.asked(), None);
        stop.ask(Signal::Interrupt);
        stop.ask(Signal::Terminate);
        assert_eq!(read.await.unwrap().unwrap_err().to_string(), STOPPED);
        assert_eq!(stop.asked(), Some(Signal::Interrupt));
    }
}
