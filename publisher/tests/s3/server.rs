//! An S3 server: the crates `s3s` and `s3s-fs`, which verify signatures and keep each object in a file.
//!
//! What is added here: anybody may read objects (that is how clients fetch from a bucket), faults on demand, and one
//! request at a time for a file `.cvmfs…`, because `s3s-fs` looks at a condition and writes in two steps, and keeps
//! content and entity tag in two files.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::serve::ListenerExt as _;
use parking_lot::Mutex;
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput,
    DeleteObjectsOutput, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
    ListObjectsV2Output, PutObjectInput, PutObjectOutput, UploadPartInput, UploadPartOutput,
};
use s3s::service::S3ServiceBuilder;
use s3s::{HttpError, S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

/// What a test can do to the server, and see of it.
#[derive(Default)]
pub struct Controls {
    /// Consumed one by one by the requests that they fit.
    faults: Mutex<Vec<Fault>>,
    conditions: Mutex<Conditions>,
    /// What somebody else does in an ambush.
    ambush: Mutex<Option<Ambush>>,
    /// Requests so far, by method and path.
    seen: Mutex<Vec<(Method, String)>>,
    /// Paths of writes whose condition did not hold.
    overtaken: Mutex<Vec<String>>,
    /// Headers of the last upload of each key.
    uploads: Mutex<Vec<(String, HeaderMap)>>,
    /// How long each upload of an object takes at least.
    delay: Mutex<Duration>,
    /// Uploads of objects under way, and the most that there were at once.
    under_way: (AtomicUsize, AtomicUsize),
    named_files: tokio::sync::Mutex<()>,
}

/// Something that happens before a request is looked at.
type Ambush = Box<dyn FnMut() + Send>;

/// What happens to one request.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Method of the request.
    pub method: Method,
    /// A part of its path.
    pub path: &'static str,
    /// What happens.
    pub kind: FaultKind,
}

/// Kinds of faults.
#[allow(dead_code, reason = "the program that takes this file in has no faults to inject")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The server answers with this status and does nothing.
    Refused(StatusCode),
    /// The server does what it is asked, and answers as if it had not.
    AnswerLost,
    /// Before the server does what it is asked, somebody else does something ([`Controls::ambush`]).
    Ambushed,
}

/// What the server makes of conditions on writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Conditions {
    /// They hold.
    #[default]
    Honoured,
    /// They are taken for decoration.
    Ignored,
    /// The request is refused.
    Refused,
}

#[allow(dead_code, reason = "the program that takes this file in has no faults to inject")]
impl Controls {
    /// Lets requests fail.
    pub fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().extend(faults);
    }

    /// Sets what happens in an ambush.
    pub fn ambush(&self, ambush: impl FnMut() + Send + 'static) {
        *self.ambush.lock() = Some(Box::new(ambush));
    }

    /// Faults that no request has met.
    pub fn faults_left(&self) -> usize {
        self.faults.lock().len()
    }

    /// Ends all faults.
    pub fn clear(&self) {
        self.faults.lock().clear();
        *self.ambush.lock() = None;
    }

    /// Lets uploads of objects take their time.
    pub fn slow_down(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }

    /// The most uploads of objects that were under way at once.
    pub fn most_uploads(&self) -> usize {
        self.under_way.1.load(Ordering::Relaxed)
    }

    /// Writes of a file whose condition did not hold.
    pub fn overtaken(&self, name: &str) -> usize {
        self.overtaken.lock().iter().filter(|path| path.ends_with(name)).count()
    }

    /// Sets what conditions are worth from now on.
    pub fn set_conditions(&self, conditions: Conditions) {
        *self.conditions.lock() = conditions;
    }

    /// Requests of a method whose path has this in it, since the last call; forgets all of them.
    pub fn take_requests(&self, method: &Method, path: &str) -> usize {
        let seen = std::mem::take(&mut *self.seen.lock());
        seen.iter().filter(|(m, p)| m == method && p.contains(path)).count()
    }

    /// Headers with which keys that have this in them were last uploaded.
    pub fn uploads(&self, path: &str) -> Vec<(String, HeaderMap)> {
        self.uploads.lock().iter().filter(|(key, _)| key.contains(path)).cloned().collect()
    }
}

/// Only objects are for everybody.
struct PublicObjects;

#[async_trait::async_trait]
impl S3Access for PublicObjects {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        match (context.credentials(), context.s3_op().name()) {
            (Some(_), _) | (None, "GetObject" | "HeadObject") => Ok(()),
            (None, _) => Err(s3_error!(AccessDenied, "Signature is required")),
        }
    }
}

/// The files, with what was said above.
struct Files {
    files: FileSystem,
    controls: Arc<Controls>,
}

