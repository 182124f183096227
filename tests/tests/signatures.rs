//! What the operator asks of images before they are published: signatures, and that everybody may read them.

use std::path::PathBuf;

use base64::Engine as _;
use image::digest::ManifestDigest;
use image::layout::StatusRecord;
use publisher::report::Outcome::{Added, Failed, Unchanged};
use publisher::report::WishOutcome;
use publisher::signature::bundle::{self, BUNDLE, SIGN};
use publisher::signature::simple::tag;
use publisher::signature::{PolicySettings, PrivateImages, RuleSettings};
use rcgen::{KeyPair, SigningKey as _};
use registry::Credential;
use registry::testing::TestRegistry;
use scenarios::image_builder::{Format, Image, Pushed, file, index_entry, media, push_index};
use scenarios::repository::{Site, assert_outcome, public, wish};
use scenarios::tree::What;
use serde_json::{Value, json};
use tempfile::TempDir;

struct World {
    registry: TestRegistry,
    site: Site,
    key: KeyPair,
    directory: TempDir,
}

impl World {
    fn new() -> World {
        let (registry, site) = (TestRegistry::spawn(), Site::new());
        World { registry, site, key: KeyPair::generate().unwrap(), directory: tempfile::tempdir().unwrap() }
    }

    fn key_file(&self, name: &str, key: &KeyPair) -> PathBuf {
        let file = self.directory.path().join(name);
        std::fs::write(&file, key.public_key_pem()).unwrap();
        file
    }

    /// From now on, our key has to have signed what this pattern takes.
    fn ask_for_signatures(&mut self, pattern: &str) {
        let keys =
            vec![self.key_file("other.pub", &KeyPair::generate().unwrap()), self.key_file("ours.pub", &self.key)];
        let signatures = vec![RuleSettings { pattern: pattern.to_owned(), keys }];
        self.set(PolicySettings { signatures, ..PolicySettings::default() });
    }

    fn set(&mut self, settings: PolicySettings) {
        self.site.options.policy = settings.check().unwrap().into();
    }

    fn push(&self, name: &str, text: &str) -> Pushed {
        Image::of(&[&[file("f", text)]]).push(&self.registry, "lab/x", name)
    }

    /// Puts a signature beside an image, as cosign does: of a payload that says `about`.
    fn sign(&self, digest: ManifestDigest, about: ManifestDigest, key: &KeyPair) {
        let payload = json!({
            "critical": {
                "identity": {"docker-reference": "lab/x"},
                "image": {"docker-manifest-digest": about.to_string()},
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        let payload = payload.to_string().into_bytes();
        let signature = key.sign(&payload).unwrap();
        self.put(digest, &payload, &signature, payload.len());
    }

    fn put(&self, digest: ManifestDigest, payload: &[u8], signature: &[u8], size: usize) {
        let blob = self.registry.put_blob(payload.to_vec());
        let layer = json!({
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "size": size, "digest": blob.to_string(),
            "annotations": {
                "dev.cosignproject.cosign/signature": base64::engine::general_purpose::STANDARD.encode(signature),
            },
        });
        let config = json!({"mediaType": media::OCI_CONFIG, "size": 2, "digest": blob.to_string()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": config, "layers": [layer],
        });
        self.registry.put_manifest("lab/x", &tag(digest), media::OCI_MANIFEST, manifest.to_string());
    }

    /// Puts a bundle into the registry that refers to `digest`, as cosign 3 does, with a statement that says `about`. Gives the entry
    /// of an index that leads to it.
    fn put_bundle(&self, digest: ManifestDigest, about: ManifestDigest, predicate: &str, key: &KeyPair) -> Value {
        let payload = json!({
            "_type": "https://in-toto.io/Statement/v1", "predicateType": predicate, "predicate": {},
            "subject": [{"digest": {"sha256": about.hex()}}],
        });
        let payload = payload.to_string().into_bytes();
        let payload_type = "application/vnd.in-toto+json";
        let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let signature = base64(&key.sign(&bundle::encode(payload_type, &payload)).unwrap());
        let bundle = json!({
            "mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": "x"}},
            "dsseEnvelope": {"payload": base64(&payload), "payloadType": payload_type, "signatures": [{"sig": signature}]},
        });
        self.refer(digest, bundle.to_string().into_bytes(), predicate)
    }

    /// Puts an artifact of the type of bundles into the registry that refers to `digest`.
    fn refer(&self, digest: ManifestDigest, bundle: Vec<u8>, predicate: &str) -> Value {
        let (size, blob, empty) = (bundle.len(), self.registry.put_blob(bundle), self.registry.put_blob("{}"));
        let annotations =
            json!({"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": predicate});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "artifactType": BUNDLE, "annotations": annotations,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "digest": empty.to_string()},
            "layers": [{"mediaType": BUNDLE, "size": size, "digest": blob.to_string()}],
            "subject": {"mediaType": media::OCI_MANIFEST, "size": 1, "digest": digest.to_string()},
        });
        let bytes = manifest.to_string();
        let (digest, size) = (ManifestDigest::of(bytes.as_bytes()).to_string(), bytes.len());
        self.registry.put_false_manifest("lab/x", &digest, media::OCI_MANIFEST, bytes);
        json!({
            "mediaType": media::OCI_MANIFEST, "artifactType": BUNDLE, "size": size, "digest": digest, "annotations": annotations,
        })
    }

    /// Lists what refers to `digest` under the tag of registries that keep no such lists themselves.
    fn put_list(&self, digest: ManifestDigest, entries: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries});
        self.registry.put_manifest("lab/x", &format!("sha256-{}", digest.hex()), media::OCI_INDEX, index.to_string());
    }

    fn convert(&self, name: &str) -> WishOutcome {
        self.site.convert(&[wish(&self.registry, &format!("lab/x:{name}"))]).wishes.remove(0)
    }

    #[track_caller]
    fn assert_refused(&self, name: &str, why: &str) {
        self.registry.forget_requests();
        let outcome = self.convert(name);
        assert_outcome(&outcome, Failed);
        let error = outcome.error.unwrap();
        assert!(error.contains(why) && error.contains(&format!("lab/x:{name}")), "{error}");
    }

    fn status(&self, name: &str) -> StatusRecord {
        let path = format!(".metadata/{}/status.json", public(&self.registry, &format!("lab/x:{name}")));
        let tree = self.site.tree("");
        let What::File(bytes) = &tree[path.as_bytes()].what else { panic!("no file") };
        StatusRecord::parse(bytes).unwrap()
    }
}

