use base64::Engine as _;
use image::digest::{Digest, ManifestDigest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::simple::{ANNOTATION, MAX_PAYLOAD, PAYLOAD, TYPES, check, list};
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
        (good.clone(), sign(&theirs, &good), Unsigned::Key),
        (good.clone(), b"garbage".to_vec(), Unsigned::Key),
        (good.clone(), Vec::new(), Unsigned::Key),
        (payload(other, TYPES[0]), sign(&ours, &payload(other, TYPES[0])), Unsigned::OtherImage),
        (payload(image, "sbom"), sign(&ours, &payload(image, "sbom")), Unsigned::OtherStatement),
        (b"{}".to_vec(), sign(&ours, b"{}"), Unsigned::NoStatement),
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
    let manifest = |layers: Vec<Value>| json!({"schemaVersion": 2, "layers": layers}).to_string();
    let listed = |layers| list(manifest(layers).as_bytes(), "t").map(|found| found.len());
    assert_eq!(listed(vec![layer(9, "YQ=="); 1000]), Ok(MAX_SIGNATURES));
    assert_eq!(listed(vec![layer(9, "YQ=="), layer(9, "?"), layer(MAX_PAYLOAD + 1, "YQ==")]), Ok(1));
    assert!(listed(vec![layer(MAX_PAYLOAD + 1, "YQ==")]).is_err());
    assert!(listed(vec![]).is_err() && list(b"no json", "t").is_err() && list(b"{}", "t").is_err());
    let (_, key) = pair();
    let large = vec![b' '; MAX_PAYLOAD as usize + 1];
    assert_eq!(check(&[key], ManifestDigest::of(b"i"), &large, &[1]), Err(Unsigned::TooLarge));
}

#[test]
fn signatures_are_looked_at_until_one_counts_and_each_reason_is_given_once() {
    let (_, key) = pair();
    let mut looked = 0;
    let mut look = |answer: Option<Unsigned>| {
        looked += 1;
        Ok::<_, ()>(answer.map_or(Ok(&key), Err))
    };
    let found = [Some(Unsigned::Key), None, Some(Unsigned::OtherImage)];
    assert_eq!(first(found, &mut look), Ok(Ok(key.fingerprint())));
    let found = [Some(Unsigned::Key), Some(Unsigned::OtherImage), Some(Unsigned::Key)];
    let error = first(found, &mut look).unwrap().unwrap_err();
    let why = "none of 3 signatures counts: signed by no key that is asked for; what is signed is another image";
    assert_eq!(error.to_string(), why);
    assert!(first(vec![Some(Unsigned::Key); 1000], &mut look).unwrap().is_err());
    assert_eq!(looked, 2 + 3 + MAX_SIGNATURES);
    assert_eq!(first([()], |()| Err::<Result<&Key, Unsigned>, _>("the registry is down")), Err("the registry is down"));
}

/// Made by `openssl dgst -sha256 -sign` over an encoding that the shell made.
const OPENSSL_BUNDLE: (&str, &[u8]) = (include_str!("testdata/bundle.pub"), include_bytes!("testdata/bundle.json"));

fn statement(digest: ManifestDigest, predicate: &str) -> Value {
    json!({
        "_type": "https://in-toto.io/Statement/v1", "predicateType": predicate, "predicate": {},
        "subject": [{"digest": {"sha256": digest.hex()}, "annotations": {"a": 1}}],
    })
}

/// A bundle around a payload, signed by this key.
fn bundle_of(pair: &EcdsaKeyPair, payload_type: &str, payload: &[u8]) -> Value {
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let signature = sign(pair, &bundle::encode(payload_type, payload));
    json!({
        "mediaType": bundle::BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": [{"logIndex": "1"}]},
        "dsseEnvelope": {
            "payload": base64(payload), "payloadType": payload_type, "signatures": [{"sig": base64(&signature), "keyid": ""}],
        },
    })
}

#[test]
fn a_bundle_of_openssl_is_valid() {
    let (public, bytes) = OPENSSL_BUNDLE;
    let keys = [Key::from_pem(public.as_bytes(), "x.pub").unwrap()];
    let image = ManifestDigest::of(b"the image");
    assert_eq!(bundle::check(&keys, image, bytes), Ok(&keys[0]));
    assert_eq!(bundle::check(&keys, ManifestDigest::of(b"other"), bytes), Err(Unsigned::OtherImage));
    assert_eq!(bundle::check(&[pair().1], image, bytes), Err(Unsigned::Key));
    // The example of DSSE's protocol.md.
    assert_eq!(
        bundle::encode("http://example.com/HelloWorld", b"hello world"),
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    );
}

