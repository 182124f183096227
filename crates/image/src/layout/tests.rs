//! Every path and record, against the texts of the design.

use super::*;
use crate::platform::Platform;

fn image() -> ImageId {
    ImageId::parse_hex(&"75".repeat(32)).unwrap()
}

fn layer() -> LayerDigest {
    LayerDigest::parse_hex(&"ab".repeat(32)).unwrap()
}

fn name(text: &str) -> PublicName {
    PublicName::parse(text).unwrap()
}

fn arm() -> Option<PlatformDirectory> {
    Some(Platform::parse("linux/arm64/v8").unwrap().directory())
}

fn every_path() -> Vec<(OwnedPath, String)> {
    let (flat, digits) = ("75".repeat(32), "ab".repeat(32));
    let mut paths = vec![
        (OwnedPath::Public { platform: None, name: name("r.io/a/b:1") }, "r.io/a/b:1".to_owned()),
        (OwnedPath::Public { platform: None, name: name("host:5000/b:1") }, "host:5000/b:1".to_owned()),
        (OwnedPath::Public { platform: None, name: name("b:1") }, "b:1".to_owned()),
        (
            OwnedPath::Public { platform: None, name: name(&format!("r.io/b:sha256:{digits}")) },
            format!("r.io/b:sha256:{digits}"),
        ),
        (OwnedPath::Public { platform: arm(), name: name("r.io/a/b:1") }, ".multiarch/arm64:v8/r.io/a/b:1".to_owned()),
        (OwnedPath::Flat(image()), format!(".flat/75/{flat}")),
        (OwnedPath::FlatCover(image()), format!(".flat/75/.cover-{flat}")),
        (OwnedPath::FlatStartup(image()), format!(".flat/75/.cvmfsstartup-{flat}")),
        (OwnedPath::Layer(layer()), format!(".layers/ab/{digits}")),
        (OwnedPath::LayerContent(layer()), format!(".layers/ab/{digits}/layerfs")),
        (OwnedPath::LayerOverlay(layer()), format!(".layers/ab/{digits}/.overlay")),
        (OwnedPath::LayerRecord(layer()), format!(".layers/ab/{digits}/.metadata/layers.json")),
        (OwnedPath::LayerFormat(layer()), format!(".layers/ab/{digits}/.metadata/format.json")),
        (OwnedPath::Image { platform: None, name: name("r.io/a/b:1") }, ".metadata/r.io/a/b:1".to_owned()),
        (OwnedPath::Image { platform: arm(), name: name("b:1") }, ".metadata/.multiarch/arm64:v8/b:1".to_owned()),
        (
            OwnedPath::Version { platform: None, name: name("r.io/a/b:1"), key: layer().digest() },
            format!(".metadata/.versions/r.io/a/b:1/{digits}"),
        ),
        (
            OwnedPath::VersionRecord { platform: arm(), name: name("b:1"), key: layer().digest() },
            format!(".metadata/.versions/.multiarch/arm64:v8/b:1/{digits}/version.json"),
        ),
        (
            OwnedPath::Condemned(CondemnedKind::Layer, layer().digest()),
            format!(".metadata/.condemned/layer/ab/{digits}.json"),
        ),
        (
            OwnedPath::Condemned(CondemnedKind::Flat, image().digest()),
            format!(".metadata/.condemned/flat/75/{flat}.json"),
        ),
        (
            OwnedPath::Index(IndexKey::DiffId(DiffId::from_digest(layer().digest()))),
            format!(".index/diff-id/ab/{digits}"),
        ),
        (
            OwnedPath::Index(IndexKey::ChainId(ChainId::from_digest(layer().digest()))),
            format!(".index/chain-id/ab/{digits}"),
        ),
        (
            OwnedPath::Index(IndexKey::Image(ChainId::from_digest(layer().digest()))),
            format!(".index/image/ab/{digits}"),
        ),
        (OwnedPath::Index(IndexKey::Config(image())), format!(".index/config/75/{flat}")),
        (
            OwnedPath::Index(IndexKey::Manifest(ManifestDigest::from_digest(layer().digest()))),
            format!(".index/manifest/ab/{digits}"),
        ),
        (OwnedPath::Index(IndexKey::Users(layer())), format!(".index/users/ab/{digits}.json")),
        (OwnedPath::PodmanStore, "podmanStore".to_owned()),
        (OwnedPath::PodmanFile(StorePath::Images), "podmanStore/overlay-images/images.json".to_owned()),
        (OwnedPath::PodmanFile(StorePath::Image(image())), format!("podmanStore/overlay-images/{flat}")),
    ];
    for file in ImageFile::ALL {
        for (platform, below) in [(None, ""), (arm(), ".multiarch/arm64:v8/")] {
            let text = format!(".metadata/{below}r.io/a/b:1/{}", file.file_name());
            paths.push((OwnedPath::ImageFile { platform, name: name("r.io/a/b:1"), file }, text));
        }
    }
    paths
}

