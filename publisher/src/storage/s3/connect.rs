//! Settings → a client of the S3 server.
//!
//! For `s3://` locations everything about server and credentials comes from the `AWS_*` variables, with the names that
//! the AWS tools use; without keys among them, from the machine's own identity (web identity, container, instance).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use super::explain::Explainer;
use crate::storage::settings::{S3Access, S3Settings};

const CONNECT: Duration = Duration::from_secs(10);
/// Retries end after this time, however many are left.
const PATIENCE: Duration = Duration::from_secs(180);

/// A client, and who explains its errors.
pub struct Connected {
    pub client: Arc<dyn ObjectStore>,
    pub explainer: Explainer,
}

pub fn connect(settings: &S3Settings) -> object_store::Result<Connected> {
    // Without effect if another part of the program was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = match &settings.access {
        S3Access::Environment => AmazonS3Builder::from_env(),
        S3Access::Configured { endpoint, virtual_hosted, region, access_key, secret_key } => AmazonS3Builder::new()
            .with_endpoint(endpoint)
            .with_virtual_hosted_style_request(*virtual_hosted)
            .with_region(region)
            .with_access_key_id(access_key)
            .with_secret_access_key(secret_key.reveal()),
    }
    .with_bucket_name(&settings.bucket);
    let value = |key| builder.get_config_value(&key).filter(|value| !value.is_empty());
    let endpoint = value(AmazonS3ConfigKey::S3Endpoint).or_else(|| value(AmazonS3ConfigKey::Endpoint));
    let explainer = Explainer {
        place: settings.to_string(),
        server: endpoint.clone().unwrap_or_else(|| "the S3 servers of AWS".to_owned()),
        bucket: settings.bucket.clone(),
        region: value(AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned()),
        access_key: value(AmazonS3ConfigKey::AccessKeyId),
    };
    let plain_http = endpoint.is_some_and(|url| url.starts_with("http://"));
    let builder = builder.with_client_options(client_options(settings, plain_http));
    // Where there is no metadata service, nobody wants to wait for it as long as for a busy storage.
    let impatient: AmazonS3 = builder.clone().with_retry(retries(1, Duration::from_secs(5))).build()?;
    let credentials = impatient.credentials().clone();
    let client = builder.with_credentials(credentials).with_retry(retries(settings.retries, PATIENCE)).build()?;
    Ok(Connected { client: Arc::new(client), explainer })
}

fn client_options(settings: &S3Settings, plain_http: bool) -> ClientOptions {
    let mut options = ClientOptions::new()
        .with_allow_http(plain_http)
        .with_connect_timeout(CONNECT.min(settings.timeout))
        // A time limit for a whole request would be one on the size of objects.
        .with_timeout_disabled()
        .with_read_timeout(settings.timeout)
        .with_pool_max_idle_per_host(settings.connections)
        .with_user_agent(HeaderValue::from_static(concat!("cvmfs-publisher/", env!("CARGO_PKG_VERSION"))));
    if let Some(acl) = settings.acl.as_deref().and_then(|acl| HeaderValue::from_str(acl).ok()) {
        // With every request: they are signed with it, and those that write nothing are not changed by it.
        let header = (HeaderName::from_static("x-amz-acl"), acl);
        options = options.with_default_headers(HeaderMap::from_iter([header]));
    }
    if let Some(proxy) = &settings.proxy {
        options = options.with_proxy_url(proxy);
    }
    options
}

fn retries(max_retries: usize, retry_timeout: Duration) -> RetryConfig {
    RetryConfig { max_retries, retry_timeout, backoff: BackoffConfig::default() }
}
