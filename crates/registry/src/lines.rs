//! The HTTP clients underneath: TLS, proxies, connection limits.
//!
//! Invariants
//! - Nothing happens behind our back: no redirects, no repetition, no decoding; `transport` does what is to be done.
//! - Trust is the system's CA certificates and the extra files, never less.
//! - Loopback addresses are reached directly, whatever proxy the environment names.

use std::path::Path;
use std::sync::Arc;

use reqwest::Url;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::client::ClientConfig;
use crate::error::Error;

/// The HTTP clients: through the proxies that the environment names, and direct.
#[derive(Debug)]
pub(crate) struct Lines {
    proxied: reqwest::Client,
    direct: reqwest::Client,
}

impl Lines {
    /// TLS is set up here in full: *ring* as provider, the system's CA certificates (`SSL_CERT_FILE` and `SSL_CERT_DIR`
    /// are honoured) and the extra ones, `own` among them. A machine without CA certificates can still use plain registries.
    pub(crate) fn new(config: &ClientConfig, own: Option<&Path>) -> Result<Self, Error> {
        let mut roots = rustls::RootCertStore::empty();
        let native = rustls_native_certs::load_native_certs();
        let (usable, ignored) = roots.add_parsable_certificates(native.certs);
        tracing::debug!(usable, ignored, errors = native.errors.len(), "system CA certificates");
        for path in config.extra_ca_files.iter().map(AsRef::as_ref).chain(own) {
            let pem = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
            let bad =
                || Error::Configuration(format!("{}: holds no usable CA certificate in PEM form", path.display()));
            let certificates: Vec<_> =
                CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().map_err(|_| bad())?;
            if certificates.is_empty() {
                return Err(bad());
            }
            for certificate in certificates {
                roots.add(certificate).map_err(|_| bad())?;
            }
        }
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the ring provider supports the default TLS versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let builder = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .connect_timeout(config.connect_timeout)
                .user_agent(config.user_agent.as_str())
        };
        let built = |result: reqwest::Result<reqwest::Client>| {
            result.map_err(|error| Error::Configuration(format!("HTTP client can't be set up: {error}")))
        };
        Ok(Self { proxied: built(builder().build())?, direct: built(builder().no_proxy().build())? })
    }

    /// The one to use for this address.
    pub(crate) fn for_url(&self, url: &Url) -> &reqwest::Client {
        let loopback = match url.host() {
            Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        if loopback { &self.direct } else { &self.proxied }
    }
}