#[test]
fn prints_and_parses_every_path() {
    let below = Layout::below("site/images").unwrap();
    for (path, text) in every_path() {
        assert_eq!(Layout::new().print(&path), text);
        assert_eq!(Layout::new().parse(&text), Some(path.clone()), "{text}");
        assert_eq!(below.print(&path), format!("site/images/{text}"));
        assert_eq!(below.parse(&format!("/site/images/{text}")), Some(path), "{text}");
    }
}

#[test]
fn knows_only_its_own_paths() {
    let hex = "ab".repeat(32);
    for text in [
        "",
        "/",
        ".flat",
        ".flat/ab",
        &format!(".flat/cd/{hex}"),
        &format!(".flat/ab/{hex}/etc"),
        &format!(".flat/cd/.cvmfsstartup-{hex}"),
        &format!(".flat/ab/.cvmfsbundle-{hex}"),
        &format!(".flat/a/{hex}"),
        &format!(".flat//{hex}"),
        &format!(".flat/ab/{}", hex.to_uppercase()),
        ".layers/ab/abab",
        &format!(".layers/ab/{hex}/layerfs/etc"),
        &format!(".layers/ab/{hex}/.metadata"),
        &format!(".layers/ab/{hex}/.metadata/origin.json"),
        ".multiarch/amd64",
        ".multiarch/x86_64/r.io/a:1",
        ".metadata",
        ".metadata/r.io",
        ".metadata/r.io/a:1/other.json",
        ".metadata/.versions/r.io/a:1/abab",
        ".metadata/.versions/r.io/a:1/version.json",
        &format!(".metadata/.versions/r.io/a/{hex}"),
        ".metadata/remove-schedule.json",
        &format!(".metadata/.condemned/chain/ab/{hex}.json"),
        &format!(".index/diff-id/ab/{hex}/x"),
        &format!(".index/other/ab/{hex}"),
        &format!(".index/users/ab/{hex}"),
        ".chains/ab",
        "podmanStore/overlay",
        "r.io/a",
        "r.io/A:1",
        "r.io/../a:1",
        "new_repository",
    ] {
        assert_eq!(Layout::new().parse(text), None, "{text}");
    }
    assert_eq!(Layout::below("images").unwrap().parse("r.io/a:1"), None);
    for bad in ["a/../b", "a//b", ".", ".."] {
        assert!(Layout::below(bad).is_none(), "{bad}");
    }
}

