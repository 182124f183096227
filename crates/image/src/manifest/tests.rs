//! Documents of every kind, honest and hostile.

use super::*;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn digest(c: char) -> String {
    format!("sha256:{}", c.to_string().repeat(64))
}

fn descriptor(media_type: &str, c: char) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":10}}"#, digest(c))
}

fn manifest_json(media_type: &str, config: &str, layers: &[&str]) -> String {
    let layers: Vec<String> = layers.iter().map(|layer| descriptor(layer, '1')).collect();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{},"layers":[{}]}}"#,
        descriptor(config, 'c'),
        layers.join(",")
    )
}

fn parse(text: &str) -> Result<Document, ManifestError> {
    Document::parse(text.as_bytes(), None)
}

#[test]
fn reads_manifests_of_docker_and_oci() {
    for (media_type, config, layer, compression) in [
        (OCI_MANIFEST, CONFIG, "application/vnd.oci.image.layer.v1.tar", LayerCompression::Plain),
        (OCI_MANIFEST, CONFIG, "application/vnd.oci.image.layer.v1.tar+gzip", LayerCompression::Gzip),
        (OCI_MANIFEST, CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd", LayerCompression::Zstd),
        (
            OCI_MANIFEST,
            CONFIG,
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            LayerCompression::Foreign,
        ),
        (DOCKER_MANIFEST, DOCKER_CONFIG, "application/vnd.docker.image.rootfs.diff.tar.gzip", LayerCompression::Gzip),
        (DOCKER_MANIFEST, DOCKER_CONFIG, "application/vnd.docker.image.rootfs.diff.tar", LayerCompression::Plain),
        (
            DOCKER_MANIFEST,
            DOCKER_CONFIG,
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            LayerCompression::Foreign,
        ),
    ] {
        let Document::Manifest(manifest) = parse(&manifest_json(media_type, config, &[layer])).unwrap() else {
            panic!("{layer}: no manifest")
        };
        assert_eq!(manifest.layers[0].compression, compression, "{layer}");
        assert_eq!(manifest.config.to_string(), digest('c'));
        let record = manifest.record();
        assert_eq!(ManifestRecord::parse(&record.to_bytes()).unwrap(), record);
    }
}

#[test]
fn takes_the_type_from_the_header_when_the_document_is_silent() {
    let text = manifest_json(OCI_MANIFEST, CONFIG, &[]).replace(&format!(r#""mediaType":"{OCI_MANIFEST}","#), "");
    for header in
        [None, Some(OCI_MANIFEST), Some("application/json"), Some("application/vnd.oci.image.manifest.v1+json; x=y")]
    {
        assert!(matches!(Document::parse(text.as_bytes(), header), Ok(Document::Manifest(_))), "{header:?}");
    }
    let lie = Document::parse(text.as_bytes(), Some(OCI_INDEX));
    assert!(matches!(lie, Err(ManifestError::Ambiguous { .. })), "{lie:?}");
}

#[test]
fn refuses_what_is_no_image() {
    type Check = fn(&ManifestError) -> bool;
    let many = vec!["application/vnd.oci.image.layer.v1.tar"; 501];
    let both = manifest_json(OCI_MANIFEST, CONFIG, &[]).replace("\"layers\"", "\"manifests\":[],\"layers\"");
    let schema1 = r#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#.to_owned();
    let short = manifest_json(OCI_MANIFEST, CONFIG, &["application/vnd.oci.image.layer.v1.tar"])
        .replace(&digest('1'), &format!("sha512:{}", "1".repeat(128)));
    let table: Vec<(String, Check)> = vec![
        ("<html>".to_owned(), |e| matches!(e, ManifestError::Json { .. })),
        ("[".repeat(100_000), |e| matches!(e, ManifestError::Json { .. })),
        (" ".repeat(MAX_DOCUMENT + 1), |e| matches!(e, ManifestError::TooLarge { .. })),
        ("{}".to_owned(), |e| matches!(e, ManifestError::Ambiguous { .. })),
        (both, |e| matches!(e, ManifestError::Ambiguous { .. })),
        (schema1, |e| matches!(e, ManifestError::Schema1)),
        (manifest_json("application/x", CONFIG, &[]), |e| matches!(e, ManifestError::MediaType(_))),
        (manifest_json("application/vnd.oci.artifact.manifest.v1+json", CONFIG, &[]), |e| {
            matches!(e, ManifestError::MediaType(_))
        }),
        (manifest_json(OCI_INDEX, CONFIG, &[]), |e| matches!(e, ManifestError::Ambiguous { .. })),
        (manifest_json(OCI_MANIFEST, "application/vnd.cncf.helm.config.v1+json", &[]), |e| {
            matches!(e, ManifestError::Artifact(_))
        }),
        (manifest_json(OCI_MANIFEST, "application/vnd.oci.empty.v1+json", &[]), |e| {
            matches!(e, ManifestError::Artifact(_))
        }),
        (manifest_json(OCI_MANIFEST, CONFIG, &["application/vnd.in-toto+json"]), |e| {
            e.to_string().contains("attestation")
        }),
        (manifest_json(OCI_MANIFEST, CONFIG, &["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]), |e| {
            e.to_string().contains("encrypted layers")
        }),
        (manifest_json(OCI_MANIFEST, CONFIG, &many), |e| matches!(e, ManifestError::TooManyLayers(501))),
        (short, |e| matches!(e, ManifestError::Digest { .. })),
        (manifest_json(OCI_MANIFEST, CONFIG, &[]).replace(":10", ":5000000"), |e| {
            matches!(e, ManifestError::TooLarge { what: "config" })
        }),
    ];
    for (text, expected) in table {
        let error = parse(&text).expect_err(&text[..text.len().min(200)]);
        assert!(expected(&error), "{}: {error:?}", &text[..text.len().min(200)]);
    }
}

#[test]
fn never_chooses_attestations() {
    let entry =
        |media_type: &str, c, more: &str| descriptor(media_type, c).replace("\"size\"", &format!("{more}\"size\""));
    let unknown = r#""platform":{"architecture":"unknown","os":"unknown"},"#;
    let attested = format!(r#""annotations":{{"{ATTESTATION}":"attestation-manifest"}},{unknown}"#);
    let text = format!(
        r#"{{"schemaVersion":2,"manifests":[{},{},{},{}]}}"#,
        entry(OCI_MANIFEST, '1', &attested),
        entry(OCI_MANIFEST, '2', r#""platform":{"architecture":"arm64","os":"linux","variant":"v8"},"#),
        entry("application/x", '3', ""),
        entry(OCI_INDEX, '4', &format!(r#""annotations":{{"{REF_NAME}":"v1"}},"#)),
    );
    let Document::Index(index) = parse(&text).unwrap() else { panic!("an index") };
    let kinds: Vec<EntryKind> = index.entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [EntryKind::Other, EntryKind::Image, EntryKind::Other, EntryKind::Index]);
    assert_eq!(index.entries[1].platform.as_ref().unwrap().to_string(), "linux/arm64/v8");
    assert_eq!(index.tagged(Some("v1")).unwrap().digest.to_string(), digest('4'));
    assert!(index.tagged(Some("v2")).is_err());
    assert!(index.tagged(None).unwrap_err().to_string().contains("v1"), "two usable entries");
}

#[test]
fn reads_configs_with_missing_and_null_parts() {
    let config = Config::parse(
        br#"{"os":"linux","architecture":"arm64","variant":"v8","created":"2026-01-01T00:00:00Z","config":{"Env":["A=1"],
        "Entrypoint":["/e"],"Cmd":null,"WorkingDir":"/w","User":"1:2","Labels":{"k":"v","n":null},"ExposedPorts":{"80/tcp":{}}},
        "rootfs":{"type":"layers","diff_ids":[]},"history":null}"#,
    )
    .unwrap();
    assert_eq!(config.platform.unwrap().to_string(), "linux/arm64/v8");
    assert_eq!((&config.env[..], &config.entrypoint[..]), (&["A=1".to_owned()][..], &["/e".to_owned()][..]));
    assert_eq!((config.cmd.len(), &*config.working_dir, &*config.user), (0, "/w", "1:2"));
    assert_eq!(config.labels.into_iter().collect::<Vec<_>>(), [("k".into(), "v".into()), ("n".into(), String::new())]);
    assert_eq!(Config::parse(b"{}").unwrap().diff_ids, []);
    let text = format!(r#"{{"rootfs":{{"diff_ids":["{}"]}}}}"#, digest('1'));
    assert_eq!(Config::parse(text.as_bytes()).unwrap().diff_ids.len(), 1);
    assert_eq!(Config::parse(b"{\"config\":{\"Env\":[\"A=\xff\"]}}").unwrap().env, ["A=\u{fffd}"]);
    for bad in ["", "[]", r#"{"rootfs":{"diff_ids":["sha256:1"]}}"#, r#"{"config":{"Env":"A=1"}}"#] {
        assert!(Config::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn pairs_layers_with_diff_ids() {
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    for (layers, diff_ids, expected) in [
        (&[plain, plain][..], "12", Some("12")),
        (&[foreign, plain], "12", Some("2")),
        (&[foreign, plain], "2", Some("2")),
        (&[], "", Some("")),
        (&[plain], "12", None),
        (&[plain, plain, foreign], "1", None),
    ] {
        let Document::Manifest(manifest) = parse(&manifest_json(OCI_MANIFEST, CONFIG, layers)).unwrap() else {
            panic!("a manifest")
        };
        let ids: Vec<String> = diff_ids.chars().map(|c| format!("\"{}\"", digest(c))).collect();
        let config = format!(r#"{{"rootfs":{{"diff_ids":[{}]}}}}"#, ids.join(","));
        let found = manifest.layers_with(&Config::parse(config.as_bytes()).unwrap()).ok();
        let found =
            found.map(|layers| layers.iter().map(|layer| layer.diff_id.hex()[..1].to_owned()).collect::<String>());
        assert_eq!(found.as_deref(), expected, "{layers:?} {diff_ids}");
    }
}

#[test]
fn sniffs_the_packing_of_a_blob() {
    let mut header = ::tar::Header::new_ustar();
    header.set_size(0);
    header.set_path("a").unwrap();
    header.set_cksum();
    for (start, expected) in [
        (&[0x1f, 0x8b, 8][..], Some(LayerCompression::Gzip)),
        (&[0x28, 0xb5, 0x2f, 0xfd], Some(LayerCompression::Zstd)),
        (&[0x50, 0x2a, 0x4d, 0x18], Some(LayerCompression::Zstd)),
        (header.as_bytes(), Some(LayerCompression::Plain)),
        (&[0; 512], Some(LayerCompression::Plain)),
        (&[], None),
        (b"PK\x03\x04", None),
        (&[1; 512], None),
    ] {
        assert_eq!(LayerCompression::sniff(start), expected);
    }
}