#[test]
fn only_images_with_a_valid_signature_are_published() {
    let mut world = World::new();
    world.ask_for_signatures("*/lab/x:*");
    let stranger = KeyPair::generate().unwrap();
    let pushed = world.push("1", "a");
    let (digest, other) = (pushed.manifest, ManifestDigest::of(b"another image"));
    world.assert_refused("1", &format!("there is no {}", tag(digest)));
    assert_eq!(world.registry.count("GET", "/blobs/"), 0, "nothing is fetched");
    world.sign(digest, digest, &stranger);
    world.assert_refused("1", "signed by no key that is asked for");
    world.sign(digest, other, &world.key);
    world.assert_refused("1", "what is signed is another image");
    world.put(digest, b"garbage", b"garbage", 7);
    world.assert_refused("1", "signed by no key");
    world.put(digest, &vec![b' '; 100_000], b"garbage", 9);
    world.assert_refused("1", "too large");
    world.put(digest, b"{}", b"x", 1 << 30);
    world.assert_refused("1", "holds no signatures");
    world.registry.put_manifest("lab/x", &tag(digest), media::OCI_MANIFEST, "{}");
    world.assert_refused("1", "holds no signatures");
    assert_eq!(world.site.revision(), 0);

    world.sign(digest, digest, &world.key);
    assert_outcome(&world.convert("1"), Added);
    assert_eq!(world.status("1").signed_by.len(), 1);
    world.registry.forget_requests();
    assert_outcome(&world.convert("1"), Unchanged);
    assert_eq!(world.registry.count("GET", "sha256-"), 0, "the record says that it was signed");
    world.site.assert_sound();
}

/// Whether the registry lists what refers to an image, or those who push keep the list.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Listing {
    Registry,
    Tag,
}

#[test]
fn bundles_of_cosign_3_count_wherever_they_are_listed() {
    for listing in [Listing::Registry, Listing::Tag] {
        let mut world = World::new();
        world.ask_for_signatures("*");
        if listing == Listing::Registry {
            world.registry.list_referrers();
            world.registry.page_tags(2);
        }
        let (digest, other) = (world.push("1", "a").manifest, ManifestDigest::of(b"another image"));
        world.assert_refused("1", &format!("there is no {}, and no bundle refers to {digest}", tag(digest)));
        let stranger = KeyPair::generate().unwrap();
        let mut entries = Vec::new();
        let mut put = |entry: Value| {
            entries.push(entry);
            if listing == Listing::Tag {
                world.put_list(digest, &entries);
            }
        };
        // An attestation says how an image was made, and not that it may be published.
        put(world.put_bundle(digest, digest, "https://slsa.dev/provenance/v1", &world.key));
        world.assert_refused("1", "no bundle refers to");
        assert_eq!(world.registry.count("GET", "/blobs/"), 0, "it isn't even fetched");
        let mut lying = world.put_bundle(digest, digest, "https://slsa.dev/verification_summary/v1", &world.key);
        lying["annotations"] = Value::Null;
        let mut of_another = world.put_bundle(digest, other, SIGN, &world.key);
        of_another["artifactType"] = Value::Null;
        put(of_another);
        world.assert_refused("1", "what is signed is another image");
        put(world.put_bundle(digest, digest, SIGN, &stranger));
        world.assert_refused("1", "signed by no key that is asked for");
        put(world.refer(digest, b"no bundle".to_vec(), SIGN));
        world.assert_refused("1", "none of 3 signatures counts");
        put(world.refer(digest, vec![b' '; 300_000], SIGN));
        world.assert_refused("1", "what is signed is too large");
        if listing == Listing::Tag {
            put(lying);
            world.assert_refused("1", "what is signed is a statement of another kind");
            put(
                json!({"mediaType": media::OCI_MANIFEST, "size": 2, "digest": other.to_string(), "artifactType": BUNDLE}),
            );
            world.assert_refused("1", "the registry lists a signature that it has not got");
        }
        put(world.put_bundle(digest, digest, SIGN, &world.key));
        assert_outcome(&world.convert("1"), Added);
        assert_eq!(world.status("1").signed_by.len(), 1, "{listing:?}");
        world.registry.forget_requests();
        assert_outcome(&world.convert("1"), Unchanged);
        assert_eq!(world.registry.count("GET", "/referrers/"), 0, "the record says that it was signed");
    }
}