/// Passes operations on as they are.
macro_rules! pass_on {
    ($($operation:ident: $input:ident -> $output:ident,)*) => {
        #[async_trait::async_trait]
        impl S3 for Files {
            async fn put_object(
                &self,
                mut request: S3Request<PutObjectInput>,
            ) -> S3Result<S3Response<PutObjectOutput>> {
                if *self.controls.conditions.lock() == Conditions::Ignored {
                    (request.input.if_match, request.input.if_none_match) = (None, None);
                }
                self.files.put_object(request).await
            }

            $(async fn $operation(&self, request: S3Request<$input>) -> S3Result<S3Response<$output>> {
                self.files.$operation(request).await
            })*
        }
    };
}

pass_on! {
    get_object: GetObjectInput -> GetObjectOutput,
    head_object: HeadObjectInput -> HeadObjectOutput,
    list_objects_v2: ListObjectsV2Input -> ListObjectsV2Output,
    delete_object: DeleteObjectInput -> DeleteObjectOutput,
    delete_objects: DeleteObjectsInput -> DeleteObjectsOutput,
    create_multipart_upload: CreateMultipartUploadInput -> CreateMultipartUploadOutput,
    upload_part: UploadPartInput -> UploadPartOutput,
    complete_multipart_upload: CompleteMultipartUploadInput -> CompleteMultipartUploadOutput,
    abort_multipart_upload: AbortMultipartUploadInput -> AbortMultipartUploadOutput,
}

/// The server over a directory, in which each directory is a bucket.
pub fn router(root: &Path, access_key: &str, secret_key: &str, controls: Arc<Controls>) -> Router {
    let files = FileSystem::new(root).expect("a directory");
    let mut builder = S3ServiceBuilder::new(Files { files, controls: controls.clone() });
    builder.set_auth(SimpleAuth::from_single(access_key, secret_key));
    builder.set_access(PublicObjects);
    let failed = |error: HttpError| async move { (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")) };
    let service = tower::ServiceBuilder::new().layer(HandleErrorLayer::new(failed)).service(builder.build());
    Router::new().fallback_service(service).layer(middleware::from_fn_with_state(controls, between))
}

/// Serves on a listener until the runtime ends.
pub async fn serve(listener: TcpListener, router: Router) {
    // An answer in two pieces would otherwise wait for the client's delayed acknowledgement of the first.
    let listener = listener.tap_io(|connection| connection.set_nodelay(true).expect("a TCP connection"));
    axum::serve(listener, router).await.expect("serving never ends by itself");
}

async fn between(State(controls): State<Arc<Controls>>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    controls.seen.lock().push((method.clone(), path.clone()));
    if method == Method::PUT {
        let mut uploads = controls.uploads.lock();
        uploads.retain(|(key, _)| *key != path);
        uploads.push((path.clone(), request.headers().clone()));
    }
    let fault = {
        let mut faults = controls.faults.lock();
        let found = faults.iter().position(|fault| fault.method == method && path.contains(fault.path));
        found.map(|at| faults.remove(at).kind)
    };
    match fault {
        Some(FaultKind::Refused(status)) => return status.into_response(),
        Some(FaultKind::Ambushed) => {
            let controls = controls.clone();
            let ambush = move || {
                // Not locked meanwhile: it may set the next one.
                let ambush = controls.ambush.lock().take();
                if let Some(mut ambush) = ambush {
                    ambush();
                    controls.ambush.lock().get_or_insert(ambush);
                }
            };
            tokio::task::spawn_blocking(ambush).await.expect("an ambush that works");
        }
        Some(FaultKind::AnswerLost) | None => {}
    }
    let conditions = *controls.conditions.lock();
    let conditional = [header::IF_MATCH, header::IF_NONE_MATCH].iter().any(|name| request.headers().contains_key(name));
    if method == Method::PUT && conditional && conditions == Conditions::Refused {
        return (StatusCode::NOT_IMPLEMENTED, "<Error><Code>NotImplemented</Code></Error>").into_response();
    }
    let named = path.rsplit('/').next().is_some_and(|name| name.starts_with(".cvmfs"));
    let answer = if named {
        let _one_at_a_time = controls.named_files.lock().await;
        next.run(request).await
    } else if method == Method::PUT {
        let (now, most) = &controls.under_way;
        most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        let delay = *controls.delay.lock();
        tokio::time::sleep(delay).await;
        let answer = next.run(request).await;
        now.fetch_sub(1, Ordering::Relaxed);
        answer
    } else {
        next.run(request).await
    };
    if answer.status() == StatusCode::PRECONDITION_FAILED {
        controls.overtaken.lock().push(path);
    }
    match fault {
        Some(FaultKind::AnswerLost) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        _ => answer,
    }
}