#[test]
fn links_are_relative_and_lead_back() {
    let centos = OwnedPath::Public { platform: None, name: name("registry.hub.docker.com/library/centos:7") };
    let flat = OwnedPath::Flat(image());
    let diff_id = OwnedPath::Index(IndexKey::DiffId(DiffId::of(b"x")));
    for layout in [Layout::new(), Layout::below("images").unwrap()] {
        assert_eq!(layout.link(&centos, &flat), format!("../../.flat/75/{}", "75".repeat(32)));
        assert_eq!(
            layout.link(&diff_id, &OwnedPath::Layer(layer())),
            format!("../../../.layers/ab/{}", "ab".repeat(32))
        );
        for (from, to) in [(&centos, &flat), (&diff_id, &OwnedPath::Layer(layer()))] {
            assert_eq!(layout.parse_link(from, &layout.link(from, to)).as_ref(), Some(to));
        }
        let outside = format!("../../../.flat/75/{}", "75".repeat(32));
        assert_eq!(layout.parse_link(&centos, &outside), None);
        assert_eq!(layout.parse_link(&centos, "/cvmfs/x/.flat"), None);
    }
    let top = OwnedPath::Public { platform: None, name: name("b:1") };
    assert_eq!(Layout::new().link(&top, &flat), format!(".flat/75/{}", "75".repeat(32)));
}

#[test]
fn begins_catalogs_where_the_tree_grows() {
    let hex = "ab".repeat(32);
    let catalogs = |path: &OwnedPath| -> Vec<String> {
        let found = Layout::below("p").unwrap().nested_catalogs(path);
        let rule = |rule| if rule == CatalogRule::Always { "" } else { "?" };
        found.iter().map(|one| format!("{}{}", one.path.strip_prefix("p/").unwrap(), rule(one.rule))).collect()
    };
    let public = |platform, text: &str| catalogs(&OwnedPath::Public { platform, name: name(text) });
    assert_eq!(public(None, "b:1"), Vec::<String>::new());
    assert_eq!(public(None, "r.io/b:1"), ["r.io"]);
    assert_eq!(public(None, "r.io/a/c/b:1"), ["r.io", "r.io/a?", "r.io/a/c?"]);
    assert_eq!(public(arm(), "r.io/b:1"), [".multiarch/arm64:v8", ".multiarch/arm64:v8/r.io?"]);
    let image = |platform, text: &str| OwnedPath::Image { platform, name: name(text) };
    assert_eq!(catalogs(&image(None, "b:1")), [".metadata"]);
    let expected = [".metadata", ".metadata/r.io", ".metadata/r.io/a?"];
    assert_eq!(catalogs(&image(None, "r.io/a/b:1")), expected);
    let file = OwnedPath::ImageFile { platform: None, name: name("r.io/a/b:1"), file: ImageFile::Status };
    assert_eq!(catalogs(&file), expected);
    assert_eq!(
        catalogs(&image(arm(), "r.io/b:1")),
        [".metadata", ".metadata/.multiarch/arm64:v8", ".metadata/.multiarch/arm64:v8/r.io?"]
    );
    for path in [OwnedPath::Layer(layer()), OwnedPath::LayerContent(layer()), OwnedPath::LayerRecord(layer())] {
        assert_eq!(catalogs(&path), [".layers", ".layers/ab", &format!(".layers/ab/{hex}")]);
    }
    assert_eq!(catalogs(&OwnedPath::Flat(ImageId::from_digest(layer().digest())))[2], format!(".flat/ab/{hex}"));
    assert_eq!(catalogs(&OwnedPath::Index(IndexKey::Users(layer()))), [".index", ".index/users/ab"]);
    assert_eq!(
        catalogs(&OwnedPath::Condemned(CondemnedKind::Layer, layer().digest())),
        [".metadata", ".metadata/.condemned", ".metadata/.condemned/layer"]
    );
    let version = |platform, text: &str| OwnedPath::VersionRecord { platform, name: name(text), key: layer().digest() };
    let expected = [".metadata", ".metadata/.versions", ".metadata/.versions/r.io", ".metadata/.versions/r.io/a?"];
    assert_eq!(catalogs(&version(None, "r.io/a/b:1")), expected);
    assert_eq!(catalogs(&version(None, "b:1")), [".metadata", ".metadata/.versions"]);
    assert_eq!(
        catalogs(&version(arm(), "r.io/b:1"))[2..],
        [".metadata/.versions/.multiarch/arm64:v8", ".metadata/.versions/.multiarch/arm64:v8/r.io?"]
    );
    assert_eq!(catalogs(&OwnedPath::PodmanStore), ["podmanStore"]);
}