#[test]
fn either_form_of_a_signature_counts_beside_a_foul_one_of_the_other() {
    let mut world = World::new();
    world.ask_for_signatures("*");
    let digest = world.push("1", "a").manifest;
    world.registry.put_manifest("lab/x", &tag(digest), media::OCI_MANIFEST, "{}");
    let entry = world.put_bundle(digest, digest, SIGN, &world.key);
    world.put_list(digest, &[entry]);
    assert_outcome(&world.convert("1"), Added);
    let digest = world.push("2", "b").manifest;
    world.registry.put_manifest("lab/x", &format!("sha256-{}", digest.hex()), media::OCI_INDEX, "no index");
    world.sign(digest, digest, &world.key);
    assert_outcome(&world.convert("2"), Added);
}

#[test]
fn a_registry_can_list_as_much_as_it_likes() {
    let mut world = World::new();
    world.ask_for_signatures("*");
    let digest = world.push("1", "a").manifest;
    let mut entries: Vec<Value> = (0..5000)
        .map(|n| {
            let digest = ManifestDigest::of(format!("{n}").as_bytes()).to_string();
            json!({"mediaType": media::OCI_MANIFEST, "artifactType": BUNDLE, "size": 2, "digest": digest})
        })
        .collect();
    let good = world.put_bundle(digest, digest, SIGN, &world.key);
    entries.push(good.clone());
    world.put_list(digest, &entries);
    world.assert_refused("1", "none of 64 signatures counts");
    assert!(world.registry.requests().len() < 100, "and no more are asked for");
    world.put_list(digest, &[good]);
    world.registry.fault(registry::testing::Fault::status(500).on("/referrers/").always());
    let outcome = world.convert("1");
    assert_outcome(&outcome, Failed);
    assert!(outcome.error.unwrap().contains("the registry answers 500"), "a registry that fails is no proof");
    world.registry.heal();
    assert_outcome(&world.convert("1"), Added);
}

#[test]
fn a_signature_of_the_index_covers_its_images() {
    let mut world = World::new();
    world.ask_for_signatures("*");
    let push = |text: &str, name: &str| {
        let amd = Image::of(&[&[file("f", text)]]).push_untagged(&world.registry, "lab/x");
        let entries = [index_entry(&amd, media::OCI_MANIFEST, "linux/amd64")];
        let (index, _) = push_index(&world.registry, "lab/x", name, Format::Oci, &entries);
        (index, amd.manifest)
    };
    let (index, _) = push("a", "1");
    world.sign(index, index, &world.key);
    assert_outcome(&world.convert("1"), Added);
    let (_, manifest) = push("b", "2");
    world.sign(manifest, manifest, &world.key);
    assert_outcome(&world.convert("2"), Added);
}

#[test]
fn what_is_published_is_looked_at_again_when_signatures_are_asked_for() {
    let mut world = World::new();
    let pushed = world.push("1", "a");
    assert_outcome(&world.convert("1"), Added);
    world.ask_for_signatures("*/lab/*");
    world.assert_refused("1", "is not signed");
    assert_eq!(world.site.revision(), 1, "what is published stays");
    world.sign(pushed.manifest, pushed.manifest, &world.key);
    assert_outcome(&world.convert("1"), Unchanged);
    assert_eq!((world.site.revision(), world.status("1").signed_by.len()), (2, 1), "the record says so now");
}

#[test]
fn images_that_only_credentials_can_read_are_refused_unless_the_operator_means_them() {
    let mut world = World::new();
    world.registry.require_basic("robot", "secret");
    let host = world.registry.address().to_string();
    world.site.credentials = world.site.credentials.clone().with(host, Credential::password("robot", "secret"));
    world.push("1", "a");
    let refuse = PolicySettings { private_images: Some(PrivateImages::Refuse), ..PolicySettings::default() };
    world.set(refuse.clone());
    world.assert_refused("1", "can be read with credentials only");
    assert_eq!(world.registry.count("GET", "/blobs/"), 0);
    world.set(PolicySettings { public_images: vec!["*/lab/*".to_owned()], ..refuse.clone() });
    assert_outcome(&world.convert("1"), Added);
    world.push("2", "b");
    world.set(PolicySettings::default());
    assert_outcome(&world.convert("2"), Added);

    // What everybody may read is no question.
    let mut open = World::new();
    open.push("1", "a");
    open.set(refuse);
    assert_outcome(&open.convert("1"), Added);
}
