//! Configuration and keys, found and not found.

use std::fs;

use cvmfs::hash::{Algorithm, ContentHash};
use cvmfs::signature::{Envelope, PrivateKey, PublicKey, Scheme, seal};
use cvmfs::store::names;
use cvmfs::whitelist::Whitelist;

use super::stock::Stock;

#[test]
fn what_cannot_be_published_to_is_a_matter_of_the_configuration() {
    let stock = Stock::new("updates-r4", "");
    for (settings, reason) in [
        ("CVMFS_REPOSITORY_TYPE=stratum1", "replica"),
        ("CVMFS_UPSTREAM_STORAGE=gw,/tmp,http://localhost:4929/api/v1", "gateway"),
        ("CVMFS_UPSTREAM_STORAGE=", "CVMFS_UPSTREAM_STORAGE is not set"),
        ("if then", "a shell cannot read it"),
    ] {
        stock.configure(settings);
        stock.run(&["images", &stock.fqrn]).refused(3, reason);
    }
    // Read by all commands, but what is written with is looked at only then.
    stock.configure("CVMFS_HASH_ALGORITHM=rmd160");
    stock.run(&["images", &stock.fqrn]).refused(4, "CVMFS_HASH_ALGORITHM=rmd160");
    stock.configure("");
    stock.run(&["images", &stock.fqrn]).ok();
    stock.run(&["init", &stock.fqrn]).refused(1, "never made over it");
    stock.assert_sound();
}

fn whitelist(stock: &Stock) -> Whitelist {
    let document = fs::read(stock.storage.join(names::WHITELIST)).unwrap();
    let key = fs::read_to_string(stock.keys().join(format!("{}.pub", stock.fqrn))).unwrap();
    let envelope = Envelope::open(&document).unwrap();
    envelope.verify(&PublicKey::from_pem(&key).unwrap(), Scheme::Raw).unwrap();
    Whitelist::parse(envelope.text).unwrap()
}

#[test]
fn signing_keeps_the_certificates_that_the_same_key_has_allowed() {
    let stock = Stock::new("updates-r4", "");
    let master = fs::read_to_string(stock.keys().join(format!("{}.masterkey", stock.fqrn))).unwrap();
    let other = ContentHash::of(Algorithm::Sha1, b"another machine");
    let write = |list: &Whitelist, key: &PrivateKey| {
        let document = seal(&list.print(), Algorithm::Sha1, key, Scheme::Raw).unwrap();
        fs::write(stock.storage.join(names::WHITELIST), document).unwrap();
    };
    let ours = whitelist(&stock);
    let mut both = ours.clone();
    both.fingerprints.push(other);
    write(&both, &PrivateKey::from_pem(&master).unwrap());
    stock.run(&["sign", &stock.fqrn]).ok();
    let signed = whitelist(&stock);
    assert_eq!(signed.fingerprints, both.fingerprints);
    assert!(signed.expires >= ours.expires);

    // What somebody else has signed says nothing.
    write(&both, &PrivateKey::generate().unwrap());
    stock.run(&["sign", &stock.fqrn]).ok();
    assert_eq!(whitelist(&stock).fingerprints, ours.fingerprints);
    stock.assert_sound();
}

#[test]
fn without_the_master_key_all_works_but_signing() {
    let stock = Stock::new("updates-r4", "");
    let key = stock.keys().join(format!("{}.masterkey", stock.fqrn));
    let master = PrivateKey::from_pem(&fs::read_to_string(&key).unwrap()).unwrap();
    fs::remove_file(&key).unwrap();
    let ran = stock.ingest("new", &[("a", b"x")]);
    assert!(!ran.stderr.contains("whitelist"), "{}", ran.stderr);
    ran.ok();
    stock.run(&["sign", &stock.fqrn]).refused(1, "masterkey");
    // Near its end, it is said who can do something about it.
    let mut list = whitelist(&stock);
    list.expires = time::UtcDateTime::now() + time::Duration::days(2);
    let document = seal(&list.print(), Algorithm::Sha1, &master, Scheme::Raw).unwrap();
    fs::write(stock.storage.join(names::WHITELIST), document).unwrap();
    let ran = stock.ingest("new", &[("b", b"y")]);
    assert!(ran.stderr.contains("cvmfs_server resign"), "{}", ran.stderr);
    ran.ok();
    stock.assert_sound();
}

#[test]
fn nothing_is_published_over_what_is_forged() {
    let stock = Stock::new("updates-r4", "");
    let (manifest, whitelist_file) = (stock.storage.join(names::MANIFEST), stock.storage.join(names::WHITELIST));
    let sound = (fs::read(&manifest).unwrap(), fs::read(&whitelist_file).unwrap());
    let list = whitelist(&stock);
    let flip = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    };
    let other_key = seal(&list.print(), Algorithm::Sha1, &PrivateKey::generate().unwrap(), Scheme::Raw).unwrap();
    let mut other_certificate = list;
    other_certificate.fingerprints = vec![ContentHash::of(Algorithm::Sha1, b"another machine")];
    let master = fs::read_to_string(stock.keys().join(format!("{}.masterkey", stock.fqrn))).unwrap();
    let master = PrivateKey::from_pem(&master).unwrap();
    let other_certificate = seal(&other_certificate.print(), Algorithm::Sha1, &master, Scheme::Raw).unwrap();
    for (what, forged, reason) in [
        ("a bit of the manifest's signature", (flip(&sound.0), sound.1.clone()), "is not signed by its certificate"),
        (
            "a bit of the whitelist's signature",
            (sound.0.clone(), flip(&sound.1)),
            "is signed by none of the 1 trusted master keys",
        ),
        (
            "a whitelist signed by another key",
            (sound.0.clone(), other_key),
            "is signed by none of the 1 trusted master keys",
        ),
        ("a whitelist with another certificate", (sound.0.clone(), other_certificate), "is not on its whitelist"),
    ] {
        fs::write(&manifest, &forged.0).unwrap();
        fs::write(&whitelist_file, &forged.1).unwrap();
        let before = stock.files();
        let ran = stock.ingest("new", &[("a", b"never stored")]);
        assert_eq!(ran.status, Some(4), "{what}: {}", ran.stderr);
        assert!(ran.stderr.contains(reason), "{what}: {}", ran.stderr);
        assert!(stock.files() == before, "{what}: something was stored");
    }
    fs::write(&manifest, &sound.0).unwrap();
    fs::write(&whitelist_file, &sound.1).unwrap();
    stock.ingest("new", &[("a", b"never stored")]).ok();
    stock.assert_sound();
}