#[test]
fn keeps_the_bytes_of_existing_records() {
    let digit = |c: &str| format!("sha256:{}", c.repeat(64));
    let text = format!(
        concat!(
            r#"{{"SchemaVersion":2,"MediaType":"application/vnd.oci.image.manifest.v1+json","#,
            r#""Config":{{"MediaType":"application/vnd.oci.image.config.v1+json","Size":598,"Digest":"{}"}},"#,
            r#""Layers":[{{"MediaType":"application/vnd.oci.image.layer.v1.tar+gzip","Size":1028755,"Digest":"{}"}}]}}"#
        ),
        digit("3"),
        digit("4")
    );
    let record = ManifestRecord::parse(text.as_bytes()).unwrap();
    assert_eq!(record.config.digest.to_string(), digit("3"));
    assert_eq!(String::from_utf8(record.to_bytes()).unwrap(), text);
    let lower = text.replace("SchemaVersion", "schemaVersion").replace("MediaType", "mediaType");
    let lower = lower.replace("\"Config", "\"config").replace("Size", "size").replace("Digest", "digest");
    assert_eq!(ManifestRecord::parse(lower.replace("Layers", "layers").as_bytes()).unwrap(), record);

    // the shape in which the existing tool wrote it
    let old = format!(
        "[\n {{\n  \"id\": \"{}\",\n  \"created\": \"2026-11-21T20:26:00.207895824Z\",\n  \"compressed-diff-digest\": \
         \"{}\",\n  \"diff-digest\": \"{}\",\n  \"diff-size\": 133120\n }}\n]",
        "e".repeat(64),
        digit("0"),
        digit("e")
    );
    let record = LayersJson::parse(old.as_bytes()).unwrap();
    assert_eq!((record.size, record.compressed_size), (133_120, None));
    assert_eq!(LayersJson::parse(&record.to_bytes()).unwrap(), record);
    let squeezed: String = old.chars().filter(|c| !c.is_whitespace()).collect();
    assert_eq!(String::from_utf8(record.to_bytes()).unwrap(), squeezed + "\n");
}

