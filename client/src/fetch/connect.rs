//! Tells the time that a connection takes from the time that the answer takes.
//!
//! Both are bounded by the same timeout, one after the other. The HTTP client bounds connections; a request
//! waits for its answer from the moment when its connection was there, at once if it was there before.

use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout_at};
use tower_layer::Layer;
use tower_service::Service;

tokio::task_local! {
    static PROGRESS: Arc<Progress>;
}

/// Since when a request waits for its answer; none while it waits for a connection.
#[derive(Debug)]
struct Progress(Mutex<Option<Instant>>);

/// The answer to `request`; `None` when it takes longer than `patience`, connections not counted.
pub(super) async fn answered<T>(patience: Duration, request: impl Future<Output = T>) -> Option<T> {
    let progress = Arc::new(Progress(Mutex::new(Some(Instant::now()))));
    let mut request = pin!(PROGRESS.scope(progress.clone(), request));
    let mut until = Instant::now() + patience;
    loop {
        if let Ok(answer) = timeout_at(until, &mut request).await {
            return Some(answer);
        }
        let since = *progress.0.lock();
        until = since.unwrap_or_else(Instant::now) + patience;
        if until <= Instant::now() {
            return None;
        }
    }
}

/// A request waits for a connection as long as this lives.
struct Connecting(Arc<Progress>);

impl Connecting {
    fn begin(progress: &Arc<Progress>) -> Connecting {
        *progress.0.lock() = None;
        Connecting(progress.clone())
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        *self.0.0.lock() = Some(Instant::now());
    }
}

/// Lets [`answered`] see connections being made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Watch;

impl<S> Layer<S> for Watch {
    type Service = Watched<S>;

    fn layer(&self, connector: S) -> Watched<S> {
        Watched(connector)
    }
}

/// A connector that is watched.
#[derive(Debug, Clone)]
pub(super) struct Watched<S>(S);

impl<S, R> Service<R> for Watched<S>
where
    S: Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, target: R) -> Self::Future {
        // A connection that is made ahead belongs to no request.
        let connecting = PROGRESS.try_with(Connecting::begin).ok();
        let connection = self.0.call(target);
        Box::pin(async move {
            let result = connection.await;
            drop(connecting);
            result
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);

    #[derive(Clone)]
    struct Slow(Duration);

    impl Service<()> for Slow {
        type Response = ();
        type Error = ();
        type Future = Pin<Box<dyn Future<Output = Result<(), ()>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, (): ()) -> Self::Future {
            let time = self.0;
            Box::pin(async move {
                sleep(time).await;
                Ok(())
            })
        }
    }

    #[test]
    fn the_time_of_a_connection_does_not_count_for_the_answer() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        // Time for the connection and the answer in multiples of the patience; whether there is an answer.
        for (connection, answer, expected) in [(0, 0, true), (3, 0, true), (3, 2, false), (0, 2, false)] {
            let request = async {
                if connection > 0 {
                    Watch.layer(Slow(PATIENCE * connection)).call(()).await.unwrap();
                }
                sleep(PATIENCE * answer).await;
            };
            let (found, took) = runtime.block_on(async {
                let began = Instant::now();
                (answered(PATIENCE, request).await.is_some(), began.elapsed())
            });
            assert_eq!(found, expected, "{connection} {answer}");
            // The clock of the runtime stands still but for what is waited for, and knows milliseconds.
            let waits = PATIENCE * (connection + answer.min(1));
            assert!(took.saturating_sub(waits) < Duration::from_millis(10), "{connection} {answer}: {took:?}");
        }
    }
}
