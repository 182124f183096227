//! Serving until a signal comes, the same for the mirror and the plugins.

use std::fmt::Debug;
use std::future::IntoFuture as _;
use std::io;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT. Made before anybody is told that there is a server, so that none is missed.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they end nothing by themselves.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Serves until one comes; then running requests get some time.
    pub async fn serve<L: Listener<Addr: Debug>>(
        mut self,
        listener: L,
        router: Router,
        grace: Duration,
    ) -> io::Result<()> {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let server = axum::serve(listener, router).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        let mut server = std::pin::pin!(server.into_future());
        tokio::select! {
            ended = &mut server => return ended,
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        drop(stop);
        if tokio::time::timeout(grace, server).await.is_err() {
            tracing::warn!("requests were still running");
        }
        Ok(())
    }
}