#[test]
fn writes_the_records_of_the_design() {
    let x = "ab".repeat(32);
    let format = FormatRecord {
        whiteouts: FormatRecord::OVERLAY.to_owned(),
        xattrs: true,
        diff_id: DiffId::from_digest(layer().digest()),
        size: 10,
        entries: 3,
        rows: 4,
        lost: vec![LostRecord { path: "a".to_owned(), what: "xattr user.x".to_owned() }],
        lost_more: 0,
        owners: true,
        settled_on: None,
        implicit: Vec::new(),
    };
    let text = format!(
        concat!(
            r#"{{"schema":1,"whiteouts":"overlay","xattrs":true,"diff_id":"sha256:{}","size":10,"entries":3,"rows":4,"#,
            r#""lost":[{{"path":"a","what":"xattr user.x"}}]}}"#,
            "\n"
        ),
        x
    );
    assert_eq!(String::from_utf8(format.to_bytes()).unwrap(), text);
    assert_eq!(FormatRecord::parse(text.replace("}\n", ",\"later\":1}").as_bytes()).unwrap(), format);
    let listed = FormatRecord { implicit: vec!["usr".to_owned()], ..format };
    assert_eq!(FormatRecord::parse(&listed.to_bytes()).unwrap(), listed);

    let status = StatusRecord {
        flat: true,
        signed_by: Vec::new(),
        image: "https://r.io/a:1".to_owned(),
        digest: ManifestDigest::from_digest(layer().digest()),
        index: None,
        config: image(),
        platform: Platform::parse("linux/amd64").unwrap(),
        wished: None,
        published: timestamp(1_795_291_200),
        revision: 17,
        generator: "test 1".to_owned(),
        startup: None,
        bundles: false,
    };
    let text = String::from_utf8(status.to_bytes()).unwrap();
    assert!(text.starts_with(r#"{"schema":1,"image":"https://r.io/a:1","digest":"sha256:abab"#), "{text}");
    assert!(text.contains(r#""platform":"linux/amd64","published":"2026-11-21T20:00:00Z","revision":17"#), "{text}");
    assert_eq!(StatusRecord::parse(text.as_bytes()).unwrap(), status);
    let indexed = StatusRecord {
        index: Some(ManifestDigest::of(b"index")),
        startup: Some(Digest::of(b"list")),
        bundles: true,
        ..status
    };
    assert_eq!(StatusRecord::parse(&indexed.to_bytes()).unwrap(), indexed);
    assert_eq!(indexed.place().as_str(), "amd64");
    let of = |text: &str| Platform::parse(text).unwrap();
    let runs = StatusRecord { platform: of("linux/arm/v6"), wished: Some(of("linux/arm/v7")), ..indexed };
    assert_eq!(StatusRecord::parse(&runs.to_bytes()).unwrap(), runs);
    assert_eq!(runs.place().as_str(), "arm:v7");
    let later = text.replace("\"schema\":1", "\"schema\":2");
    assert!(matches!(StatusRecord::parse(later.as_bytes()), Err(RecordError::Schema { found: 2, .. })));
    assert!(StatusRecord::parse(b"{}").is_err());

    let condemned =
        Condemned { since: timestamp(0), reason: "tag moved".to_owned(), last_images: vec!["r.io/a:1".to_owned()] };
    let text = r#"{"schema":1,"since":"1970-01-01T00:00:00Z","reason":"tag moved","last_images":["r.io/a:1"]}"#;
    assert_eq!(String::from_utf8(condemned.to_bytes()).unwrap(), format!("{text}\n"));
    assert_eq!(Condemned::parse(text.as_bytes()).unwrap(), condemned);
    let version = VersionRecord {
        flat: true,
        several: false,
        since: timestamp(0),
        reason: "tag moved".to_owned(),
        digest: None,
        index: None,
        config: image(),
        layers: vec![layer()],
    };
    assert_eq!(VersionRecord::parse(&version.to_bytes()).unwrap(), version);
    assert_eq!(unix_seconds(&timestamp(1_795_291_200)), Some(1_795_291_200));
    assert_eq!(unix_seconds("yesterday"), None);
    let users = UsersRecord { images: vec![image()] };
    assert_eq!(UsersRecord::parse(&users.to_bytes()).unwrap(), users);
    assert_eq!(timestamp(i64::MAX), "9999-12-31T23:59:59Z");
}

#[test]
fn a_variant_link_leads_to_the_architecture_of_the_client() {
    let layout = Layout::new();
    let (deep, top) = (name("r.io/a/b:1"), name("b:1"));
    let arm = arm().unwrap();
    let text = layout.variant_link(&deep, &arm);
    assert_eq!(text, "../../.multiarch/$(CVMFS_ARCH:-arm64:v8)/r.io/a/b:1");
    assert_eq!(layout.parse_variant_link(&deep, &text), Some(arm.clone()));
    assert_eq!(layout.variant_link(&top, &arm), ".multiarch/$(CVMFS_ARCH:-arm64:v8)/b:1");
    for other in [
        "../.multiarch/$(CVMFS_ARCH:-amd64)/r.io/a/b:1",
        "../../.multiarch/$(CVMFS_ARCH)/r.io/a/b:1",
        "../../.multiarch/$(CVMFS_ARCH:-x86_64)/r.io/a/b:1",
        "../../.multiarch/amd64/r.io/a/b:1",
        "../../.multiarch/$(CVMFS_ARCH:-amd64)/r.io/a/b:2",
    ] {
        assert_eq!(layout.parse_variant_link(&deep, other), None, "{other}");
    }
    let aliases = layout.alias_links(&arm);
    assert_eq!(aliases[0], (".multiarch/aarch64".to_owned(), "arm64:v8".to_owned()));
}
