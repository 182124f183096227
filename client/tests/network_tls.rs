//! `https`: servers with certificates of an authority that the system does not know.

#[path = "common/scripted.rs"]
mod scripted;

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use scripted::{Act, Getter, Object, Scripted};

/// An authority, and a server for 127.0.0.1 that it vouches for.
fn authority_and_server() -> (String, rustls::ServerConfig) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let certificate = params.signed_by(&key, &authority).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    (authority.pem(), config)
}

fn option(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

#[test]
fn a_server_is_trusted_through_a_bundle_or_a_directory_of_authorities_only() {
    let (authority, config) = authority_and_server();
    let object = Object::new(30, 30_000);
    let server = Scripted::tls(config).having(&object);
    let files = tempfile::tempdir().unwrap();
    let bundle = files.path().join("ca.pem");
    std::fs::write(&bundle, &authority).unwrap();
    std::fs::write(files.path().join("notes.txt"), "no certificate").unwrap();
    for option in [option("X509_CERT_BUNDLE", &bundle), option("X509_CERT_DIR", files.path())] {
        Getter::new(&server.repository(), "DIRECT", &[&option]).gets(&object);
    }
    let stranger = Getter::new(&server.repository(), "DIRECT", &["CVMFS_MAX_RETRIES=5"]);
    let said = stranger.refuses(&object);
    assert!(said.contains("certificate"), "{said}");
    assert_eq!(stranger.stats.retries.get(), 0, "trust does not come with time");
}

#[test]
fn an_untrusted_server_is_left_for_the_next_one() {
    let (_, config) = authority_and_server();
    let object = Object::new(31, 30_000);
    let (untrusted, good) = (Scripted::tls(config).having(&object), Scripted::new(Act::Serve).having(&object));
    let getter = Getter::new(&format!("{};{}", untrusted.repository(), good.repository()), "DIRECT", &[]);
    getter.gets(&object);
    assert_eq!((untrusted.count(), good.count()), (0, 1));
}
