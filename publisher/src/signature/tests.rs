use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::json;

use super::*;

/// Made by `openssl ecparam -genkey -name prime256v1`, signed by `openssl dgst -sha256 -sign`: what cosign does, by
/// another hand.
const OPENSSL_KEYS: [(&str, &str); 3] = [
    (include_str!("testdata/p256.pub"), include_str!("testdata/p256.sig")),
    (include_str!("testdata/rsa.pub"), include_str!("testdata/rsa.sig")),
    (include_str!("testdata/ed25519.pub"), include_str!("testdata/ed25519.sig")),
];
const OPENSSL_PAYLOAD: &[u8] = include_bytes!("testdata/payload.json");

fn pem(prefix: &[u8], key: &[u8]) -> String {
    let der = [prefix, key].concat();
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}

/// A key pair of P-256 with its public key in PEM form.
fn pair() -> (EcdsaKeyPair, Key) {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random).unwrap();
    // SubjectPublicKeyInfo of RFC 5480 up to the point itself.
    let prefix = hex::decode("3059301306072a8648ce3d020106082a8648ce3d030107034200").unwrap();
    let key = Key::from_pem(pem(&prefix, pair.public_key().as_ref()).as_bytes(), "test").unwrap();
    (pair, key)
}

fn payload(digest: ManifestDigest, kind: &str) -> Vec<u8> {
    let critical = json!({
        "identity": {"docker-reference": "quay.io/lab/x"},
        "image": {"docker-manifest-digest": digest.to_string()},
        "type": kind,
    });
    json!({"critical": critical, "optional": null}).to_string().into_bytes()
}

fn sign(pair: &EcdsaKeyPair, payload: &[u8]) -> Vec<u8> {
    pair.sign(&SystemRandom::new(), payload).unwrap().as_ref().to_vec()
}

#[test]
fn signatures_of_openssl_are_valid_for_each_kind_of_key() {
    let digest: ManifestDigest = ManifestDigest::of(b"the image");
    for (public, signature) in OPENSSL_KEYS {
        let key = Key::from_pem(public.as_bytes(), "x.pub").unwrap();
        let signature = base64::engine::general_purpose::STANDARD.decode(signature.trim()).unwrap();
        assert_eq!(check(std::slice::from_ref(&key), digest, OPENSSL_PAYLOAD, &signature), Ok(&key));
        let mut other = OPENSSL_PAYLOAD.to_vec();
        other[0] = b' ';
        assert!(check(&[key], digest, &other, &signature).is_err());
    }
}

#[test]
fn a_signature_counts_if_key_and_digest_are_right() {
    let (ours, our_key) = pair();
    let (theirs, their_key) = pair();
    let (image, other) = (ManifestDigest::of(b"image"), ManifestDigest::of(b"other"));
    let good = payload(image, TYPES[0]);
    let keys = [their_key, our_key];
    assert_eq!(check(&keys, image, &good, &sign(&ours, &good)).map(Key::fingerprint), Ok(keys[1].fingerprint()));
    let cases = [
        (good.clone(), sign(&theirs, &good), "signed by no key that is asked for"),
        (good.clone(), b"garbage".to_vec(), "signed by no key that is asked for"),
        (good.clone(), Vec::new(), "signed by no key that is asked for"),
        (payload(other, TYPES[0]), sign(&ours, &payload(other, TYPES[0])), "what is signed is another image"),
        (payload(image, "sbom"), sign(&ours, &payload(image, "sbom")), "what is signed is a statement of another kind"),
        (b"{}".to_vec(), sign(&ours, b"{}"), "what is signed is no statement about an image"),
    ];
    for (payload, signature, why) in cases {
        assert_eq!(check(&keys[1..], image, &payload, &signature), Err(why));
    }
}

#[test]
fn the_document_is_bounded() {
    let layer = |size: u64, signature: &str| {
        json!({
            "mediaType": PAYLOAD, "size": size, "digest": Digest::of(b"p").to_string(),
            "annotations": {ANNOTATION: signature},
        })
    };
    let manifest = |layers: Vec<serde_json::Value>| json!({"schemaVersion": 2, "layers": layers}).to_string();
    let listed = |layers| list(manifest(layers).as_bytes(), "t").map(|found| found.len());
    assert_eq!(listed(vec![layer(9, "YQ=="); 1000]), Ok(MAX_SIGNATURES));
    assert_eq!(listed(vec![layer(9, "YQ=="), layer(9, "?"), layer(MAX_PAYLOAD + 1, "YQ==")]), Ok(1));
    assert!(listed(vec![layer(MAX_PAYLOAD + 1, "YQ==")]).is_err());
    assert!(listed(vec![]).is_err() && list(b"no json", "t").is_err() && list(b"{}", "t").is_err());
    let (_, key) = pair();
    let found = [Found { payload: Digest::of(b"p"), signature: vec![1] }];
    let large = |_| Ok::<_, ()>(vec![b' '; MAX_PAYLOAD as usize + 1]);
    let error = verify(&[key], ManifestDigest::of(b"i"), &found, large).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "none of 1 signatures counts: what is signed is too large");
}

#[test]
fn keys_of_other_kinds_are_refused_by_name() {
    let random = SystemRandom::new();
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let prefix = hex::decode("302a300506032b6570032100").unwrap();
    assert!(Key::from_pem(pem(&prefix, pair.public_key().as_ref()).as_bytes(), "x").is_ok());
    // X25519: for key agreement, not for signatures.
    let prefix = hex::decode("302a300506032b656e032100").unwrap();
    let error = Key::from_pem(pem(&prefix, &[7; 32]).as_bytes(), "x.pub").unwrap_err();
    assert!(error.to_string().starts_with("x.pub: a key of the kind 1.3.101.110 is not known"), "{error}");
    for garbage in [&b""[..], b"-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----\n", &[0xff; 9]] {
        assert!(matches!(Key::from_pem(garbage, "x"), Err(KeyError::NotPem(_))));
    }
}