#[test]
fn a_bundle_counts_if_key_statement_and_subject_are_right() {
    const TYPE: &str = "application/vnd.in-toto+json";
    let (ours, our_key) = pair();
    let (theirs, their_key) = pair();
    let (image, other) = (ManifestDigest::of(b"image"), ManifestDigest::of(b"other"));
    let keys = [their_key, our_key];
    let of = |value: &Value| serde_json::to_vec(value).unwrap();
    let signed = |statement: &Value| bundle_of(&ours, TYPE, &of(statement));
    let good = statement(image, bundle::SIGN);
    assert_eq!(bundle::check(&keys, image, &of(&signed(&good))), Ok(&keys[1]));

    // Spelled otherwise: another media type, the other alphabet, no padding.
    let mut spelled = signed(&good);
    spelled["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.3".into();
    for field in ["/dsseEnvelope/payload", "/dsseEnvelope/signatures/0/sig"] {
        let text = spelled.pointer(field).unwrap().as_str().unwrap();
        let text = text.replace('+', "-").replace('/', "_").trim_end_matches('=').to_owned();
        *spelled.pointer_mut(field).unwrap() = text.into();
    }
    assert_eq!(bundle::check(&keys, image, &of(&spelled)), Ok(&keys[1]));

    let changed = |change: &dyn Fn(&mut Value)| {
        let mut bundle = signed(&good);
        change(&mut bundle);
        bundle
    };
    let tampered = base64::engine::general_purpose::STANDARD.encode(of(&statement(other, bundle::SIGN)));
    let mut two_subjects = statement(other, bundle::SIGN);
    two_subjects["subject"].as_array_mut().unwrap().push(json!({"digest": {"sha512": "x"}}));
    let mut old = good.clone();
    old["_type"] = "https://in-toto.io/Statement/v0.1".into();
    let certificate = json!({"certificate": {"rawBytes": "TUlJ"}});
    let mut keyless = bundle_of(&theirs, TYPE, &of(&good));
    keyless["verificationMaterial"] = certificate;
    let cases = [
        ("another key", bundle_of(&theirs, TYPE, &of(&good)), Unsigned::Key),
        ("only a certificate", keyless, Unsigned::Certificate),
        ("another subject", signed(&statement(other, bundle::SIGN)), Unsigned::OtherImage),
        ("subjects, none of them the image", signed(&two_subjects), Unsigned::OtherImage),
        ("an attestation", signed(&statement(image, "https://slsa.dev/provenance/v1")), Unsigned::OtherStatement),
        ("a statement of another version", signed(&old), Unsigned::OtherStatement),
        ("no statement", signed(&json!({})), Unsigned::NoStatement),
        ("another type of payload", bundle_of(&ours, "text/plain", &of(&good)), Unsigned::NoStatement),
        ("another payload", changed(&|b| b["dsseEnvelope"]["payload"] = tampered.clone().into()), Unsigned::Key),
        ("another declared type", changed(&|b| b["dsseEnvelope"]["payloadType"] = "text/plain".into()), Unsigned::Key),
        ("no signature", changed(&|b| b["dsseEnvelope"]["signatures"] = json!([])), Unsigned::Bundle),
        (
            "two signatures",
            changed(&|b| {
                let twice = b["dsseEnvelope"]["signatures"][0].clone();
                b["dsseEnvelope"]["signatures"].as_array_mut().unwrap().push(twice);
            }),
            Unsigned::Bundle,
        ),
        ("no base64", changed(&|b| b["dsseEnvelope"]["payload"] = "?".into()), Unsigned::Bundle),
        (
            "an older bundle",
            changed(&|b| b["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1".into()),
            Unsigned::Bundle,
        ),
        (
            "a signature of a file",
            changed(&|b| drop(b.as_object_mut().unwrap().remove("dsseEnvelope"))),
            Unsigned::NoStatement,
        ),
        ("no bundle", json!([]), Unsigned::Bundle),
    ];
    for (what, bundle, why) in cases {
        assert_eq!(bundle::check(&keys[1..], image, &of(&bundle)), Err(why), "{what}");
    }
    let large = changed(&|b| b["verificationMaterial"]["x"] = "x".repeat(bundle::MAX_BUNDLE as usize).into());
    assert_eq!(bundle::check(&keys, image, &of(&large)), Err(Unsigned::TooLarge));
}

#[test]
fn the_manifest_of_a_bundle_has_one_layer_of_bounded_size() {
    let layer =
        |size: u64, kind: &str| json!({"mediaType": kind, "size": size, "digest": Digest::of(b"b").to_string()});
    let of = |layers: Vec<Value>| bundle::in_manifest(json!({"layers": layers}).to_string().as_bytes());
    assert_eq!(of(vec![layer(9, bundle::BUNDLE)]), Ok(Digest::of(b"b")));
    assert_eq!(of(vec![layer(bundle::MAX_BUNDLE + 1, bundle::BUNDLE)]), Err(Unsigned::TooLarge));
    for layers in [vec![], vec![layer(9, PAYLOAD)], vec![layer(9, bundle::BUNDLE); 2]] {
        assert_eq!(of(layers), Err(Unsigned::Bundle));
    }
    assert_eq!(bundle::in_manifest(b"no json"), Err(Unsigned::Bundle));
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
