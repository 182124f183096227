//! `https`: servers with certificates of an authority that the system does not know.

#[path = "common/scripted.rs"]
mod scripted;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// A proxy that makes tunnels, or answers with a status instead; counts the requests. Ends with the process.
fn tunnels(status: u16) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            counted.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || tunnel(client, status));
        }
    });
    (address, count)
}

fn tunnel(mut client: TcpStream, status: u16) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut request, mut line) = (String::new(), String::new());
    reader.read_line(&mut request)?;
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    client.write_all(format!("HTTP/1.1 {status} X\r\n\r\n").as_bytes())?;
    let server = request.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).filter(|_| status == 200);
    let Some(server) = server else { return Ok(()) };
    let server = TcpStream::connect(server)?;
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    let back = std::thread::spawn(move || std::io::copy(&mut from, &mut to).map(|_| to.shutdown(Shutdown::Both)));
    std::io::copy(&mut reader, &mut &server)?;
    let _ = server.shutdown(Shutdown::Both);
    let _ = back.join();
    Ok(())
}

#[test]
fn trusted_servers_are_reached_through_proxies_that_do_not_see_what_passes() {
    let (authority, config) = authority_and_server();
    let object = Object::new(32, 30_000);
    let server = Scripted::tls(config).having(&object);
    let files = tempfile::tempdir().unwrap();
    let bundle = files.path().join("ca.pem");
    std::fs::write(&bundle, &authority).unwrap();
    let ((refusing, refused), (good, used)) = (tunnels(503), tunnels(200));
    let proxies = format!("http://{refusing};http://{good}");
    let options = [option("X509_CERT_BUNDLE", &bundle), "CVMFS_MAX_RETRIES=0".into()];
    let getter = Getter::new(&server.repository(), &proxies, &[&options[0], &options[1]]);
    getter.gets(&object);
    assert_eq!((refused.load(Ordering::SeqCst), used.load(Ordering::SeqCst), server.count()), (1, 1, 1));
    assert_eq!(getter.proxy(), format!("http://{good}"));
}
